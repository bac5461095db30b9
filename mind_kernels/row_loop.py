"""The loop over chunks of rows that several operations share; each supplies the kernel that computes a chunk.

Rows with a weight get a gradient: logits of a chunk (product 1), a kernel that turns them into their own gradient, then
dH (product 2) and dW (product 3). Rows of weight zero are part of the logits product only, for their statistics. Rows
that are not valid are skipped. Peak memory: one chunk of logits in addition to the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from mind_kernels.head import HeadGradients, Scalable
from mind_kernels.row_chunks import Rows, chunks, has_gradient, reduced, scale_of_rows, selects_by_weight, write_rows


class RowWise(Scalable, Protocol):
    """Weights of rows, one tensor (N,) or several of them."""

    def __getitem__(self, rows: Any, /) -> Any: ...


W = TypeVar("W", bound=RowWise)

ChunkKernel = Callable[[Rows, Tensor, W | None], tuple[Sequence[Tensor], Tensor | None]]
"""kernel(rows, hidden (n, D), their weights) -> (values (n,) of the rows, gradient of their projected logits (n, V)).
Without weights there is no gradient."""


def run_rows(
    rows: Tensor | int,  # the rows to visit, or how many from the start
    size: int,  # rows per chunk
    hidden: Tensor,  # (N, D)
    weights: W | None,  # of all N rows; None: statistics only
    kernel: ChunkKernel[W],
    values: Sequence[Tensor],  # (N,) each
    gradients: HeadGradients,
) -> None:
    """Fills `values` for the rows, and adds their gradient products if any gradient is wanted."""
    for chunk in chunks(rows, size):
        part = hidden[chunk]
        found, dlogits = kernel(chunk, part, None if weights is None else weights[chunk])
        write_rows(values, chunk, found)
        if dlogits is not None:
            gradients.add(chunk, part, dlogits)
        del dlogits  # else this chunk's logits would exist beside the next one's


def loss_of_rows(
    valid: Tensor | None,  # (N,) bool, where hidden is or on the host; None: all
    weight: Tensor,  # (N,), zero where not valid
    reduction: str,
    losses: Tensor,  # (N,), without weight
    gradients: HeadGradients,
    run: Callable[[Tensor | int, Tensor | None], None],
    *,
    z_loss: float = 0.0,
) -> Tensor:
    """The loss, () or (N,) for reduction "none".

    `run(rows, scale)` fills `losses` for the rows and adds their gradients, given d(loss) / d(losses) = scale (N,). If
    scale is None, it adds no gradients.
    """
    scale = scale_of_rows(weight, reduction)
    gradients.choose_unit(scale, z_loss=z_loss)
    visit_rows(valid, weight != 0, scale, gradients, run)
    return reduced(losses, scale, reduction)


def visit_rows(
    valid: Tensor | None,  # (N,) bool, where hidden is or on the host; None: all
    has_weight: Tensor,  # (N,) bool, where hidden is
    weights: W,
    gradients: HeadGradients,
    run: Callable[[Tensor | int, W | None], None],
) -> None:
    """Calls `run(rows, weights)` for the valid rows with a gradient, and then for those without: `run(rows, None)`.

    It first chooses the unit of the gradients, and passes weights in that unit."""
    with_gradient, others = split_rows(valid, has_weight)
    run(with_gradient, gradients.in_unit(weights) if gradients.wanted else None)
    run(others, None)


def split_rows(
    valid: Tensor | None,  # (N,) bool, where hidden is or on the host; None: all
    has_weight: Tensor,  # (N,) bool, where hidden is
) -> tuple[Tensor | int, Tensor | int]:
    """(valid rows with a gradient, valid rows without), as index lists, or as a count if that is every row.

    On a GPU this waits for the stream unless `valid` is on the host.
    """
    device, every = has_weight.device, has_weight.numel()
    if valid is None:
        if not selects_by_weight(device):
            return every, 0
        valid = torch.ones_like(has_weight)
    mask = has_gradient(valid, has_weight)
    if bool(mask.all()):
        return every, 0
    return mask.nonzero().squeeze(1).to(device), (valid & ~mask).nonzero().squeeze(1).to(device)
