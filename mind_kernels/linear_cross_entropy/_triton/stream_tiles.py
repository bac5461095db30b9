"""Tile, warps and stages of the kernel in stream.py: the default per GPU, and the alternatives for `tune`.

Candidates were chosen by registers and occupancy after compilation (bench/results/kernel_resources.jsonl): none spills,
except for 8 to 16 bytes per thread on sm_80. A multiprocessor runs either one large program, which reads the operands
least often, or two smaller ones, so that one computes products while the other computes its softmax.
"""

from __future__ import annotations

import functools
from typing import TypedDict

import torch

from mind_kernels import tuning

_Sizes = tuple[int, int, int, int, int]  # BLOCK_N, BLOCK_V, BLOCK_D, warps, stages

_BY_TMA: dict[tuple[int, bool], tuple[_Sizes, ...]] = {
    # (architecture, biased): a bias needs the last registers.
    (9, False): ((128, 256, 64, 8, 4), (128, 256, 128, 8, 2), (128, 128, 64, 4, 3), (64, 128, 64, 4, 4)),
    (9, True): ((128, 128, 64, 8, 4), (128, 128, 128, 8, 3), (64, 256, 64, 8, 4), (64, 128, 64, 4, 4)),
    (10, False): ((128, 128, 64, 8, 4), (128, 128, 128, 8, 3), (64, 128, 64, 4, 4)),
    (10, True): ((128, 128, 64, 8, 4), (128, 128, 128, 8, 3)),
}
_BY_ADDRESS = {
    # float32, or 16 bits and aligned; a bias makes no difference.
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

    On sm_9x and sm_10x, half-precision operands whose rows begin at multiples of 16 bytes are loaded by TMA, which
    needs no registers for addresses and fetches the next block while the softmax of this one runs. Unaligned rows work
    everywhere; if they are not even aligned to 4 bytes, there is no pipeline.
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
        # Without this limit, which is that of the architecture, the compiler uses fewer registers there, and spills.
        tiles.append(Tile(**tile, maxnreg=255) if tma and architecture == 10 else tile)
    return tuple(tiles)


def label(tile: Tile) -> str:
    """Its name in the tuning tables: rows x vocabulary entries x D of a block."""
    return "{BLOCK_N} x {BLOCK_V} x {BLOCK_D}, {num_warps} warps, {num_stages} stages".format(**tile)


def chosen_tile(candidates: tuple[Tile, ...], device: torch.device, dtype: torch.dtype, sizes: tuple[int, int]) -> Tile:
    """The candidate that the device's tuning table has for a head of `sizes` (V, D), else the default."""
    name = _tuned(tuning.read(device), str(dtype).removeprefix("torch."), *map(tuning.bucket, sizes))
    return next((tile for tile in candidates if label(tile) == name), candidates[0])


@functools.cache
def _tuned(table: tuning.Table, dtype: str, vocabulary: int, size: int) -> str:
    """The label of the entry for such a head; empty if there is none."""
    key = tuning.STREAM_TILE, dtype, vocabulary, size
    return next((entry.backend for entry in table.entries if entry.key() == key), "")
