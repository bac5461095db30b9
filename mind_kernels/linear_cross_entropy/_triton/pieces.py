"""Finds the kept entries of linear cross-entropy in Triton after `stream`, a pass that stores no logits.

A piece is one row x one tile of TILE vocabulary entries. A piece is kept if its largest probability is above the
threshold, or if it has the target; so every kept entry is in a kept piece. The logits of these pieces are computed
again, as a product of gathered rows of hidden states and a tile of the weight. They are then read twice: to count the
kept entries, and to write them. Peak memory: 512 bytes per piece, and 8 bytes per kept entry. Arithmetic as in
`stream`. Deterministic.

Count for 505,000 pieces (2^-10 at N 16384, V 151936) and D 3584 in bfloat16: 0.46 TFLOP, 0.6 ms of products, and at
most 5,132 programs of 1.8 MB each, 9.4 GB through the L2 cache. Programs run tile after tile, so the weight is read
from device memory once, 1.1 GB, and the gathered rows are read, 3.6 GB minus those that are still in the cache from the
previous tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy._triton.stream import TILE, Streamed, load_block
from mind_kernels.linear_cross_entropy._triton.terms import (
    coefficients,
    entry_gradient,
    is_kept,
    load_normalizer,
    loss_arguments,
)
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowWeights
from mind_kernels.linear_cross_entropy.logits_rows import KeptEntries
from mind_kernels.sparse_gradient import offsets_of
from mind_kernels.triton_math import LOWEST, condition, conditions, exp, jit, row_pointer
from mind_kernels.triton_variant import DTYPES, Variant

# Launch of the kernels with a program per row, which reads 8 pieces at once.
_ROW_LAUNCH = {"TILE": TILE, "ENTRIES": 8 * TILE, "num_warps": 4}


def piece_tile(dtype: torch.dtype) -> dict[str, int]:
    """Tile, warps and stages of the gathered product."""
    if dtype == torch.float32:
        return {"PIECES": 64, "BLOCK_D": 16, "num_warps": 16, "num_stages": 3}
    return {"PIECES": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3}


@jit
def _piece_logits_kernel(
    hidden,  # (n, D)
    hidden_stride,
    weight,  # (V, D)
    weight_stride,
    bias,  # (V,) or None
    piece_rows,  # (m,)
    by_tile,  # (m,)
    tile_offsets,  # (tiles + 1,)
    block_offsets,  # (tiles + 1,)
    block_tiles,  # (blocks,)
    logits,  # (m, TILE)
    rows,
    size,
    vocabulary,
    tiles,
    softcap,
    temperature,
    HAS_SOFTCAP: tl.constexpr,
    TILE: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    block = tl.program_id(0)
    tile = tl.load(block_tiles + block)
    if tile == tiles:
        return
    part = block - tl.load(block_offsets + tile)
    position = tl.load(tile_offsets + tile) + part * PIECES + tl.arange(0, PIECES)
    listed = position < tl.load(tile_offsets + tile + 1)
    piece = tl.load(by_tile + position, mask=listed, other=0)
    row = tl.load(piece_rows + piece, mask=listed, other=rows)
    column = tile * TILE + tl.arange(0, TILE)
    x = tl.zeros((PIECES, TILE), tl.float32)
    for d in range(0, size, BLOCK_D):
        h = load_block(hidden, hidden_stride, row, rows, d, size, BLOCK_D)
        w = load_block(weight, weight_stride, column, vocabulary, d, size, BLOCK_D)
        x = tl.dot(h, w.T, x, input_precision="ieee")
    if bias is not None:
        x += tl.load(bias + column, mask=column < vocabulary, other=0.0).to(tl.float32)[None, :]
    z = condition(x, softcap, temperature, HAS_SOFTCAP)
    z = tl.where(column[None, :] < vocabulary, z, float("-inf"))
    out = row_pointer(logits, piece, TILE)[:, None] + tl.arange(0, TILE)[None, :]
    tl.store(out, z, mask=listed[:, None])


@jit
def _load_entries(logits, piece_tiles, start, stop, TILE: tl.constexpr, ENTRIES: tl.constexpr):
    """z and column of the next entries of a row, whose pieces are adjacent; LOWEST past its end."""
    entry = start + tl.arange(0, ENTRIES)
    z = tl.load(logits + entry, mask=entry < stop, other=LOWEST)
    tile = tl.load(piece_tiles + entry // TILE, mask=entry < stop, other=0)
    return z, tl.where(entry < stop, (tile * TILE + entry % TILE).to(tl.int32), -1)


@jit
def _piece_statistics_kernel(
    logits,  # (m, TILE)
    piece_tiles,  # (m,)
    piece_offsets,  # (n + 1,)
    target,  # (n,)
    normalizer,  # (4, n)
    kept,  # (n,)
    dropped_mass,  # (n,)
    log_threshold,
    TILE: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    r = tl.program_id(0)
    y = tl.load(target + r).to(tl.int32)
    maximum, log_total, others, lse_others = load_normalizer(normalizer, r, tl.num_programs(0))
    count = tl.zeros((ENTRIES,), tl.int32)
    mass = tl.zeros((ENTRIES,), tl.float32)  # without the target's
    stop = tl.load(piece_offsets + r + 1) * TILE
    for start in range(tl.load(piece_offsets + r) * TILE, stop, ENTRIES):
        z, column = _load_entries(logits, piece_tiles, start, stop, TILE, ENTRIES)
        keep = is_kept(z, column, y, lse_others, log_threshold)
        count += keep.to(tl.int32)
        mass += tl.where(keep & (column != y), exp((z - maximum) - log_total), 0.0)
    tl.store(kept + r, tl.sum(count, axis=0))
    dropped = others - tl.sum(mass, axis=0)
    tl.store(dropped_mass + r, tl.where(dropped < 0, 0.0, dropped))


@jit
def _piece_entries_kernel(
    logits,  # (m, TILE)
    piece_tiles,  # (m,)
    piece_offsets,  # (n + 1,)
    target,  # (n,)
    normalizer,  # (4, n)
    nll,  # (n,)
    entropy,  # (n,)
    scale,  # (n,)
    entropy_scale,  # (n,) or None
    offsets,  # (n + 1,)
    columns,  # (total,)
    values,  # (total,)
    kept_sum,  # (n,)
    softcap,
    temperature,
    label_smoothing,
    z_loss,
    log_threshold,
    HAS_SOFTCAP: tl.constexpr,
    TILE: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    r = tl.program_id(0)
    y = tl.load(target + r).to(tl.int32)
    maximum, log_total, others, lse_others = load_normalizer(normalizer, r, tl.num_programs(0))
    a, b, at_target = coefficients(
        scale,
        entropy_scale,
        tl.load(nll + r),
        log_total + maximum,
        tl.load(entropy + r),
        others,
        label_smoothing,
        z_loss,
    )
    base = tl.load(offsets + r)
    total = tl.zeros((ENTRIES,), tl.float32)
    stop = tl.load(piece_offsets + r + 1) * TILE
    for start in range(tl.load(piece_offsets + r) * TILE, stop, ENTRIES):
        z, column = _load_entries(logits, piece_tiles, start, stop, TILE, ENTRIES)
        keep = is_kept(z, column, y, lse_others, log_threshold)
        dz, dx = entry_gradient(
            z,
            column,
            y,
            maximum,
            log_total,
            a,
            b,
            at_target,
            softcap,
            temperature,
            entropy_scale is not None,
            HAS_SOFTCAP,
        )
        position = base + tl.cumsum(keep.to(tl.int32), axis=0) - 1
        tl.store(columns + position, column, mask=keep)
        tl.store(values + position, dx, mask=keep)
        total += tl.where(keep, dz, 0.0)
        base += tl.sum(keep.to(tl.int32), axis=0)
    tl.store(kept_sum + r, tl.sum(total, axis=0))


_TYPES = {
    "hidden_stride": "i32",
    "weight_stride": "i32",
    "piece_rows": "*i64",
    "by_tile": "*i64",
    "tile_offsets": "*i64",
    "block_offsets": "*i64",
    "block_tiles": "*i64",
    "logits": "*fp32",
    "rows": "i32",
    "size": "i32",
    "vocabulary": "i32",
    "tiles": "i32",
    "softcap": "fp32",
    "temperature": "fp32",
    "piece_tiles": "*i64",
    "piece_offsets": "*i64",
    "target": "*i64",
    "normalizer": "*fp32",
    "kept": "*i32",
    "dropped_mass": "*fp32",
    "log_threshold": "fp32",
    "nll": "*fp32",
    "entropy": "*fp32",
    "scale": "*fp32",
    "entropy_scale": "*fp32",
    "offsets": "*i64",
    "columns": "*i32",
    "values": "*fp32",
    "kept_sum": "*fp32",
    "label_smoothing": "fp32",
    "z_loss": "fp32",
}


def variants() -> list[Variant]:
    """The product for each dtype with softcap and bias, and for unaligned rows; the row kernels."""

    def product(label, dtype, unaligned=()):
        types = _TYPES | dict.fromkeys(("hidden", "weight", "bias"), f"*{DTYPES[dtype]}")
        launch = {"HAS_SOFTCAP": True, "TILE": TILE} | piece_tile(dtype)
        wide, unaligned = ("hidden", "weight", "logits"), ("rows", "vocabulary", "tiles", *unaligned)
        return Variant(f"piece logits {DTYPES[dtype]}, {label}", _piece_logits_kernel, types, launch, wide, unaligned)

    strides = ("hidden", "weight", "hidden_stride", "weight_stride", "size")
    entry_launch = {"HAS_SOFTCAP": True} | _ROW_LAUNCH
    return [
        *(product("all options", dtype) for dtype in DTYPES),
        product("unaligned", torch.float32, strides),
        Variant("piece statistics", _piece_statistics_kernel, _TYPES, _ROW_LAUNCH, ("logits",)),
        Variant("piece entries, all options", _piece_entries_kernel, _TYPES, entry_launch, ("logits",)),
    ]


@dataclass(frozen=True)
class Pieces:
    """The m kept pieces of n rows, row by row, and within a row by increasing tile."""

    rows: Tensor  # (m,) int64
    tiles: Tensor  # (m,) int64
    offsets: Tensor  # (n + 1,) int64, the position of each row's first piece
    by_tile: Tensor  # (m,) int64: the pieces tile by tile, within a tile by increasing row
    tile_offsets: Tensor  # (tiles + 1,) int64, the position of each tile's first piece


class PieceStatistics(NamedTuple):
    """The numbers of kept entries of n rows, and the probability of the others."""

    kept: Tensor  # (n,) int64, entries above the threshold, and the target's
    dropped_mass: Tensor  # (n,) float32, the probability of the other entries


def kept_pieces(
    streamed: Streamed,  # of n rows
    target: Tensor,  # (n,) int64, in [0, V)
    spec: RowSpec,
) -> Pieces:
    """The pieces that have a probability above the threshold, or the target. Waits for the device to get their
    number."""
    keep = streamed.tile_maxima > (streamed.normalizer[3] + spec.log_threshold)[:, None]  # lse_others
    keep.scatter_(1, target[:, None] // TILE, True)
    rows, tiles = keep.nonzero(as_tuple=True)
    return Pieces(rows, tiles, offsets_of(keep.sum(1)), tiles.argsort(stable=True), offsets_of(keep.sum(0)))


def piece_logits(
    hidden: Tensor,  # (n, D), stride(1) == 1
    head: Head,  # weight of stride(1) == 1
    pieces: Pieces,
) -> Tensor:
    """(m, TILE) float32: the conditioned logits of the kept pieces, -inf beyond the vocabulary.

    Sums over D have the order of `stream_statistics`, so that the same entries pass the threshold, up to rounding.
    """
    rows, size = hidden.shape
    tiles, count = pieces.tile_offsets.numel() - 1, pieces.rows.numel()
    launch = piece_tile(hidden.dtype)
    # A program computes up to PIECES pieces of one tile. The host knows only an upper bound of the number of programs.
    block_offsets = offsets_of(-(-pieces.tile_offsets.diff() // launch["PIECES"]))
    blocks = torch.arange(count // launch["PIECES"] + tiles, device=hidden.device)
    block_tiles = torch.searchsorted(block_offsets[1:], blocks, right=True)
    logits = hidden.new_empty(count, TILE, dtype=torch.float32)
    _piece_logits_kernel[(blocks.numel(),)](
        hidden,
        hidden.stride(0),
        head.weight,
        head.weight.stride(0),
        head.bias,
        pieces.rows,
        pieces.by_tile,
        pieces.tile_offsets,
        block_offsets,
        block_tiles,
        logits,
        rows,
        size,
        head.vocabulary,
        tiles,
        TILE=TILE,
        **conditions(head),
        **launch,
    )
    return logits


def piece_statistics(
    pieces: Pieces,
    logits: Tensor,  # (m, TILE) float32, of `piece_logits`
    target: Tensor,  # (n,) int64
    streamed: Streamed,
    spec: RowSpec,
) -> PieceStatistics:
    """The number of kept entries of each row, and the probability of the others."""
    rows = target.numel()
    kept, dropped_mass = logits.new_empty(rows, dtype=torch.int32), logits.new_empty(rows)
    _piece_statistics_kernel[(rows,)](
        logits,
        pieces.tiles,
        pieces.offsets,
        target,
        streamed.normalizer,
        kept,
        dropped_mass,
        log_threshold=spec.log_threshold,
        **_ROW_LAUNCH,
    )
    return PieceStatistics(kept.long(), dropped_mass)


def piece_entries(
    pieces: Pieces,
    logits: Tensor,  # (m, TILE) float32, of `piece_logits`
    target: Tensor,  # (n,) int64
    streamed: Streamed,
    weights: RowWeights,  # (n,) float32
    spec: RowSpec,
    offsets: Tensor,  # (n + 1,) int64, the exclusive prefix sum of `kept`
    total: int,
) -> KeptEntries:
    """The kept entries, in the form of `entries.entries`."""
    columns, values = logits.new_empty(total, dtype=torch.int32), logits.new_empty(total)
    kept_sum = torch.empty_like(streamed.values.entropy)
    _piece_entries_kernel[(target.numel(),)](
        logits,
        pieces.tiles,
        pieces.offsets,
        target,
        streamed.normalizer,
        streamed.values.nll,
        streamed.values.entropy,
        weights.loss,
        weights.entropy,
        offsets,
        columns,
        values,
        kept_sum,
        log_threshold=spec.log_threshold,
        **loss_arguments(spec),
        **_ROW_LAUNCH,
    )
    return KeptEntries(columns, values, kept_sum)
