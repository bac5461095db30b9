"""`linear_mind_loss`, MIND's student loss without logits: the public function and its operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from mind_kernels import backend as backends
from mind_kernels import checks, dtensors, shards
from mind_kernels.autograd import Operator
from mind_kernels.head import Head, HeadGradients, head_of
from mind_kernels.linear_cross_entropy.contract import ROW_KERNELS, RowSpec, RowStats, RowTerms, Segments
from mind_kernels.linear_mind_loss import joint, reference
from mind_kernels.linear_mind_loss.contract import MindArguments, MindOutputs, MindStats
from mind_kernels.linear_pairwise_jsd.forms import form_of, group_weight_argument
from mind_kernels.row_chunks import accumulation_dtype, flat_rows, row_major, weighted
from mind_kernels.shards import Shard, operation_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@overload
def linear_mind_loss(
    hidden: Tensor,
    weight: Tensor | Head,
    target: Tensor,
    row_weight: Tensor,
    answer_rows: Tensor,
    pair_weight: Tensor | None = None,
    *,
    mixture_weight: Tensor | None = None,
    segment: Tensor | None = None,
    num_segments: int | None = None,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float = 1.0,
    gradient_threshold: float | None = None,
    return_stats: Literal[False] = False,
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor: ...
@overload
def linear_mind_loss(
    hidden: Tensor,
    weight: Tensor | Head,
    target: Tensor,
    row_weight: Tensor,
    answer_rows: Tensor,
    pair_weight: Tensor | None = None,
    *,
    mixture_weight: Tensor | None = None,
    segment: Tensor | None = None,
    num_segments: int | None = None,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float = 1.0,
    gradient_threshold: float | None = None,
    return_stats: Literal[True],
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> tuple[Tensor, MindStats]: ...
@dtensors.errors_reach_all
def linear_mind_loss(
    hidden: Tensor,
    weight: Tensor | Head,
    target: Tensor,
    row_weight: Tensor,
    answer_rows: Tensor,
    pair_weight: Tensor | None = None,
    *,
    mixture_weight: Tensor | None = None,
    segment: Tensor | None = None,
    num_segments: int | None = None,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float = 1.0,
    gradient_threshold: float | None = None,
    return_stats: bool = False,
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, MindStats]:
    """sum_r row_weight[r] nll[r] + sum_p sum_{i<j} pair_weight[p, i, j] JSD(P_i, P_j), in one pass over the logits.

    This is L_total of MIND (arXiv 2601.03717) for row_weight = alpha_k / tokens_k and pair_weight = lambda alpha_i
    alpha_j / answer positions. P_k at position p is the softmax of row answer_rows[p, k]. Such a row is projected once
    for both terms, and receives the gradient of both. With `mixture_weight` w, the second term is sum_p sum_k w[p, k]
    KL(P_k || M), where M is the mean of the P_k weighted by w.

    Args:
        hidden: (N, D) float64, float32, bfloat16 or float16: hidden states of the labeled rows. Receives a gradient.
            Any leading shape (..., D) is accepted too; each (N,) below then has the shape (...).
        weight: (V, D), dtype and device of hidden: the weight of the LM head. Or a Head, which also holds bias, softcap
            and temperature. Receives a gradient.
        target: (N,) int64 or int32 in [0, V), or `ignore_index`: the token that each row is to predict. May be on the
            CPU, which saves one synchronization of the GPU.
        row_weight: (N,) floating, any sign, without a gradient: the weight of each row's nll. Rows of weight zero still
            have statistics.
        answer_rows: (P, K) int64 or int32: at each of P aligned answer positions, the rows of the K >= 2 perspectives,
            as indices of the N rows, each used at most once; -1 where a perspective has no row. May be on the CPU,
            which saves one synchronization of the GPU.
        pair_weight: (P, K, K) floating, finite, any sign, without a gradient: the weight of each pair (i, j). Only the
            upper triangle, i < j, is used.
        mixture_weight: (P, K) floating, finite, not negative, without a gradient: the weight of each row in its group's
            mixture, and of its divergence from that mixture. Exactly one of pair_weight and mixture_weight is required.
        segment: (N,) int64 or int32 in [0, num_segments): the segment (a rationale, for example) that each row belongs
            to. The statistics then hold the mean nll of each segment. May be on the CPU.
        num_segments: S > 0, the number of segments. Required with `segment`, refused without it.
        bias: (V,), dtype and device of hidden: added to the projected logits; -inf excludes a token. Receives a
            gradient.
        ignore_index: the target of rows without a cross-entropy. May be in [0, V). Such a row may be an answer row, and
            then still has divergences.
        softcap: c > 0: bounds x = hidden weight^T + bias to c tanh(x / c), before the temperature. None: no bound.
        temperature: T > 0: the logits are divided by it.
        gradient_threshold: None: the exact gradient. A share t in (0, 1), such as 2**-16 (on a GPU 2**-12), or the
            result of `threshold_for_error` for the error that you accept: the sparse gradient for all rows but the
            answer rows. The loss, the statistics and the gradient of answer rows stay exact. In the gradient of the
            logits of the other rows, entries with a probability of at most t (1 - p), where p is the probability of the
            target, are replaced by a background distribution with the same sum. Rows for which this would be slower or
            too inaccurate get the exact gradient. RowStats.dropped_mass and RowStats.kept_entries report what was
            replaced and kept.
        return_stats: also return MindStats.
        process_group: the processes that share the head (tensor parallelism): each holds a block of its rows, in rank
            order, and passes these rows as weight (V_r, D) and bias (V_r,). V_r may be 0; V above is the sum of all
            V_r. All other arguments must be the same in all processes. Loss and statistics are the same in all
            processes, and so is the gradient of hidden, which counts the whole head; the gradients of weight and bias
            are those of this process's rows. None: the head is whole; or weight and hidden are DTensors, the weight
            Shard(0) over one mesh dimension: the loss is then a plain tensor, the same in all processes of that
            dimension.
        backend: "auto", or a name that `mind_kernels.backends()` lists.

    Returns:
        The loss () in nats, in float32 (float64 for float64 input), or (loss, MindStats).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or value, or a constant that requires a
            gradient; the message names it. On a GPU, wrong values in a tensor fail a device-side assertion instead,
            since reading them would stall the stream.
        BackendUnavailableError: the requested backend cannot run here; the message says why.
        RuntimeError: a higher-order gradient, a forward-mode derivative or a transform of torch.func (grad, vmap, ...)
            with any backend but "reference".

    Source:
        mind_kernels/linear_mind_loss/README.md explains how the two terms share their logits.
    """
    head = head_of(weight, bias, softcap, temperature)
    hidden, head, group = dtensors.local(hidden, head, process_group)
    target, row_weight, segment, answer_rows = map(dtensors.whole, (target, row_weight, segment, answer_rows))
    pair_weight, mixture_weight = map(dtensors.whole, (pair_weight, mixture_weight))
    hidden, head = checks.head_arguments(hidden, head, "(..., D)", or_empty=group is not None)
    checks.row_arguments(hidden, target, row_weight, segment, num_segments, ignore_index)
    checks.tensors(row_weight=row_weight, answer_rows=answer_rows)
    checks.dimensions("answer_rows", answer_rows, "(P, K)")
    checks.integers("answer_rows", answer_rows)
    checks.device("answer_rows", answer_rows, hidden, or_cpu=True)
    group_weight = group_weight_argument(pair_weight, mixture_weight, hidden, answer_rows.shape)
    checks.probability("gradient_threshold", gradient_threshold)
    form = "" if gradient_threshold is None else "sparse"
    checks.flag("return_stats", return_stats)
    name = backends.resolve(backend, hidden, operation_of(_GROUP_KERNELS, group), head.vocabulary, form)
    arguments = MindArguments(
        flat_rows(hidden, 1),
        RowSpec(head, gradient_threshold=gradient_threshold),
        flat_rows(target),
        flat_rows(row_weight),
        answer_rows.long(),
        group_weight,
        flat_rows(segment),
        num_segments or 0,
        ignore_index,
        name,
        group,
    )
    outputs = _define(arguments) if name == "reference" else operator(arguments)
    if not return_stats:
        return outputs.loss
    segments = None if segment is None else outputs.segments
    return outputs.loss, MindStats(
        outputs.cross_entropy.detach(),
        outputs.consistency.detach(),
        RowStats.of(outputs.rows, segments, hidden.shape[:-1], sparse=gradient_threshold is not None),
        form_of(group_weight).stats(outputs.divergence.detach()),
    )


_GROUP_KERNELS = "linear_mind_loss"  # in backend.BACKENDS


def _shard(a: MindArguments, needs: Sequence[bool]) -> Shard | None:
    """This process's shard, None if the head is whole; checks that all processes got the same arguments."""
    if a.group is None:
        return None
    head = a.spec.head
    return shards.agree(
        a.group,
        "linear_mind_loss",
        head.vocabulary,
        a.hidden,
        lambda: _check_own_values(a),
        **shards.common_facts(a.hidden, head, a.group, needs),
        gradient_threshold=a.spec.gradient_threshold,
        ignore_index=a.ignore_index,
        backend=a.backend,
        target=a.target,
        segment=a.segment,
        num_segments=a.num_segments,
        answer_rows=a.answer_rows,
        **{
            "row_weight (which of it is 0)": a.row_weight != 0,
            "the shape of pair_weight or mixture_weight": tuple(a.group_weight.shape),
            "pair_weight or mixture_weight (which of it is 0)": a.group_weight != 0,
        },
    )


