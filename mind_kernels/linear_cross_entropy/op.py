"""`linear_cross_entropy`, the cross-entropy of tokens without logits: the public function and its operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from mind_kernels import backend as backends
from mind_kernels import checks, dtensors, shards
from mind_kernels.autograd import Operator
from mind_kernels.head import Head, HeadGradients, head_of
from mind_kernels.linear_cross_entropy import reference, rows
from mind_kernels.linear_cross_entropy.contract import (
    ROW_KERNELS,
    RowArguments,
    RowOutputs,
    RowSpec,
    RowStats,
    RowTerms,
    Segments,
)
from mind_kernels.linear_cross_entropy.extra_stats import checked_names
from mind_kernels.linear_cross_entropy.threshold import batch_threshold_for_error
from mind_kernels.row_chunks import accumulation_dtype, flat_rows, row_major, upstream_weights
from mind_kernels.shards import Shard, operation_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@overload
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor | Head,
    target: Tensor,
    *,
    row_weight: Tensor | None = None,
    segment: Tensor | None = None,
    num_segments: int | None = None,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    gradient_threshold: float | None = None,
    gradient_error: float | None = None,
    return_stats: Literal[False] = False,
    extra_stats: Sequence[str] = (),
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor: ...
@overload
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor | Head,
    target: Tensor,
    *,
    row_weight: Tensor | None = None,
    segment: Tensor | None = None,
    num_segments: int | None = None,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    gradient_threshold: float | None = None,
    gradient_error: float | None = None,
    return_stats: Literal[True],
    extra_stats: Sequence[str] = (),
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> tuple[Tensor, RowStats]: ...
@dtensors.errors_reach_all
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor | Head,
    target: Tensor,
    *,
    row_weight: Tensor | None = None,
    segment: Tensor | None = None,
    num_segments: int | None = None,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    gradient_threshold: float | None = None,
    gradient_error: float | None = None,
    return_stats: bool = False,
    extra_stats: Sequence[str] = (),
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, RowStats]:
    """Cross-entropy of softmax(z), z = softcap(hidden weight^T + bias) / temperature, without the N x V logits.

    Args:
        hidden: (N, D) float64, float32, bfloat16 or float16: hidden states of the labeled rows. Receives a gradient.
            Any leading shape (..., D) is accepted too; each (N,) below then has the shape (...).
        weight: (V, D), dtype and device of hidden: the weight of the LM head. Or a Head, which also holds bias, softcap
            and temperature. Receives a gradient.
        target: (N,) int64 or int32 in [0, V), or `ignore_index`: the token that each row is to predict. May be on the
            CPU, which saves one synchronization of the GPU.
        row_weight: (N,) floating, any sign, without a gradient: the weight of each row, such as alpha_k / tokens. None:
            1 for each row. Rows of weight zero still have statistics, and no gradient, whatever they hold.
        segment: (N,) int64 or int32 in [0, num_segments): the segment (a rationale, for example) that each row belongs
            to. The statistics then hold the mean nll of each segment. May be on the CPU.
        num_segments: S > 0, the number of segments. Required with `segment`, refused without it.
        bias: (V,), dtype and device of hidden: added to the projected logits; -inf excludes a token. Receives a
            gradient.
        ignore_index: the target that marks ignored rows: they add nothing to the loss or its gradient, and their
            statistics are zero. May be in [0, V).
        reduction: "mean": the sum of the weighted row losses over the sum of the weights, both over rows that are not
            ignored (nan if there are none, as in torch.nn.functional.cross_entropy); "sum": the sum of the weighted row
            losses; "none": the weighted row losses (N,), zero in ignored rows.
        label_smoothing: epsilon in [0, 1]: the nll of a row becomes (1 - eps) nll + eps mean_v(-log p_v).
        z_loss: adds z_loss * lse^2 to each row's loss, lse in nats.
        softcap: c > 0: bounds x = hidden weight^T + bias to c tanh(x / c), before the temperature. None: no bound.
        temperature: T > 0: the logits are divided by it.
        gradient_threshold: None: the exact gradient. A share t in (0, 1), such as 2**-16 (on a GPU 2**-12), or the
            result of `threshold_for_error` for the error that you accept: the sparse gradient. The loss and the
            statistics stay exact. In the gradient of the logits, entries with a probability of at most t (1 - p), where
            p is the probability of the target, are replaced by a background distribution with the same sum. The size of
            the row's gradient is 1 - p. So at most 1 / t entries are kept beside the target, and the error is small
            relative to the gradient of each row, however confident the row is. Rows for which this would be slower or
            too inaccurate get the exact gradient. RowStats.dropped_mass and RowStats.kept_entries report what was
            replaced and kept.
        gradient_error: None; or, instead of a threshold, the error that the gradient of the whole batch may have:
            |found - exact| / |exact|, a number in (0, 1), in the Frobenius norm, for the gradient of the hidden states
            and for that of the weight. For comparison, float32 in eager PyTorch has an error of about 3e-5. Entries are
            left out if they are small relative to the gradient of all rows, weights included; a row whose own gradient
            is small relative to the others' may lose everything but its target. The relation between choice and error
            was measured on the rows of a trained model; it is not a bound. Only the backends "cpp" and "reference" have
            it (float64: only "reference"), for reduction "mean" and "sum", without a process_group, and without the
            combination of label smoothing and softcap. RowStats.dropped_mass and RowStats.kept_entries are 0 in rows
            without a gradient, and in all rows if no gradient is needed.
        return_stats: also return RowStats.
        extra_stats: names of further statistics for RowStats to hold: "mean_logit", "log_sum_sq", "predicted".
            Computing them needs the logits of each chunk and some more passes over them.
        process_group: the processes that share the head (tensor parallelism): each holds a block of its rows, in rank
            order, and passes these rows as weight (V_r, D) and bias (V_r,). V_r may be 0; V above is the sum of all
            V_r. All other arguments must be the same in all processes. Loss and statistics are the same in all
            processes, and so is the gradient of hidden, which counts the whole head; the gradients of weight and bias
            are those of this process's rows. None: the head is whole; or weight and hidden are DTensors, the weight
            Shard(0) over one mesh dimension: the loss is then a plain tensor, the same in all processes of that
            dimension. Not together with gradient_error.
        backend: "auto", or a name that `mind_kernels.backends()` lists.

    Returns:
        The loss in nats, () or (N,) for reduction "none", in float32 (float64 for float64 input), or (loss, RowStats).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or range, or a constant that requires a
            gradient; the message names it, and with process_group all processes raise. On a GPU, a target or segment
            out of range fails a device-side assertion instead, since reading its values would stall the stream.
        BackendUnavailableError: the requested backend cannot run here; the message says why.
        RuntimeError: a higher-order gradient, a forward-mode derivative or a transform of torch.func (grad, vmap, ...)
            with any backend but "reference".

    Source:
        mind_kernels/linear_cross_entropy/README.md derives the exact and the sparse gradient.
    """
    head = head_of(weight, bias, softcap, temperature)
    hidden, head, group = dtensors.local(hidden, head, process_group)
    target, row_weight, segment = map(dtensors.whole, (target, row_weight, segment))
    hidden, head = checks.head_arguments(hidden, head, "(..., D)", or_empty=group is not None)
    checks.row_arguments(hidden, target, row_weight, segment, num_segments, ignore_index)
    checks.reduction(reduction)
    for number, value in (("label_smoothing", label_smoothing), ("z_loss", z_loss)):
        checks.finite(number, value)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}: expected a number in [0, 1]")
    checks.probability("gradient_threshold", gradient_threshold)
    checks.flag("return_stats", return_stats)
    extra = checked_names(extra_stats, return_stats)
    batch_threshold = None
    if gradient_error is not None:
        batch_threshold = batch_threshold_for_error(gradient_error)
        _check_error_fits(gradient_error, gradient_threshold, reduction, label_smoothing, head)
        if head.weight.dtype == torch.float64 and backend != "reference":
            raise TypeError(
                f"hidden has dtype {hidden.dtype}: expected float32 or less with gradient_error, or backend 'reference'"
            )
        backend = "cpp" if backend == "auto" else backend
    form = "" if gradient_threshold is None else "sparse"
    if group is not None and gradient_error is not None:
        raise ValueError(
            f"gradient_error is {gradient_error}: expected None with process_group, since it chooses entries before "
            f"the processes know the whole row; expected gradient_threshold=threshold_for_error({gradient_error}) there"
        )
    name = backends.resolve(backend, hidden, operation_of(ROW_KERNELS, group), head.vocabulary, form)
    if gradient_error is not None and name not in _HAVE_GRADIENT_ERROR:
        names = " or ".join(map(repr, _HAVE_GRADIENT_ERROR))
        raise ValueError(f"backend is {name!r}: expected {names} with gradient_error")
    spec = RowSpec(head, label_smoothing, z_loss, gradient_threshold, batch_threshold)
    arguments = RowArguments(
        flat_rows(hidden, 1),
        spec,
        flat_rows(target),
        flat_rows(row_weight),
        flat_rows(segment),
        num_segments or 0,
        ignore_index,
        reduction,
        extra,
        name,
        group,
    )
    outputs = _define(arguments) if name == "reference" else operator(arguments)
    shape = hidden.shape[:-1]
    loss = outputs.loss.view(shape) if reduction == "none" else outputs.loss
    if not return_stats:
        return loss
    means = None if segment is None else outputs.segments
    return loss, RowStats.of(outputs.rows, means, shape, sparse=spec.is_sparse, extra=extra)


_HAVE_GRADIENT_ERROR = ("cpp", "reference")


def _check_error_fits(
    error: float, threshold: float | None, reduction: str, label_smoothing: float, head: Head
) -> None:
    if threshold is not None:
        raise ValueError(f"gradient_error is {error} and gradient_threshold {threshold}: expected one of them")
    if reduction == "none":
        raise ValueError("reduction is 'none': expected 'mean' or 'sum' with gradient_error, which is that of a batch")
    if label_smoothing and head.softcap is not None:
        raise ValueError(
            f"label_smoothing is {label_smoothing}: expected 0 with gradient_error and a softcap, under which the "
            "smoothed part is no multiple of one vector"
        )


def _shard(a: RowArguments, gradients: Sequence[bool]) -> Shard | None:
    """This process's shard, None if the head is whole; checks that all processes got the same arguments."""
    if a.group is None:
        return None
    head, spec = a.spec.head, a.spec
    return shards.agree(
        a.group,
        "linear_cross_entropy",
        head.vocabulary,
        a.hidden,
        lambda: checks.segment_values(a.segment, a.num_segments),
        **shards.common_facts(a.hidden, head, a.group, gradients),
        label_smoothing=spec.label_smoothing,
        z_loss=spec.z_loss,
        gradient_threshold=spec.gradient_threshold,
        reduction=a.reduction,
        ignore_index=a.ignore_index,
        extra_stats=a.extra_stats,
        backend=a.backend,
        target=a.target,
        segment=a.segment,
        num_segments=a.num_segments,
        **{"row_weight (which of it is 0)": None if a.row_weight is None else a.row_weight != 0},
    )


