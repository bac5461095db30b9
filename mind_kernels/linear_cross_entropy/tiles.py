"""Maxima of rows of logits in plain PyTorch, tile by tile: few tiles hold an entry above a threshold."""

from __future__ import annotations

import torch
from torch import Tensor

# Vocabulary entries of a tile.
TILE = 64


def maxima(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum and argmax (n,) of each row, and the maximum of each tile (n, tiles), of z (n, V)."""
    whole = z.shape[1] // TILE
    parts = [z[:, : whole * TILE].unflatten(1, (whole, TILE)).amax(-1)] if whole else []
    if whole * TILE < z.shape[1]:
        parts.append(z[:, whole * TILE :].amax(1, keepdim=True))
    tiles = torch.cat(parts, 1)
    first = tiles.argmax(1, keepdim=True)  # argmax over all of z would not be vectorized
    columns = columns_of(first, z.shape[1])
    return tiles.amax(1), columns.gather(1, z.gather(1, columns).argmax(1, keepdim=True)).squeeze(1), tiles


def columns_of(tiles: Tensor, vocabulary: int) -> Tensor:
    """Vocabulary entries (m, TILE) of tiles (m, 1); beyond the end the last one again."""
    return (tiles * TILE + torch.arange(TILE, device=tiles.device)).clamp_(max=vocabulary - 1)
