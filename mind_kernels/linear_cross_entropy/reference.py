"""The definition of linear cross-entropy: plain PyTorch, unchunked, differentiable any number of times.

Allocates N x V. Exact in the dtype of its input (float64 in, float64 throughout); half-precision logits are widened to
float32 after the product. With a gradient threshold it defines the sparse gradient, of which there is no second.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mind_kernels.linear_cross_entropy.contract import RowSpec
from mind_kernels.row_chunks import reduced
from mind_kernels.sparse_gradient import SAMPLE_ROWS


def row_terms(logits: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Per-row nll, lse, entropy and correct, (N,); zero (False) in rows that are not `valid`."""
    lse = torch.logsumexp(logits, dim=-1)
    index = torch.where(valid, target, 0)
    nll = lse - logits.gather(-1, index[:, None]).squeeze(-1)
    entropy = lse - (torch.softmax(logits, dim=-1) * logits).sum(-1)
    correct = (logits.argmax(-1) == index) & valid
    return {
        "nll": torch.where(valid, nll, 0),
        "lse": torch.where(valid, lse, 0),
        "entropy": torch.where(valid, entropy, 0),
        "correct": correct,
    }


def forward(
    hidden: Tensor,  # (N, D)
    target: Tensor,  # (N,)
    row_weight: Tensor | None,  # (N,)
    entropy_weight: Tensor | None,  # (N,)
    spec: RowSpec,
    *,
    ignore_index: int,
    reduction: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, () or (N,) for reduction "none", and the rows' terms."""
    projected = spec.head.projected(hidden)
    logits = exact = spec.head.condition(projected)
    valid = target != ignore_index
    weight = valid.to(logits.dtype) if row_weight is None else torch.where(valid, row_weight.to(logits.dtype), 0)
    if entropy_weight is not None:
        entropy_weight = torch.where(valid, entropy_weight.to(logits.dtype), 0)
    sparse = {"dropped_mass": logits.new_empty(0), "kept": target.new_empty(0)}
    if spec.gradient_threshold is not None:
        magnitude = weight.abs() if entropy_weight is None else weight.abs() + entropy_weight.abs()
        logits, sparse = _sparsify(projected, logits, spec, target, valid, magnitude)
    terms = row_terms(logits, target, valid) | sparse
    # The uniform part of the gradient stays exact.
    uniform = torch.where(valid, torch.logsumexp(logits, dim=-1) - exact.mean(-1), 0)
    rows = (1 - spec.label_smoothing) * terms["nll"] + spec.label_smoothing * uniform
    rows = weight * (rows + spec.z_loss * terms["lse"].square())
    if entropy_weight is not None:
        rows = rows + entropy_weight * terms["entropy"]
    return reduced(rows, weight, reduction), terms


def _sparsify(
    projected: Tensor, logits: Tensor, spec: RowSpec, target: Tensor, valid: Tensor, magnitude: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits (N, V) with the sparse gradient behind them, and the rows' dropped_mass and kept, (N,)."""
    with torch.no_grad():
        log_p = torch.log_softmax(logits, -1)
        keep = (log_p > math.log(spec.gradient_threshold)).scatter_(1, torch.where(valid, target, 0)[:, None], True)
        dropped = torch.where(keep, 0, log_p.exp())
        mass = dropped.sum(-1)
        # A GPU never learns which weights are zero: see rows.split_rows.
        rows = (valid & (magnitude != 0) if logits.device.type == "cpu" else valid).nonzero().squeeze(1)
        sample = rows[:: max(1, len(rows) // SAMPLE_ROWS)]
        total = magnitude[sample] @ mass[sample]
        background = magnitude[sample] @ (dropped * spec.head.slope(logits))[sample]
        background = torch.where(total > 0, background / total, 0)
        terms = {"dropped_mass": torch.where(valid, mass, 0), "kept": torch.where(valid, keep.sum(-1), 0)}
    return _ReplaceDropped.apply(logits, projected, keep, background), terms


class _ReplaceDropped(torch.autograd.Function):
    """Identity of the logits z. Backward, their gradient goes to kept entries; its sum over the dropped ones of a row,
    times the background distribution, goes to the projected logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, projected: Tensor, keep: Tensor, background: Tensor) -> Tensor:
        ctx.save_for_backward(keep, background)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        keep, background = ctx.saved_tensors
        residual = torch.where(keep, 0, gradient).sum(-1)
        return torch.where(keep, gradient, 0), residual[:, None] * background, None, None