def _check_values(a: MindArguments, vocabulary: int) -> None:
    checks.row_values(a.target, a.ignore_index, vocabulary, None, 0)
    _check_own_values(a)


def _check_own_values(a: MindArguments) -> None:
    """Checks the values of all arguments but the targets, whose range depends on the head."""
    rows = a.hidden.shape[0]
    checks.segment_values(a.segment, a.num_segments)
    form_of(a.group_weight).check_values(a.group_weight)
    checks.values(
        (a.answer_rows >= -1) & (a.answer_rows < rows), f"answer_rows: expected rows in [0, {rows}), or -1 where absent"
    )
    uses = torch.zeros(rows + 1, dtype=torch.int64, device=a.answer_rows.device)
    uses.index_add_(0, a.answer_rows.flatten() % (rows + 1), torch.ones_like(a.answer_rows.flatten()))
    checks.values(uses[:rows] <= 1, "answer_rows: expected each row at most once")


def _define(a: MindArguments) -> MindOutputs:
    """The definition, differentiable."""
    checks.reads_values("linear_mind_loss", a.hidden)
    shard = _shard(a, [False, False, False])
    if shard is not None:
        assert a.group is not None
        hidden, head = shards.with_whole_head(shard, a.group, a.hidden, a.spec.head)
        a = a._replace(hidden=hidden, spec=a.spec.with_head(head))
    _check_values(a, a.spec.head.vocabulary)
    target, answer_rows = a.target.to(a.hidden.device), a.answer_rows.to(a.hidden.device)
    cross_entropy, consistency, terms, divergence = reference.forward(
        a.hidden, target, a.row_weight, answer_rows, a.group_weight, a.spec, ignore_index=a.ignore_index
    )
    segments = Segments.of(terms.values.nll.detach(), target != a.ignore_index, a.segment, a.num_segments)
    return MindOutputs(cross_entropy + consistency, cross_entropy, consistency, terms, segments, divergence)


