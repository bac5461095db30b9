"""The definition of linear cross-entropy: plain PyTorch, unchunked, differentiable any number of times.

Allocates N x V. Exact in the dtype of its input (float64 in, float64 throughout); half-precision logits are widened to
float32 after the product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels.row_chunks import Head


def row_terms(logits: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Per-row nll, lse, entropy and correct, (N,); zero (False) in rows that are not `valid`."""
    lse = torch.logsumexp(logits, dim=-1)
    index = torch.where(valid, target, 0)
    nll = lse - logits.gather(-1, index[:, None]).squeeze(-1)
    entropy = lse - (torch.softmax(logits, dim=-1) * logits).sum(-1)
    correct = (logits.argmax(-1) == index) & valid
    return {"nll": torch.where(valid, nll, 0), "lse": torch.where(valid, lse, 0),
            "entropy": torch.where(valid, entropy, 0), "correct": correct}


def forward(
    hidden: Tensor,  # (N, D)
    head: Head,
    target: Tensor,  # (N,)
    row_weight: Tensor | None,  # (N,)
    *,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, () or (N,) for reduction "none", and the rows' terms."""
    logits = head.logits(hidden)
    valid = target != ignore_index
    terms = row_terms(logits, target, valid)
    uniform = torch.where(valid, torch.logsumexp(logits, dim=-1) - logits.mean(-1), 0)
    weight = valid.to(logits.dtype) if row_weight is None else torch.where(valid, row_weight.to(logits.dtype), 0)
    rows = (1 - label_smoothing) * terms["nll"] + label_smoothing * uniform + z_loss * terms["lse"].square()
    rows = weight * rows
    if reduction == "none":
        return rows, terms
    return rows.sum() / weight.sum() if reduction == "mean" else rows.sum(), terms
