"""The providers of the joint loss: PyTorch, two operations of mind_kernels, and its one; nobody else has it.

`linear_cross_entropy` alone, exact and sparse, is what the joint loss is to cost no more than a few percent above.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from bench.comparison.provider import Provider, moved, operators_work, our_backends
from bench.linear_cross_entropy.providers import THRESHOLD, exact_work, sparse_work
from bench.linear_mind_loss.inputs import Inputs
from bench.linear_pairwise_jsd.providers import all_pairs, group_work
from bench.roofline import Logits, Step
from mind_kernels import linear_cross_entropy, linear_mind_loss, linear_pairwise_jsd


def eager(inputs: Inputs) -> Tensor:
    logits = inputs.hidden @ inputs.weight.T
    nll = F.cross_entropy(logits, inputs.target, reduction="none")
    return (inputs.row_weight * nll).sum() + all_pairs(logits[inputs.answer_rows], inputs.pair_weight)


def eager_cross_entropy(inputs: Inputs) -> Tensor:
    nll = F.cross_entropy(inputs.hidden @ inputs.weight.T, inputs.target, reduction="none")
    return (inputs.row_weight * nll).sum()


def eager_consistency(inputs: Inputs) -> Tensor:
    return all_pairs(inputs.groups @ inputs.weight.T, inputs.pair_weight)


def cross_entropy(inputs: Inputs, **options: Any) -> Tensor:
    return linear_cross_entropy(
        *inputs[:3],
        row_weight=inputs.row_weight,
        segment=inputs.segment,
        num_segments=inputs.segments,
        reduction="sum",
        **options,
    )


def two_calls(inputs: Inputs, backend: str) -> Tensor:
    consistency = linear_pairwise_jsd(inputs.groups, inputs.weight, inputs.pair_weight, backend=backend)
    return cross_entropy(inputs, backend=backend) + consistency


def joint(inputs: Inputs, **options: Any) -> Any:
    return linear_mind_loss(*inputs[:6], segment=inputs.segment, num_segments=inputs.segments, **options)


def dropped_mass(inputs: Inputs, **options: Any) -> dict[str, float]:
    _, stats = joint(inputs, return_stats=True, **options)
    return {"dropped_mass": float(stats.rows.dropped_mass.mean())}


def two_works(inputs: Inputs, facts: Mapping[str, float], backend: str) -> list[Step] | None:
    rows, groups = exact_work(inputs, facts, backend), group_work(_groups_of(inputs), facts, backend)
    return None if rows is None or groups is None else rows + groups


def joint_work(inputs: Inputs, facts: Mapping[str, float], backend: str, sparse: bool = False) -> list[Step] | None:
    """The cross-entropy's, and the passes of the answer rows' groups: their products are among those of all rows."""
    rows = (sparse_work if sparse else exact_work)(inputs, facts, backend)
    bytes_per_logit = moved("linear_pairwise_jsd, pairs of 8", backend)
    if rows is None or bytes_per_logit is None:
        return None
    groups = _groups_of(inputs)
    return [*rows, Logits.of(groups.hidden, groups.weight).passes(bytes_per_logit)]


def _groups_of(inputs: Inputs) -> Any:
    """The answer rows as inputs of the pairwise JSD."""
    return inputs._replace(hidden=inputs.hidden.new_empty(*inputs.answer_rows.shape, inputs.hidden.shape[1]))


def ours(backend: str) -> dict[str, Provider]:
    """The operations on one backend, by name; "auto" needs no mention."""
    mention, prefix = ("", "") if backend == "auto" else (f", {backend}", f"{backend} ")
    exact, sparse = f"linear_cross_entropy alone{mention}", f"linear_cross_entropy alone{mention}, sparse 2^-12"
    plain = {"backend": backend, "times_of": {BESIDE: exact}}
    filtered = {**plain, "sparse": True, "times_of": {BESIDE: sparse}}
    options = {"backend": backend, "gradient_threshold": THRESHOLD}
    both = partial(two_works, backend=backend)
    return {
        exact: Provider(
            partial(cross_entropy, backend=backend), **plain, judged_by=ROWS, work=partial(exact_work, backend=backend)
        ),
        **(
            {f"two calls{mention}": Provider(partial(two_calls, backend=backend), **plain, judged_by=BOTH, work=both)}
            if backend in our_backends("linear_pairwise_jsd")
            else {}
        ),
        f"mind_kernels {prefix}exact": Provider(
            partial(joint, backend=backend), **plain, judged_by=BOTH, work=partial(joint_work, backend=backend)
        ),
        sparse: Provider(
            partial(cross_entropy, **options), **filtered, judged_by=ROWS, work=partial(sparse_work, backend=backend)
        ),
        f"mind_kernels {prefix}sparse 2^-12": Provider(
            partial(joint, **options),
            **filtered,
            judged_by=BOTH,
            report=partial(dropped_mass, **options),
            work=partial(joint_work, backend=backend, sparse=True),
        ),
    }


BESIDE = "time_of_cross_entropy"
BOTH, ROWS = ("loss", "consistency"), ("cross-entropy",)
PROVIDERS = {
    "eager": Provider(eager, logits=6, work=operators_work(eager), times_of={BESIDE: "linear_cross_entropy alone"}),
}
for backend in our_backends("linear_mind_loss"):
    PROVIDERS |= ours(backend)
CPU = ("eager", *ours("auto"))
EAGER_CROSS_ENTROPY = Provider(eager_cross_entropy, logits=3)
EAGER_CONSISTENCY = Provider(eager_consistency, logits=3)