def _run(a: MindArguments, needs: list[bool]) -> tuple[MindOutputs, HeadGradients]:
    shard = _shard(a, needs)
    _check_values(a, a.spec.head.vocabulary if shard is None else shard.vocabulary)
    group_weight = a.group_weight.to(accumulation_dtype(a.hidden.dtype))
    terms, row_weight, divergence, gradients = joint.forward(
        backends.kernels(operation_of(ROW_KERNELS, shard), a.backend),
        backends.kernels(operation_of(_GROUP_KERNELS, shard), a.backend),
        row_major(a.hidden),
        a.target,
        a.row_weight,
        a.answer_rows,
        group_weight,
        a.spec.with_head(backends.head_on(a.backend, a.spec.head)),
        needs,
        ignore_index=a.ignore_index,
        shard=shard,
    )
    shards.sum_hidden(shard, a.group, gradients)
    nll = terms.values.nll
    cross_entropy = weighted(nll, row_weight).sum()
    consistency = form_of(group_weight).loss(divergence, group_weight)
    segments = Segments.of(nll, a.target != a.ignore_index, a.segment, a.num_segments)
    outputs = MindOutputs(cross_entropy + consistency, cross_entropy, consistency, terms, segments, divergence)
    return outputs, gradients


def _fake(a: MindArguments) -> MindOutputs:
    dtype = accumulation_dtype(a.hidden.dtype)
    loss, cross_entropy, consistency = (a.hidden.new_empty((), dtype=dtype) for _ in range(3))
    terms = RowTerms.zeros(a.hidden.shape[0], a.hidden, sparse=a.spec.gradient_threshold is not None)
    segments = Segments.empty(a.hidden, 0 if a.segment is None else a.num_segments)
    divergence = a.hidden.new_empty(a.group_weight.shape, dtype=dtype)
    return MindOutputs(loss, cross_entropy, consistency, terms, segments, divergence)


operator = Operator("linear_mind_loss", MindArguments, MindOutputs, run=_run, fake=_fake, head="spec.head")
