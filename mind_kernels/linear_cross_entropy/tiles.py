"""Finds the entries of logits above a threshold in plain PyTorch, by the maxima of tiles: few tiles have such an
entry."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Vocabulary entries of a tile.
TILE = 64


def maxima(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum and argmax (n,) of each row, and the maximum of each tile (n, tiles), of z (n, V)."""
    tiles = tile_maxima(z)
    first = tiles.argmax(1, keepdim=True)  # argmax over all of z would not be vectorized
    columns = columns_of(first, z.shape[1])
    return tiles.amax(1), columns.gather(1, z.gather(1, columns).argmax(1, keepdim=True)).squeeze(1), tiles


def tile_maxima(z: Tensor) -> Tensor:
    """The maximum of each tile (n, tiles) of z (n, V)."""
    whole = z.shape[1] // TILE
    parts = [z[:, : whole * TILE].unflatten(1, (whole, TILE)).amax(-1)] if whole else []
    if whole * TILE < z.shape[1]:
        parts.append(z[:, whole * TILE :].amax(1, keepdim=True))
    return torch.cat(parts, 1)


def columns_of(tiles: Tensor, vocabulary: int) -> Tensor:
    """Vocabulary entries (m, TILE) of tiles (m, 1); beyond the end, the last entry is repeated."""
    return (tiles * TILE + torch.arange(TILE, device=tiles.device)).clamp_(max=vocabulary - 1)


class Found(NamedTuple):
    """Entries of rows of logits, row by row, in increasing column order."""

    row: Tensor  # (entries,) int64
    column: Tensor  # (entries,) int64
    z: Tensor  # (entries,)


def entries_above(z: Tensor, tiles: Tensor, cut: Tensor, target: Tensor, most: float = math.inf) -> Found | None:
    """The entries of z (n, V) above cut (n,), and the targets' (n,); a target of -1 has no entry.

    `tiles` is a result of `maxima`. Returns None if there are more than `most` entries per row on average.
    """
    mask, place = tiles > cut[:, None], target.clamp(min=0)[:, None] // TILE
    mask.scatter_(1, place, mask.gather(1, place) | (target >= 0)[:, None])
    row, tile = mask.nonzero(as_tuple=True)
    if len(row) / len(z) - 1 > most:  # the target may be in a tile without an entry above the cut
        return None
    columns = columns_of(tile[:, None], z.shape[1])
    of_tile = z[row[:, None], columns]
    keep = (of_tile > cut[row, None]) | (columns == target[row, None])
    keep[:, 1:] &= columns[:, 1:] != columns[:, :-1]  # removes repetitions of the last entry
    return Found(row[:, None].expand_as(keep)[keep], columns[keep], of_tile[keep])
