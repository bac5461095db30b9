"""linear_cross_entropy: the public function and its operator."""

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
from mind_kernels.shards import Shard

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
        hidden: (N, D) float64, float32, bfloat16 or float16: hidden states of the labeled rows. Takes a gradient. Or
            (..., D): then all that is (N,) below has the shape (...) of its rows.
        weight: (V, D) LM head, dtype and device of hidden; or a Head, which has bias, softcap and temperature too.
            Takes a gradient.
        target: (N,) int64 or int32 in [0, V) or `ignore_index`; may stay on the CPU, which spares a GPU one
            synchronization.
        row_weight: (N,) floating, any sign, a constant: weight of each row (alpha_k / tokens and the like). None: 1
            each. A row of weight zero still yields its statistics.
        segment: (N,) int64 or int32 in [0, num_segments): the group of rows (a rationale) whose mean nll the statistics
            hold; may stay on the CPU.
        num_segments: S > 0, the number of segments; given with `segment`, and only then.
        bias: (V,), dtype and device of hidden: added to the projected logits; -inf rules an entry out. Takes a
            gradient.
        ignore_index: the target of rows that have no loss, no gradient and zeros as statistics; may lie in [0, V).
        reduction: "mean": sum of weighted row losses / sum of weights over rows that are not ignored (nan where there
            is none, as torch.nn.functional.cross_entropy); "sum"; "none": (N,) weighted row losses, zero where ignored.
        label_smoothing: epsilon in [0, 1]: (1 - eps) nll + eps mean_v(-log p_v).
        z_loss: adds z_loss * lse^2 to each row's loss, lse in nats.
        softcap: c > 0: x = hidden weight^T + bias becomes c tanh(x / c), before the temperature. None: x stays.
        temperature: T > 0: what the logits are divided by.
        gradient_threshold: None: the exact gradient. A share t in (0, 1), such as 2**-16 (on a GPU 2**-12), or
            what `threshold_for_error` gives for the error that you accept: the sparse gradient. The loss and the
            statistics stay exact; of the gradient of the logits, entries with a probability up to t (1 - p),
            where p is that of the target, are replaced by a background distribution with the same sum. 1 - p is the
            size of the row's gradient, so at most 1 / t entries are kept beside the target, and the error is small
            beside the gradient of every row, however confident. Rows where this would be slower or too rough take the
            exact gradient; RowStats.dropped_mass and .kept_entries report it.
        gradient_error: None, or instead of a threshold the error that the gradient of the whole batch may have, a
            number in (0, 1): |found - exact| / |exact| in the Frobenius norm, of the gradient of the hidden states and
            of the weight's. 3e-5 is about what float32 itself costs in eager PyTorch. Left out is what is small beside
            the gradient of all rows, weights included; a row whose own gradient is small beside the others' may lose
            all but its target. The relation to the error was measured on a trained model's rows; it is no bound.
            Backends "cpp" and "reference" alone have it (in float64 the latter), for reduction "mean" and "sum", and
            not with label smoothing under a softcap, nor with a process_group. RowStats.dropped_mass and .kept_entries
            are 0 in rows without a gradient, all rows if nothing takes one.
        return_stats: also return RowStats.
        extra_stats: names of statistics that RowStats hold on demand: "mean_logit", "log_sum_sq", "predicted". They
            are read from a chunk of logits, which costs some passes over it.
        process_group: the processes among which the head's rows are split, in rank order (tensor parallelism): weight
            is (V_r, D) and bias (V_r,) then, this process's rows, of which there may be none, and V in all that is said
            here is the sum of the V_r. All else is the same in all processes, and so are loss and statistics; the
            gradients of weight and bias are those of this process's rows, that of hidden is the whole one. None: the
            head is whole, or weight and hidden are DTensors, the weight Shard(0) over one mesh dimension: the loss is
            a plain tensor then, the same in all processes of that dimension. Without gradient_error.
        backend: "auto" or a name that `mind_kernels.backends` lists.

    Returns:
        The loss in nats, () or (N,) for reduction "none", in float32 (float64 for float64 input), or (loss, RowStats).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or range, or a constant that requires a
            gradient; it is named, and with process_group in all processes. On a GPU a target or segment out of range is
            a device-side assertion, since reading it would stall the stream.
        BackendUnavailableError: the backend that was named cannot run here; the message says why.
        RuntimeError: a higher-order gradient, a forward-mode derivative or a transform of torch.func (grad, vmap, ...)
            through any backend but "reference".

    Source:
        mind_kernels/linear_cross_entropy/README.md derives the gradient, and the sparse one.
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
    name = backends.resolve(backend, hidden, ROW_KERNELS[group is not None], head.vocabulary, form)
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
    """The shard of this process, if the head is split; checks that all processes were called alike."""
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
    """By the definition, differentiable."""
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
        backends.kernels(ROW_KERNELS[shard is not None], a.backend),
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
    """The gradient that arrives at a row's loss is its weight in a sum."""
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
