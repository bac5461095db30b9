"""Each operation as a loss of hidden states and a head, for the tests of what all of them promise.

A loss is called as `of(hidden (N, D), head, constants, **options)` and gives a number; N is a multiple of 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from cases import device_of, interpreted, usable
from torch import Tensor

from mind_kernels import (
    Head,
    linear_cross_entropy,
    linear_divergence,
    linear_log_prob,
    linear_mind_loss,
    linear_pairwise_jsd,
)

Constants = dict[str, Tensor]
GROUP = 3


@dataclass(frozen=True)
class Loss:
    name: str
    operation: str  # as a backend knows it
    constants: tuple[str, ...]  # those that it takes
    of: Callable[..., Tensor]

    def __call__(self, hidden: Tensor, head: Tensor | Head, constants: Constants, **options) -> Tensor:
        return self.of(hidden, head, **{name: constants[name] for name in self.constants}, **options)


def make_constants(rows: int, vocabulary: int, seed: int = 0, dtype=torch.float32) -> Constants:
    """Of `rows` rows, a multiple of 3; weights sum to about one."""
    generator = torch.Generator().manual_seed(seed)
    groups = rows // GROUP

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def uniform(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1).to(dtype)

    listed = torch.rand(rows, vocabulary, generator=generator).argsort(1)[:, :4].contiguous()
    return {
        "ids": torch.cat([listed[:, :2], listed[:, 1:2]], 1),
        "row_temperature": torch.linspace(0.5, 1.5, rows, dtype=torch.float64).to(dtype),
        "target": torch.randint(0, vocabulary, (rows,), generator=generator),
        "row_weight": uniform(rows) / rows,
        "answer_rows": torch.arange(groups - groups % 2).view(-1, 2),
        "answer_weight": uniform(groups // 2, 2, 2) / rows,
        "pair_weight": uniform(groups, GROUP, GROUP) / rows,
        "mixture_weight": uniform(groups, GROUP) / rows,
        "teacher_hidden": normal(rows, 5),
        "teacher_weight": normal(vocabulary, 5),
        "teacher_ids": listed,
        "teacher_log_prob": torch.log_softmax(normal(rows, 5), 1)[:, :4].contiguous(),
        "teacher_mask": torch.arange(4) < torch.arange(rows)[:, None] % 5,
    }


def _log_prob(hidden, head, target, row_weight, **options):
    found = linear_log_prob(hidden, head, target, **options)
    return (row_weight * (0.1 * found.entropy - found.log_prob)).sum()


def _listed(hidden, head, ids, row_temperature, row_weight, **options):
    """Of three ids, two of them equal, with a temperature per row; and a z-loss."""
    if isinstance(head, Head):
        options |= {"bias": head.bias, "softcap": head.softcap}
        row_temperature, head = row_temperature * head.temperature, head.weight
    found = linear_log_prob(hidden, head, ids, temperature=row_temperature, **options)
    of_row = 0.01 * found.lse.square() + 0.1 * found.entropy - found.log_prob.mean(-1)
    return (row_weight * of_row).sum()


def _rows(hidden, head, row_weight, **options):
    return (row_weight * linear_cross_entropy(hidden, head, reduction="none", **options)).sum()


def _pairs(hidden, head, **options):
    return linear_pairwise_jsd(hidden.unflatten(0, (-1, GROUP)), head, **options)


def _joint(hidden, head, answer_weight, **options):
    return linear_mind_loss(hidden, head, pair_weight=answer_weight, **options)


_SUM = partial(linear_cross_entropy, reduction="sum")
_OF_HEAD = ("teacher_hidden", "teacher_weight", "row_weight")
_OF_LIST = ("teacher_ids", "teacher_log_prob", "teacher_mask", "row_weight")
_JOINT = ("target", "row_weight", "answer_rows", "answer_weight")

LOSSES = [
    Loss("cross_entropy", "linear_cross_entropy", ("target", "row_weight"), _SUM),
    Loss("mean", "linear_cross_entropy", ("target",), linear_cross_entropy),
    Loss("sparse", "linear_cross_entropy", ("target", "row_weight"), partial(_SUM, gradient_threshold=2.0**-14)),
    Loss("smoothed", "linear_cross_entropy", ("target", "row_weight"), partial(_SUM, label_smoothing=0.1, z_loss=1e-3)),
    Loss("none", "linear_cross_entropy", ("target", "row_weight"), _rows),
    Loss("log_prob", "linear_cross_entropy", ("target", "row_weight"), _log_prob),
    Loss("listed", "linear_cross_entropy", ("ids", "row_temperature", "row_weight"), _listed),
    Loss("pairs", "linear_pairwise_jsd", ("pair_weight",), _pairs),
    Loss("mixture", "linear_pairwise_jsd", ("mixture_weight",), _pairs),
    Loss("forward_kl", "linear_divergence", _OF_HEAD, partial(linear_divergence, reduction="sum")),
    Loss("reverse_kl", "linear_divergence", _OF_HEAD, partial(linear_divergence, kind="reverse_kl", reduction="sum")),
    Loss("listed_jsd", "linear_divergence", _OF_LIST, partial(linear_divergence, kind="jsd", reduction="sum")),
    Loss("joint", "linear_mind_loss", _JOINT, _joint),
    Loss("sparse_joint", "linear_mind_loss", _JOINT, partial(_joint, gradient_threshold=2.0**-14)),
]
_ONE_EACH = ("sparse", "log_prob", "mixture", "listed_jsd", "joint")
SLOWLY = [
    pytest.param(loss, id=loss.name, marks=[pytest.mark.nightly] * (loss.name not in _ONE_EACH)) for loss in LOSSES
]
"""For tests that take seconds per loss: one of each operation, the others at night."""


def with_backends(
    *, reference: bool = False, interpreter: bool = False, losses: Sequence[Loss] = LOSSES
) -> pytest.MarkDecorator:
    """Each loss with each backend that runs on this machine's CPU; `reference`: with the definition too; `interpreter`:
    with Triton's, which takes seconds."""
    return pytest.mark.parametrize(
        ("loss", "backend"),
        [
            pytest.param(loss, backend, id=f"{loss.name}-{backend}")
            for loss in losses
            for backend in [*["reference"] * reference, *usable(loss.operation)]
            if device_of(backend) == "cpu" and (interpreter or not interpreted(backend))
        ],
    )
