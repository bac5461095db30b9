"""Arithmetic and launch helpers that the Triton kernels of several operations share. All arithmetic is float32.

A kernel with a program per row reads it as tiles (LANES, VECTOR): VECTOR neighbors are one 16-byte load, and each lane
has an online softmax of its own until the row ends. So the loop needs no reduction across threads, and only one
rescaling per VECTOR entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import triton
import triton.language as tl

from mind_kernels.head import Head

# Triton's own, with types that serve a checker: by Triton's annotations a function that a kernel calls has no result, a
# kernel takes no plain number for a constexpr, and `cdiv` may return one.
jit: Callable[..., Any] = triton.jit
cdiv = cast(Callable[[int, int], int], triton.cdiv)
next_power_of_2 = cast(Callable[[int], int], triton.next_power_of_2)

# Used instead of -inf if 0 times it has to be 0: exp(LOWEST - z) is 0. Its square is finite.
LOWEST = tl.constexpr(-1e18)
# Used instead of a lower logarithm of a probability: e^-1000 is 0, and the product with a weight is finite.
LEAST_LOG = tl.constexpr(-1000.0)
# The lowest finite number, the start value of a maximum: if all logits are -inf, the sum is 0 and the results are nan.
FLOOR = tl.constexpr(-3.4028234663852886e38)
LOG2_E = tl.constexpr(1.4426950408889634)

# 1024 threads with two 16-byte loads each are 32 KiB in flight on a multiprocessor, about what hides the latency of
# memory (4.3 TB/s x 0.7 us = 3 MB on 132 of them). One program of 32 warps fills a multiprocessor, so that at V 151936
# 132 rows of 300 KB are under way at once: 40 MB, of which a second read finds much in the L2 cache. Rows of float32
# would not fit, nor would the registers at 32 warps.
_LOADS = 2
_MAX_WARPS = {2: 32, 4: 16}


def row_launch(vocabulary: int, stride: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile and warps of a kernel with a program per row."""
    vector = 16 // dtype.itemsize
    if vocabulary % 16 == 0 and stride % 16 == 0:
        loads, most = _LOADS, _MAX_WARPS[dtype.itemsize]
    else:  # no 16-byte loads: a vector is spread over VECTOR threads, and each thread has the state of VECTOR lanes
        loads, most = 1, 16
    warps = min(most, next_power_of_2(cdiv(vocabulary, 32 * loads * vector)))
    return {"LANES": 32 * loads * warps, "VECTOR": vector, "num_warps": warps}


def conditions(head: Head) -> dict[str, float | bool]:
    """Softcap and temperature as kernel arguments."""
    return {"softcap": head.softcap or 1.0, "temperature": head.temperature, "HAS_SOFTCAP": head.softcap is not None}


@jit
def row_pointer(base, row, stride):
    """The start of a row: 64-bit, since N x V passes 2^31 elements."""
    return base + row.to(tl.int64) * stride


@jit
def exp(x):
    """e^x as 2^(x log2 e), which is one instruction on a GPU; tl.exp spends three more on denormal results."""
    return tl.exp2(x * LOG2_E)


@jit
def tanh(x):
    """tanh to two units in the last place of float32, also for small x, where 1 - 2 / (e^2x + 1) cancels."""
    size = tl.minimum(tl.abs(x), 10.0, propagate_nan=tl.PropagateNan.ALL)  # tanh(10) is 1; keeps x^10 finite
    square = size * size
    # tanh(x) / x = 1 + x^2 q(x^2); q is the polynomial of least relative error (2.6e-9) on |x| <= 0.6.
    q = -5.905868485569954e-3
    q = q * square + 2.080538496375084e-2
    q = q * square - 5.378668382763863e-2
    q = q * square + 1.3331958651542664e-1
    q = q * square - 3.333329856395721e-1
    size = tl.where(size < 0.6, size + size * (square * q), 1.0 - 2.0 / (exp(2.0 * size) + 1.0))
    return tl.where(x < 0, -size, size)


@jit
def log1p(x):
    """log(1 + x) of x >= 0 to three units in the last place of float32, also for small x."""
    half = x / (2.0 + x)
    square = half * half
    # 2 artanh(x / (2 + x)): five terms of its series leave 1e-8 of it at x = 0.5.
    q = square * (1.0 / 9.0) + 1.0 / 7.0
    q = q * square + 1.0 / 5.0
    q = q * square + 1.0 / 3.0
    return tl.where(x < 0.5, 2.0 * half + 2.0 * half * (square * q), tl.log(1.0 + x))


@jit
def condition(x, softcap, temperature, HAS_SOFTCAP: tl.constexpr):
    """z = softcap(x) / temperature, softcap(x) = c tanh(x / c). Divisions by scalars leave the loops as reciprocals."""
    if HAS_SOFTCAP:
        z = tanh(x * (1.0 / softcap)) * (softcap / temperature)
    else:
        z = x * (1.0 / temperature)
    return z


@jit
def slope(z, softcap, temperature, HAS_SOFTCAP: tl.constexpr):
    """dz / dx of `condition`, from z."""
    result = 1.0 / temperature
    if HAS_SOFTCAP:
        ratio = z * (temperature / softcap)
        # At the cap, where tanh is 1 or -1, the ratio may be one rounding off.
        result = tl.where(tl.abs(z) >= softcap / temperature, 0.0, (1.0 - ratio * ratio) * result)
    return result


@jit
def load_logits(row, columns, vocabulary, softcap, temperature, HAS_SOFTCAP: tl.constexpr):
    """z of these columns of a row; -inf beyond the vocabulary."""
    inside = columns < vocabulary
    x = tl.load(row + columns, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, condition(x, softcap, temperature, HAS_SOFTCAP), float("-inf"))


@jit
def columns_of(start, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """The columns (LANES, VECTOR) of the tile that begins at `start`."""
    return start + tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]


@jit
def online_softmax(z, z_maximum, maximum, total, entropy_sum):
    """Adds logits z, of maximum z_maximum, to each row's maximum m, sum of e^(z - m), and sum of e^(z - m) (z - m).

    They begin with FLOOR, 0 and 0.
    """
    grown = tl.maximum(maximum, z_maximum)
    rise = tl.maximum(maximum - grown, LOWEST)
    decay = exp(rise)
    shifted = z - grown[:, None]
    exponential = exp(shifted)
    part = exponential * tl.maximum(shifted, LOWEST)  # 0 at a logit of -inf
    entropy_sum = (entropy_sum + total * rise) * decay + tl.sum(part, axis=1)
    total = total * decay + tl.sum(exponential, axis=1)
    return grown, total, entropy_sum


@jit
def join_lanes(maximum, total, entropy_sum):
    """The three of `online_softmax` for the row, from those of its lanes."""
    row_maximum = tl.max(maximum, axis=0)
    rise = tl.maximum(maximum - row_maximum, LOWEST)
    decay = exp(rise)
    entropy_sum = tl.sum((entropy_sum + total * rise) * decay, axis=0)
    return row_maximum, tl.sum(total * decay, axis=0), entropy_sum
