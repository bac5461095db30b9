"""`linear_pairwise_jsd`, divergences of pairs of rows without logits: the public function and its operator."""

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
from mind_kernels.linear_pairwise_jsd.forms import compared, form_of, group_weight_argument, spoilt_rows
from mind_kernels.row_chunks import accumulation_dtype
from mind_kernels.shards import Shard, operation_of

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

    Kind "jeffreys" replaces the JSD of a pair by its symmetric KL: KL(P_i || P_j) + KL(P_j || P_i).

    z = softcap(hidden weight^T + bias) / temperature, in float32 whatever the dtype of hidden. JSD(P, Q) = H((P + Q) /
    2) - (H(P) + H(Q)) / 2 in nats. For pair_weight = alpha_i alpha_j the loss is L_cons of MIND (arXiv 2601.03717).

    With `mixture_weight` w instead of `pair_weight`, the loss is sum_p sum_k w[p, k] KL(P_k || M), M = sum_k w_k P_k /
    sum_k w_k. Per group this is sum_k w_k times the generalized JSD of all K distributions (Lin 1991). For K = 2 and
    both weights 1/2 it is the JSD of the pair.

    Args:
        hidden: (P, K, D), K >= 2 rows per group, float64, float32, bfloat16 or float16: the hidden states of K
            perspectives at P aligned answer positions. Receives a gradient.
        weight: (V, D), dtype and device of hidden: the weight of the LM head. Or a Head, which also holds bias, softcap
            and temperature. Receives a gradient.
        pair_weight: (P, K, K) floating, finite, any sign, without a gradient: the weight of each pair (i, j). Only the
            upper triangle, i < j, is used.
        mixture_weight: (P, K) floating, finite, not negative, without a gradient: the weight of each row in its group's
            mixture, and of its divergence from that mixture. Exactly one of pair_weight and mixture_weight is required.
        kind: "jsd" or "jeffreys": the divergence of a pair. `mixture_weight` requires "jsd".
        mask: (P, K) bool, False for a row that its group lacks: it has no divergence and no gradient, and neither has a
            row that is alone in its group, even if it is nan. None: no row is lacking.
        bias: (V,), dtype and device of hidden: added to the projected logits; -inf excludes a token. Receives a
            gradient.
        softcap: c > 0: bounds x = hidden weight^T + bias to c tanh(x / c), before the temperature. None: no bound.
        temperature: T > 0: the logits are divided by it.
        return_stats: also return PairStats, JeffreysStats for that kind, or MixtureStats with `mixture_weight`.
        process_group: the processes that share the head (tensor parallelism): each holds a block of its rows, in rank
            order, and passes these rows as weight (V_r, D) and bias (V_r,). V_r may be 0. All other arguments must be
            the same in all processes. Loss and statistics are the same in all processes, and so is the gradient of
            hidden, which counts the whole head; the gradients of weight and bias are those of this process's rows.
            None: the head is whole; or weight and hidden are DTensors, the weight Shard(0) over one mesh dimension: the
            loss is then a plain tensor, the same in all processes of that dimension.
        backend: "auto", or a name that `mind_kernels.backends()` lists.

    Returns:
        The loss () in nats, in float32 (float64 for float64 input), or (loss, statistics).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or value, or a constant that requires a
            gradient; the message names it. On a GPU, a weight that is not finite fails a device-side assertion instead,
            since reading its values would stall the stream.
        BackendUnavailableError: the requested backend cannot run here, or has no kernels for this kind; the
            message says why.
        RuntimeError: a higher-order gradient, a forward-mode derivative or a transform of torch.func (grad, vmap, ...)
            with any backend but "reference".

    Source:
        mind_kernels/linear_pairwise_jsd/README.md derives the gradient and explains how nearly equal rows are compared.
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
    checks.flag("return_stats", return_stats)
    name = backends.resolve(backend, hidden, operation_of(_OPERATIONS[kind], group), head.vocabulary, form)
    arguments = GroupArguments(hidden, head, group_weight, mask, kind, bool(return_stats), name, group)
    outputs = _define(arguments) if name == "reference" else operator(arguments)
    if not return_stats:
        return outputs.loss
    divergence = outputs.divergence.detach()
    return outputs.loss, JeffreysStats(divergence) if kind == "jeffreys" else form_of(group_weight).stats(divergence)


_OPERATIONS = {"jsd": "linear_pairwise_jsd", "jeffreys": JEFFREYS}  # in backend.BACKENDS


def _shard(a: GroupArguments, needs: Sequence[bool]) -> Shard | None:
    """This process's shard, None if the head is whole; checks that all processes got the same arguments."""
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
    """The definition, differentiable."""
    shard = _shard(a, [False, False, False])
    if shard is not None:
        assert a.group is not None
        hidden, head = shards.with_whole_head(shard, a.group, a.hidden, a.head)
        a = a._replace(hidden=hidden, head=head)
    form_of(a.group_weight).check_values(a.group_weight)
    mask = compared(a.mask)
    spoilt = spoilt_rows(a.hidden, a.group_weight, mask)
    logits = a.head.logits(torch.where((mask & ~spoilt)[..., None], a.hidden, 0))
    divergence = reference.divergences(logits, a.group_weight, mask & ~spoilt, a.kind)
    divergence = form_of(a.group_weight).with_spoilt(divergence, a.group_weight, mask, spoilt)
    return GroupOutputs(reference.group_loss(divergence, a.group_weight), divergence)


def _run(a: GroupArguments, needs: list[bool]) -> tuple[GroupOutputs, HeadGradients]:
    shard, form = _shard(a, needs), form_of(a.group_weight)
    form.check_values(a.group_weight)
    weight = a.group_weight.to(accumulation_dtype(a.hidden.dtype))
    divergence, gradients = groups.forward(
        backends.kernels(operation_of(_OPERATIONS[a.kind], shard), a.backend),
        a.hidden,
        backends.head_on(a.backend, a.head),
        weight,
        a.mask,
        needs,
        with_stats=a.with_stats or shard is not None,  # another process may have asked for them
        shard=shard,
    )
    shards.sum_hidden(shard, a.group, gradients)
    return GroupOutputs(form.loss(divergence, weight), divergence), gradients


def _fake(a: GroupArguments) -> GroupOutputs:
    dtype = accumulation_dtype(a.hidden.dtype)
    divergence = a.group_weight.new_empty(a.group_weight.shape, dtype=dtype)
    return GroupOutputs(a.hidden.new_empty((), dtype=dtype), divergence)


operator = Operator("linear_pairwise_jsd", GroupArguments, GroupOutputs, run=_run, fake=_fake)
