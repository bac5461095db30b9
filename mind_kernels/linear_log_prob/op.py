"""linear_log_prob: public function, custom operator, fake kernel and autograd.

The rows of linear_cross_entropy with two upstream gradients a row: d(loss) / d(log_prob) is a row weight of -nll, and
d(loss) / d(entropy) the weight of the entropy in the same row kernel. Both are known in the backward pass only, which
projects the logits again: four products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mind_kernels import backend as backends
from mind_kernels import checks
from mind_kernels.autograd import forbid_higher_order, under_autocast
from mind_kernels.linear_cross_entropy.contract import RowStats
from mind_kernels.linear_cross_entropy.op import BACKENDS, run_backend
from mind_kernels.linear_log_prob import reference
from mind_kernels.row_chunks import accumulation_dtype


class RowLogProbs(NamedTuple):
    """Both (N,), differentiable, float32 (float64 for float64 input), zero in ignored rows."""

    log_prob: Tensor
    """log softmax(z)[target], in nats."""
    entropy: Tensor
    """Entropy of softmax(z), in nats."""


def linear_log_prob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float = 1.0,
    gradient_threshold: float | None = None,
    return_stats: bool = False,
    backend: str = "auto",
) -> RowLogProbs | tuple[RowLogProbs, RowStats]:
    """Log-probability of each target and entropy of each softmax(z), z = softcap(hidden weight^T + bias) / temperature.

    For losses that weigh rows by what only the caller knows (REDI, DPO, GRPO, unlikelihood): any function of the two
    may follow, each row has its own upstream gradient, and the N x V logits are never held.

    Args:
        hidden: (N, D) float64, float32, bfloat16 or float16. Takes a gradient.
        weight: (V, D) LM head, dtype and device of hidden. Takes a gradient.
        target: (N,) int64 in [0, V) or `ignore_index`.
        bias: (V,) added to the logits. Takes a gradient.
        softcap, temperature, gradient_threshold, backend: as in `linear_cross_entropy`.
        return_stats: also return RowStats, without segments.

    Returns:
        RowLogProbs, or (RowLogProbs, RowStats).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or range; it is named.
        RuntimeError: a higher-order gradient through any backend but "reference".
    """
    hidden, weight, bias = under_autocast(hidden, weight, bias)
    checks.head_arguments(hidden, weight, bias, softcap, temperature)
    checks.row_arguments(hidden, target, None, None, None)
    checks.probability("gradient_threshold", gradient_threshold)
    name = backends.resolve(backend, hidden, BACKENDS)
    options = (hidden, weight, bias, target, ignore_index, softcap, float(temperature), gradient_threshold)
    log_prob, entropy, lse, correct, dropped_mass, kept = (
        reference.forward(*options) if name == "reference" else _forward(*options, name)
    )
    rows = RowLogProbs(log_prob, entropy)
    if not return_stats:
        return rows
    sparse = (None, None) if gradient_threshold is None else (dropped_mass, kept)
    return rows, RowStats(-log_prob.detach(), lse, entropy.detach(), correct, None, None, *sparse)


@torch.library.custom_op("mind_kernels::linear_log_prob", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    softcap: float | None,
    temperature: float,
    gradient_threshold: float | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(log_prob, entropy, lse, correct, dropped_mass, kept)"""
    _, nll, lse, entropy, correct, dropped_mass, kept = run_backend(
        hidden,
        weight,
        bias,
        target,
        None,
        None,
        None,
        0,
        softcap,
        temperature,
        ignore_index,
        "none",
        0.0,
        0.0,
        gradient_threshold,
        [False] * 3,
        backend,
    )[:7]
    return -nll, entropy, lse, correct, dropped_mass, kept


@_forward.register_fake
def _(hidden, weight, bias, target, ignore_index, softcap, temperature, gradient_threshold, backend):
    rows, dtype = hidden.shape[0], accumulation_dtype(hidden.dtype)
    sparse = 0 if gradient_threshold is None else rows
    return (
        *(hidden.new_empty(rows, dtype=dtype) for _ in range(3)),
        hidden.new_empty(rows, dtype=torch.bool),
        hidden.new_empty(sparse, dtype=dtype),
        hidden.new_empty(sparse, dtype=torch.int64),
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _backward(ctx: Any, d_log_prob: Tensor | None, d_entropy: Tensor | None, *_: Any) -> tuple:
    forbid_higher_order()
    if d_log_prob is None and d_entropy is None:
        return (None,) * 9
    hidden, weight, bias, target = ctx.saved_tensors
    ignore_index, softcap, temperature, gradient_threshold, backend = ctx.options
    needs = list(ctx.needs_input_grad[:3])
    row_weight = torch.zeros_like(d_entropy) if d_log_prob is None else -d_log_prob
    gradients = run_backend(
        hidden,
        weight,
        bias,
        target,
        row_weight,
        d_entropy,
        None,
        0,
        softcap,
        temperature,
        ignore_index,
        "sum",
        0.0,
        0.0,
        gradient_threshold,
        needs,
        backend,
    )[9:]
    return (*(g if needed else None for g, needed in zip(gradients, needs, strict=True)), *[None] * 6)


_forward.register_autograd(_backward, setup_context=_setup_context)
