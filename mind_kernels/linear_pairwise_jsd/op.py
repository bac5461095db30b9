"""linear_pairwise_jsd: the public function and its operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from mind_kernels import backend as backends
from mind_kernels import checks, dtensors, shards
from mind_kernels.autograd import Operator
from mind_kernels.head import Head, HeadGradients, head_of
from mind_kernels.linear_pairwise_jsd import groups, reference
from mind_kernels.linear_pairwise_jsd.contract import (
    JEFFREYS,
    GroupArguments,
    GroupOutputs,
    JeffreysStats,
    MixtureStats,
    PairStats,
)
from mind_kernels.linear_pairwise_jsd.forms import form_of, group_weight_argument
from mind_kernels.row_chunks import accumulation_dtype
from mind_kernels.shards import Shard

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@overload
def linear_pairwise_jsd(
    hidden: Tensor,
    weight: Tensor | Head,
    pair_weight: Tensor | None = None,
    *,
    mixture_weight: Tensor | None = None,
    kind: str = "jsd",
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    return_stats: Literal[False] = False,
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor: ...
@overload
def linear_pairwise_jsd(
    hidden: Tensor,
    weight: Tensor | Head,
    pair_weight: Tensor | None = None,
    *,
    mixture_weight: Tensor | None = None,
    kind: str = "jsd",
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    return_stats: Literal[True],
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> tuple[Tensor, PairStats | JeffreysStats | MixtureStats]: ...
@dtensors.errors_reach_all
def linear_pairwise_jsd(
    hidden: Tensor,
    weight: Tensor | Head,
    pair_weight: Tensor | None = None,
    *,
    mixture_weight: Tensor | None = None,
    kind: str = "jsd",
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    return_stats: bool = False,
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, PairStats | JeffreysStats | MixtureStats]:
    """sum_p sum_{i<j} pair_weight[p, i, j] JSD(P_i, P_j) of P_k = softmax(z_k), with gradients to all K sides.

    With kind "jeffreys", the symmetric KL of pairs in place of their JSD: KL(P_i || P_j) + KL(P_j || P_i).

    z = softcap(hidden weight^T + bias) / temperature, in float32 whatever the dtype of hidden. JSD(P, Q) =
    H((P + Q) / 2) - (H(P) + H(Q)) / 2 in nats: L_cons of MIND (arXiv 2601.03717) for pair_weight = alpha_i alpha_j.

    With `mixture_weight` w instead: sum_p sum_k w[p, k] KL(P_k || M), M = sum_k w_k P_k / sum_k w_k, which is
    sum_k w_k times the generalized JSD of all K distributions (Lin 1991), and 1/2 in both places the JSD of a pair.

    Args:
        hidden: (P, K, D), K >= 2 rows per group, float64, float32, bfloat16 or float16: the hidden states of K
            perspectives at P aligned answer positions. Takes a gradient.
        weight: (V, D) LM head, dtype and device of hidden; or a Head, which has bias, softcap and temperature too.
            Takes a gradient.
        pair_weight: (P, K, K) floating, finite, any sign, a constant: weight of each pair, of which the upper triangle
            (i < j) counts.
        mixture_weight: (P, K) floating, finite, not negative, a constant: weight of each row in its group's mixture and
            of its divergence from it. Exactly one of the two is given.
        kind: "jsd" or "jeffreys", the divergence of a pair; with `mixture_weight` "jsd" alone.
        mask: (P, K) bool, False where a group lacks a row: it has no divergence and no gradient. None: all are there.
        bias: (V,), dtype and device of hidden: added to the projected logits; -inf rules an entry out. Takes a
            gradient.
        softcap: c > 0: x = hidden weight^T + bias becomes c tanh(x / c), before the temperature. None: x stays.
        temperature: T > 0: what the logits are divided by.
        return_stats: also return PairStats, JeffreysStats for that kind, or MixtureStats with `mixture_weight`.
        process_group: the processes among which the head's rows are split, in rank order (tensor parallelism): weight
            is (V_r, D) and bias (V_r,) then, this process's rows, of which there may be none. All else is the same in
            all processes, and so are loss and statistics; the gradients of weight and bias are those of this process's
            rows, that of hidden is the whole one. None: the head is whole, or weight and hidden are DTensors, the
            weight Shard(0) over one mesh dimension: the loss is a plain tensor then, the same in all processes of that
            dimension.
        backend: "auto" or a name that `mind_kernels.backends` lists.

    Returns:
        The loss () in nats, in float32 (float64 for float64 input), or (loss, statistics).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or value, or a constant that requires a
            gradient; it is named. On a GPU a weight that is not finite is a device-side assertion, since reading it
            would stall the stream.
        BackendUnavailableError: the backend that was named cannot run here, or has no kernels for this kind; the
            message says why.
        RuntimeError: a higher-order gradient, a forward-mode derivative or a transform of torch.func (grad, vmap, ...)
            through any backend but "reference".

    Source:
        mind_kernels/linear_pairwise_jsd/README.md derives the gradient, and says how nearly equal rows are compared.
    """
    head = head_of(weight, bias, softcap, temperature)
    hidden, head, group = dtensors.local(hidden, head, process_group)
    pair_weight, mixture_weight, mask = map(dtensors.whole, (pair_weight, mixture_weight, mask))
    hidden, head = checks.head_arguments(hidden, head, "(P, K, D)", or_empty=group is not None)
    shape = hidden.shape[:2]
    group_weight = group_weight_argument(pair_weight, mixture_weight, hidden, shape)
    if mask is None:
        mask = hidden.new_ones(shape, dtype=torch.bool)
    checks.tensors(mask=mask)
    checks.shape("mask", mask, shape, "(P, K)")
    checks.device("mask", mask, hidden)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}: expected torch.bool")
    form = "" if mixture_weight is None else "mixture"
    if not isinstance(kind, str) or kind not in _OPERATIONS:
        raise ValueError(f"kind is {kind!r}: expected one of {', '.join(map(repr, _OPERATIONS))}")
    if form and kind != "jsd":
        raise ValueError(f"kind is {kind!r}: expected 'jsd' with mixture_weight")
    name = backends.resolve(backend, hidden, _operation(kind, is_split=group is not None), head.vocabulary, form)
    arguments = GroupArguments(hidden, head, group_weight, mask, kind, return_stats, name, group)
    outputs = _define(arguments) if name == "reference" else operator(arguments)
    if not return_stats:
        return outputs.loss
    divergence = outputs.divergence.detach()
    return outputs.loss, JeffreysStats(divergence) if kind == "jeffreys" else form_of(group_weight).stats(divergence)


_OPERATIONS = {"jsd": "linear_pairwise_jsd", "jeffreys": JEFFREYS}


def _operation(kind: str, *, is_split: bool) -> str:
    """As `backend.BACKENDS` knows it."""
    return _OPERATIONS[kind] + ", shards" * is_split


def _shard(a: GroupArguments, needs: Sequence[bool]) -> Shard | None:
    """The shard of this process, if the head is split; checks that all processes were called alike."""
    if a.group is None:
        return None
    flat, weight = a.hidden.flatten(0, 1), a.group_weight
    return shards.agree(
        a.group,
        "linear_pairwise_jsd",
        a.head.vocabulary,
        a.hidden,
        lambda: form_of(weight).check_values(weight),
        **shards.common_facts(flat, a.head, a.group, needs),
        kind=a.kind,
        backend=a.backend,
        mask=a.mask,
        **{
            "the shape of pair_weight or mixture_weight": tuple(weight.shape),
            "pair_weight or mixture_weight (which of it is 0)": weight != 0,
        },
    )


def _define(a: GroupArguments) -> GroupOutputs:
    """By the definition, differentiable."""
    shard = _shard(a, [False, False, False])
    if shard is not None:
        assert a.group is not None
        hidden, head = shards.with_whole_head(shard, a.group, a.hidden, a.head)
        a = a._replace(hidden=hidden, head=head)
    form_of(a.group_weight).check_values(a.group_weight)
    logits = a.head.logits(torch.where(a.mask[..., None], a.hidden, 0))
    divergence = reference.divergences(logits, a.group_weight, a.mask, a.kind)
    return GroupOutputs(reference.group_loss(divergence, a.group_weight), divergence)


def _run(a: GroupArguments, needs: list[bool]) -> tuple[GroupOutputs, HeadGradients]:
    shard, form = _shard(a, needs), form_of(a.group_weight)
    form.check_values(a.group_weight)
    weight = a.group_weight.to(accumulation_dtype(a.hidden.dtype))
    divergence, gradients = groups.forward(
        backends.kernels(_operation(a.kind, is_split=shard is not None), a.backend),
        a.hidden,
        backends.head_on(a.backend, a.head),
        weight,
        a.mask,
        needs,
        with_stats=a.with_stats or shard is not None,  # one process alone may ask for them
        shard=shard,
    )
    shards.sum_hidden(shard, a.group, gradients)
    return GroupOutputs(form.loss(divergence, weight), divergence), gradients


def _fake(a: GroupArguments) -> GroupOutputs:
    dtype = accumulation_dtype(a.hidden.dtype)
    divergence = a.group_weight.new_empty(a.group_weight.shape, dtype=dtype)
    return GroupOutputs(a.hidden.new_empty((), dtype=dtype), divergence)


operator = Operator("linear_pairwise_jsd", GroupArguments, GroupOutputs, run=_run, fake=_fake)
