"""Chunked linear cross-entropy in plain PyTorch, on any device.

Passes over a chunk of logits, block by block: softcap and temperature, maximum, exponential and sum, gradient in
place. Peak memory: one chunk of logits beside the gradients. Exact; logits in the input's dtype, everything after the
product in float32 (float64 for float64 input). Rows that are ignored never reach a product; rows of weight zero only
reach the logits product, for their statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mind_kernels.row_chunks import (
    Head,
    HeadGradients,
    Rows,
    accumulation_dtype,
    chunks,
    rows_per_block,
    rows_per_chunk,
)


@dataclass(frozen=True)
class RowTerms:
    """What the row kernel writes, one entry a row: (N,) tensors of the accumulation dtype (`correct`: bool)."""

    loss: Tensor  # (1 - smoothing) nll + smoothing (lse - mean z) + z_loss lse^2
    nll: Tensor
    lse: Tensor
    entropy: Tensor
    correct: Tensor

    @staticmethod
    def zeros(rows: int, like: Tensor) -> RowTerms:
        dtype = accumulation_dtype(like.dtype)
        numbers = [torch.zeros(rows, dtype=dtype, device=like.device) for _ in range(4)]
        return RowTerms(*numbers, torch.zeros(rows, dtype=torch.bool, device=like.device))

    def first(self, rows: int) -> RowTerms:
        return RowTerms(*(getattr(self, name)[:rows].clone() for name in self.__dataclass_fields__))

    def write(self, rows: Rows, values: tuple[Tensor, ...]) -> None:
        for name, value in zip(("loss", "nll", "lse", "entropy", "correct"), values, strict=True):
            getattr(self, name)[rows] = value


def row_kernel_(
    logits: Tensor,  # (n, V), projected; becomes the gradient where scale is given
    target: Tensor,  # (n,), in [0, V)
    scale: Tensor | None,  # (n,), d(total loss) / d(row loss)
    head: Head,
    label_smoothing: float,
    z_loss: float,
    conditioned: bool = False,
) -> tuple[Tensor, ...]:
    """The rows' loss, nll, lse, entropy and correct, (n,); `logits` becomes its own gradient, in place.

    `conditioned` logits have had softcap and temperature applied, and then the gradient is with respect to them.
    """
    out = []
    for block in chunks(logits.shape[0], rows_per_block(logits.shape[1], logits.device)):
        part = logits[block]
        z = part.to(accumulation_dtype(part.dtype))  # the same memory for float32 and float64
        if not conditioned:
            head.condition_(z)
        out.append(_block_(z, target[block], None if scale is None else scale[block], head,
                           label_smoothing, z_loss, conditioned))
        if scale is not None and z.data_ptr() != part.data_ptr():
            part.copy_(z)
    return tuple(torch.cat(column) for column in zip(*out, strict=True))


def _block_(
    z: Tensor, target: Tensor, scale: Tensor | None, head: Head, label_smoothing: float, z_loss: float,
    conditioned: bool,
) -> tuple[Tensor, ...]:
    slope = 1.0 if conditioned or scale is None else head.slope(z)
    maximum, argmax = z.max(dim=1)
    index = target[:, None]
    z.sub_(maximum[:, None])
    target_logit = z.gather(1, index).squeeze(1)
    mean_logit = z.mean(1) if label_smoothing else 0.0
    exponential = z.exp()
    total = exponential.sum(1)
    log_total = total.log()
    entropy = log_total - torch.linalg.vecdot(exponential, z) / total
    nll = log_total - target_logit
    lse = log_total + maximum
    loss = (1 - label_smoothing) * nll + label_smoothing * (log_total - mean_logit) + z_loss * lse.square()
    if scale is not None:
        torch.mul(exponential, (scale * (1 + 2 * z_loss * lse) / total)[:, None], out=z)
        z.scatter_add_(1, index, (scale * (label_smoothing - 1))[:, None])
        if label_smoothing:
            z.sub_((scale * (label_smoothing / z.shape[1]))[:, None])
        if isinstance(slope, Tensor) or slope != 1.0:
            z.mul_(slope)
    return loss, nll, lse, entropy, argmax == target


def run_rows(
    rows: Tensor | int,  # the rows to visit, or how many from the start
    hidden: Tensor,  # (N, D)
    head: Head,
    target: Tensor,  # (N,)
    scale: Tensor | None,  # (N,); None: statistics only
    terms: RowTerms,
    gradients: HeadGradients,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> None:
    """The chunk loop: fills `terms` for the rows and adds their gradient products."""
    size = rows_per_chunk(head.vocabulary, hidden.device, max(4, hidden.element_size()))
    for chunk in chunks(rows, size):
        part = hidden[chunk]
        logits = head.project(part)
        part_scale = scale[chunk] if scale is not None and gradients.wanted else None
        terms.write(chunk, row_kernel_(logits, target[chunk], part_scale, head, label_smoothing, z_loss))
        if part_scale is not None:
            gradients.add(chunk, part, logits)


def split_rows(valid: Tensor, scale: Tensor) -> tuple[Tensor | int, Tensor | int]:
    """(rows with a gradient, rows with statistics alone), as index lists, or as a count where that is every row.

    A row of weight zero needs no gradient product. To know them costs a synchronisation, so this is done only for
    weights on the CPU; on a GPU every valid row is a gradient row, and only a `valid` mask on the host is free.
    """
    with_gradient = valid & (scale != 0).to(valid.device) if scale.device.type == "cpu" else valid
    if bool(with_gradient.all()):
        return valid.numel(), 0
    index = with_gradient.nonzero().squeeze(1).to(scale.device)
    return index, (valid & ~with_gradient).nonzero().squeeze(1).to(scale.device)


def forward(
    hidden: Tensor,  # (N, D)
    head: Head,
    target: Tensor,  # (N,), on the CPU or where hidden is
    row_weight: Tensor | None,  # (N,)
    needs: list[bool],
    *,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
) -> tuple[Tensor, RowTerms, HeadGradients]:
    """The loss, () or (N,) for reduction "none", the rows' terms, and the gradients that are needed."""
    terms = RowTerms.zeros(hidden.shape[0], hidden)
    valid = target != ignore_index
    device_valid = valid.to(hidden.device)
    weight = device_valid.to(terms.loss.dtype)
    if row_weight is not None:
        weight = torch.where(device_valid, row_weight.to(weight.dtype), 0)
    scale = weight / weight.sum() if reduction == "mean" else weight
    gradients = HeadGradients(hidden, head, needs)
    index = target.to(hidden.device)
    extra = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    with_gradient, others = split_rows(valid, weight)
    run_rows(with_gradient, hidden, head, index, scale, terms, gradients, **extra)
    run_rows(others, hidden, head, index, None, terms, gradients, **extra)
    rows = torch.where(weight == 0, 0, weight * terms.loss)
    if reduction == "none":
        return rows, terms, gradients
    return (rows.sum() / weight.sum() if reduction == "mean" else rows.sum()), terms, gradients
