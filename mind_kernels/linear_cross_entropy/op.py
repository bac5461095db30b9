"""linear_cross_entropy: public function, custom operator, fake kernel and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mind_kernels import backend as backends
from mind_kernels import checks
from mind_kernels.autograd import (
    empty_gradients,
    forbid_higher_order,
    needs_gradient,
    save_gradients,
    scaled_gradients,
    under_autocast,
)
from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy import reference, rows
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowStats
from mind_kernels.row_chunks import accumulation_dtype, row_major

BACKENDS = ("torch", "cpp", "triton", "triton_streaming", "cuda")  # backend_<name>.py each


def segment_means(nll: Tensor, valid: Tensor, segment: Tensor | None, num_segments: int) -> tuple[Tensor, Tensor]:
    """Mean nll (S,) and count (S,) int64 of the valid rows of each segment; empty tensors without segments."""
    if segment is None:
        return nll.new_empty(0), nll.new_empty(0, dtype=torch.int64)
    segment, valid = segment.to(nll.device), valid.to(nll.device)
    total = nll.new_zeros(num_segments).index_add_(0, segment, nll)
    count = torch.zeros(num_segments, dtype=torch.int64, device=nll.device).index_add_(0, segment, valid.long())
    return total / count, count


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
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
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, RowStats]:
    """Cross-entropy of softmax(z), z = softcap(hidden weight^T + bias) / temperature, without the N x V logits.

    Args:
        hidden: (N, D) float64, float32, bfloat16 or float16. Takes a gradient.
        weight: (V, D) LM head, dtype and device of hidden. Takes a gradient.
        target: (N,) int64 in [0, V) or `ignore_index`; may stay on the CPU, which spares a GPU one synchronisation.
        row_weight: (N,) floating, any sign, a constant: weight of each row (alpha_k / tokens and the like). A row of
            weight zero still yields its statistics.
        segment: (N,) int64 in [0, num_segments): the group of rows (a rationale) whose mean nll the statistics hold.
        bias: (V,) added to the logits. Takes a gradient.
        reduction: "mean": sum of weighted row losses / sum of weights over rows that are not ignored (nan where there
            is none, as torch.nn.functional.cross_entropy); "sum"; "none": (N,) weighted row losses, zero where ignored.
        label_smoothing: epsilon in [0, 1]: (1 - eps) nll + eps mean_v(-log p_v).
        z_loss: adds z_loss * lse^2 to each row's loss.
        softcap: c > 0: z becomes c tanh(z / c), before the temperature.
        gradient_threshold: None: the exact gradient. A probability in (0, 1), such as 2**-12: the sparse gradient.
            The loss and the statistics stay exact; of the gradient of the logits, entries with a probability up to
            the threshold are replaced by a background distribution with the same sum. Rows where that would be
            slower or too rough take the exact gradient; RowStats.dropped_mass and .kept report it.
        return_stats: also return RowStats.
        backend: "auto" or a name that `mind_kernels.available_backends` lists.

    Returns:
        The loss in float32 (float64 for float64 input), or (loss, RowStats).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or range; it is named. On a GPU a target
            or segment out of range is a device-side assertion, since reading it would stall the stream.
        RuntimeError: a higher-order gradient through any backend but "reference".
    """
    hidden, weight, bias = under_autocast(hidden, weight, bias)
    checks.head_arguments(hidden, weight, bias, softcap, temperature)
    checks.row_arguments(hidden, target, row_weight, segment, num_segments)
    checks.reduction(reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}: expected a number in [0, 1]")
    checks.probability("gradient_threshold", gradient_threshold)
    name = backends.resolve(backend, hidden, BACKENDS)
    shared = (
        hidden,
        weight,
        bias,
        target,
        row_weight,
        None,
        segment,
        num_segments or 0,
        softcap,
        float(temperature),
        ignore_index,
        reduction,
        float(label_smoothing),
        float(z_loss),
        gradient_threshold,
    )
    if name == "reference":
        outputs = run_reference(*shared)
    else:
        needs = [False] * 3 if reduction == "none" else needs_gradient(hidden, weight, bias)
        outputs = run_backend(*shared, needs, name)
    loss, nll, lse, entropy, correct, dropped_mass, kept, segment_nll, segment_count = outputs[:9]
    if not return_stats:
        return loss
    segments = (None, None) if segment is None else (segment_nll, segment_count)
    sparse = (None, None) if gradient_threshold is None else (dropped_mass, kept)
    return loss, RowStats(nll, lse, entropy, correct, *segments, *sparse)


def run_reference(
    hidden,
    weight,
    bias,
    target,
    row_weight,
    entropy_weight,
    segment,
    num_segments,
    softcap,
    temperature,
    ignore_index,
    reduction,
    label_smoothing,
    z_loss,
    gradient_threshold,
):
    """The outputs of `run_backend` but the gradients, differentiable."""
    checks.row_values(target, ignore_index, weight.shape[0], segment, num_segments)
    target = target.to(hidden.device)
    spec = RowSpec(Head(weight, bias, softcap, temperature), label_smoothing, z_loss, gradient_threshold)
    loss, terms = reference.forward(
        hidden, target, row_weight, entropy_weight, spec, ignore_index=ignore_index, reduction=reduction
    )
    statistics = [terms[name].detach() for name in ("nll", "lse", "entropy", "correct", "dropped_mass", "kept")]
    return loss, *statistics, *segment_means(statistics[0], target != ignore_index, segment, num_segments)


@torch.library.custom_op("mind_kernels::linear_cross_entropy", mutates_args=())
def run_backend(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    row_weight: Tensor | None,
    entropy_weight: Tensor | None,
    segment: Tensor | None,
    num_segments: int,
    softcap: float | None,
    temperature: float,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    gradient_threshold: float | None,
    needs: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, nll, lse, entropy, correct, dropped_mass, kept, segment_nll, segment_count, d_hidden, d_weight, d_bias)

    The loss has sum_r entropy_weight[r] entropy[r] added, a term that only other operations use.
    """
    checks.row_values(target, ignore_index, weight.shape[0], segment, num_segments)
    hidden, weight, bias = row_major(hidden), row_major(weight), None if bias is None else bias.contiguous()
    spec = RowSpec(Head(weight, bias, softcap, temperature), label_smoothing, z_loss, gradient_threshold)
    with torch.autocast(hidden.device.type, enabled=False), torch.cuda.device_of(hidden):  # Triton launches there
        loss, terms, gradients = rows.forward(
            backends.kernels("linear_cross_entropy", backend),
            hidden,
            target,
            row_weight,
            entropy_weight,
            spec,
            needs,
            ignore_index=ignore_index,
            reduction=reduction,
        )
    _, nll, lse, entropy, correct = terms.values
    segments = segment_means(nll, target != ignore_index, segment, num_segments)
    return loss, nll, lse, entropy, correct, terms.dropped_mass, terms.kept, *segments, *gradients.results()


