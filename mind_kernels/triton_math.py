"""Jit helpers shared by the Triton kernels. All arithmetic is float32."""

from __future__ import annotations

import triton
import triton.language as tl

# Stands for -inf where there is no logit: exp(LOWEST - z) is 0, and so is 0 * LOWEST, which -inf would make nan. Its
# square is finite.
LOWEST = tl.constexpr(-1e18)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def row_pointer(base, row, stride):
    """The start of a row: 64-bit, since N x V passes 2^31 elements."""
    return base + row.to(tl.int64) * stride


@triton.jit
def exp(x):
    """e^x as 2^(x log2 e), which is one instruction on a GPU; tl.exp spends three more on denormal results."""
    return tl.exp2(x * LOG2_E)


@triton.jit
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


@triton.jit
def condition(x, softcap, temperature, HAS_SOFTCAP: tl.constexpr):
    """z = softcap(x) / temperature, softcap(x) = c tanh(x / c). Divisions by scalars leave the loops as reciprocals."""
    if HAS_SOFTCAP:
        z = tanh(x * (1.0 / softcap)) * (softcap / temperature)
    else:
        z = x * (1.0 / temperature)
    return z


@triton.jit
def slope(z, softcap, temperature, HAS_SOFTCAP: tl.constexpr):
    """dz / dx of `condition`, from z."""
    result = 1.0 / temperature
    if HAS_SOFTCAP:
        ratio = z * (temperature / softcap)
        result = (1.0 - ratio * ratio) * result
    return result