def _define(a: RowArguments) -> RowOutputs:
    """The definition, differentiable."""
    shard = _shard(a, [False, False, False])
    if shard is not None:
        assert a.group is not None
        hidden, head = shards.with_whole_head(shard, a.group, a.hidden, a.spec.head)
        a = a._replace(hidden=hidden, spec=a.spec.with_head(head), group=None)
    checks.row_values(a.target, a.ignore_index, a.spec.head.vocabulary, a.segment, a.num_segments)
    target = a.target.to(a.hidden.device)
    loss, terms = reference.forward(
        a.hidden,
        target,
        a.row_weight,
        a.spec,
        ignore_index=a.ignore_index,
        reduction=a.reduction,
        extra=a.extra_stats,
    )
    nll = terms.values.nll.detach()
    return RowOutputs(loss, terms, Segments.of(nll, target != a.ignore_index, a.segment, a.num_segments))


def _run(a: RowArguments, needs: list[bool]) -> tuple[RowOutputs, HeadGradients]:
    shard = _shard(a, needs)
    vocabulary = a.spec.head.vocabulary if shard is None else shard.vocabulary
    checks.row_values(a.target, a.ignore_index, vocabulary, a.segment, a.num_segments)
    loss, terms, gradients = rows.forward(
        backends.kernels(operation_of(ROW_KERNELS, shard), a.backend),
        row_major(a.hidden),
        a.target,
        a.row_weight,
        a.spec.with_head(backends.head_on(a.backend, a.spec.head)),
        needs,
        ignore_index=a.ignore_index,
        reduction=a.reduction,
        extra=a.extra_stats,
        shard=shard,
    )
    shards.sum_hidden(shard, a.group, gradients)
    segments = Segments.of(terms.values.nll, a.target != a.ignore_index, a.segment, a.num_segments)
    return RowOutputs(loss, terms, segments), gradients


def _fake(a: RowArguments) -> RowOutputs:
    rows, dtype = a.hidden.shape[0], accumulation_dtype(a.hidden.dtype)
    loss = a.hidden.new_empty((rows,) if a.reduction == "none" else (), dtype=dtype)
    terms = RowTerms.zeros(rows, a.hidden, sparse=a.spec.is_sparse, extra=a.extra_stats)
    return RowOutputs(loss, terms, Segments.empty(a.hidden, 0 if a.segment is None else a.num_segments))


def _recompute(a: RowArguments, upstream: RowOutputs) -> RowArguments:
    """Arguments for the backward pass: the upstream gradient of each row's loss becomes its weight in a sum."""
    return a._replace(
        row_weight=upstream_weights(upstream.loss, a.row_weight),
        segment=None,
        num_segments=0,
        reduction="sum",
        extra_stats="",
    )


operator = Operator(
    "linear_cross_entropy",
    RowArguments,
    RowOutputs,
    run=_run,
    fake=_fake,
    head="spec.head",
    per_row=lambda a: a.reduction == "none",
    recompute=_recompute,
)
