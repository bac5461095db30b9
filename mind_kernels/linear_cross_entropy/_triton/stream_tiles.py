"""Tile, warps and stages of the kernel in stream.py: the default per GPU, and what `tune` may put in its place.

Candidates are chosen by registers and occupancy as compiled (bench/results/kernel_resources.jsonl): none spills, but
for 8 to 16 bytes per thread on sm_80. Either a multiprocessor runs one large program, which reads each operand least
often, or two smaller ones, of which one computes products while the other is at its softmax.
"""

from __future__ import annotations

import functools
from typing import TypedDict

import torch

from mind_kernels import tuning

_Sizes = tuple[int, int, int, int, int]  # BLOCK_N, BLOCK_V, BLOCK_D, warps, stages

_BY_TMA: dict[tuple[int, bool], tuple[_Sizes, ...]] = {
    # (architecture, biased): a bias takes the last registers.
    (9, False): ((128, 256, 64, 8, 4), (128, 256, 128, 8, 2), (128, 128, 64, 4, 3), (64, 128, 64, 4, 4)),
    (9, True): ((128, 128, 64, 8, 4), (128, 128, 128, 8, 3), (64, 256, 64, 8, 4), (64, 128, 64, 4, 4)),
    (10, False): ((128, 128, 64, 8, 4), (128, 128, 128, 8, 3), (64, 128, 64, 4, 4)),
    (10, True): ((128, 128, 64, 8, 4), (128, 128, 128, 8, 3)),
}
_BY_ADDRESS = {
    # float32, or 16 bits and aligned; a bias changes nothing.
    "float32": ((64, 128, 32, 8, 2),),
    "16 bits": ((128, 128, 32, 8, 4), (128, 128, 64, 8, 3), (64, 256, 32, 8, 4)),
    "16 bits, not aligned": ((64, 128, 32, 8, 4),),
}


class _Launch(TypedDict):
    BLOCK_N: int
    BLOCK_V: int
    BLOCK_D: int
    TMA: bool
    num_warps: int
    num_stages: int


class Tile(_Launch, total=False):
    """The keywords of a launch."""

    maxnreg: int


def stream_tiles(dtype: torch.dtype, capability: int, aligned: bool, biased: bool) -> tuple[Tile, ...]:
    """The candidates on sm_`capability`, the default first.

    On sm_9x and sm_10x, half-precision operands whose rows begin at multiples of 16 bytes come by TMA, which needs no
    registers for addresses and fetches the next block while the softmax of this one runs. Rows that are not aligned
    work everywhere, without a pipeline if not even 4 bytes are.
    """
    architecture, wide = capability // 10, dtype == torch.float32
    tma = aligned and not wide and architecture in (9, 10)
    if tma:
        candidates = _BY_TMA[architecture, biased]
    else:
        candidates = _BY_ADDRESS["float32" if wide else "16 bits" if aligned else "16 bits, not aligned"]
    tiles = []
    for block_n, block_v, block_d, warps, stages in candidates:
        tile = Tile(BLOCK_N=block_n, BLOCK_V=block_v, BLOCK_D=block_d, TMA=tma, num_warps=warps, num_stages=stages)
        # Without the limit, which is that of the architecture, the compiler keeps to fewer registers there, and spills.
        tiles.append(Tile(**tile, maxnreg=255) if tma and architecture == 10 else tile)
    return tuple(tiles)


def label(tile: Tile) -> str:
    """Its name in the tuning tables: rows x vocabulary entries x D of a block."""
    return "{BLOCK_N} x {BLOCK_V} x {BLOCK_D}, {num_warps} warps, {num_stages} stages".format(**tile)


def chosen_tile(candidates: tuple[Tile, ...], device: torch.device, dtype: torch.dtype, sizes: tuple[int, int]) -> Tile:
    """What the device's tuning table takes for a head of `sizes` (V, D) among the candidates, else the default."""
    name = _tuned(tuning.read(device), str(dtype).removeprefix("torch."), *map(tuning.bucket, sizes))
    return next((tile for tile in candidates if label(tile) == name), candidates[0])


@functools.cache
def _tuned(table: tuning.Table, dtype: str, vocabulary: int, size: int) -> str:
    """The label of the entry for such a head; empty if there is none."""
    key = tuning.STREAM_TILE, dtype, vocabulary, size
    return next((entry.backend for entry in table.entries if entry.key() == key), "")