@run_backend.register_fake
def _(
    hidden,
    weight,
    bias,
    target,
    row_weight,
    entropy_weight,
    segment,
    num_segments,
    softcap,
    temperature,
    ignore_index,
    reduction,
    label_smoothing,
    z_loss,
    gradient_threshold,
    needs,
    backend,
):
    count, dtype = hidden.shape[0], accumulation_dtype(hidden.dtype)
    segments = 0 if segment is None else num_segments
    sparse = 0 if gradient_threshold is None else count
    terms = [hidden.new_empty(count, dtype=dtype) for _ in range(3)]
    return (
        hidden.new_empty((count,) if reduction == "none" else (), dtype=dtype),
        *terms,
        hidden.new_empty(count, dtype=torch.bool),
        hidden.new_empty(sparse, dtype=dtype),
        hidden.new_empty(sparse, dtype=torch.int64),
        hidden.new_empty(segments, dtype=dtype),
        hidden.new_empty(segments, dtype=torch.int64),
        *empty_gradients((hidden, weight, bias), needs),
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.reduction, ctx.needs = inputs[11], inputs[15]
    if ctx.reduction != "none":
        save_gradients(ctx, output[0], output[1:9], output[9:])
        return
    # The weights of the rows are known only in the backward pass: keep the inputs and recompute there.
    hidden, weight, bias, target, row_weight = inputs[:5]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, bias, target, row_weight)
    ctx.options = inputs[8:]


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple:
    if ctx.reduction != "none":
        return (*scaled_gradients(ctx, upstream), *[None] * 14)
    forbid_higher_order()
    needs = list(ctx.needs_input_grad[:3])
    if upstream is None:
        return (None,) * 17
    hidden, weight, bias, target, row_weight = ctx.saved_tensors
    softcap, temperature, ignore_index, _, *loss, _, backend = ctx.options
    scale = upstream.contiguous() if row_weight is None else upstream * row_weight.to(upstream.dtype)
    gradients = run_backend(
        hidden,
        weight,
        bias,
        target,
        scale,
        None,
        None,
        0,
        softcap,
        temperature,
        ignore_index,
        "sum",
        *loss,
        needs,
        backend,
    )[9:]
    return (*(g if needed else None for g, needed in zip(gradients, needs, strict=True)), *[None] * 14)


run_backend.register_autograd(_backward, setup_context=_setup_context)
