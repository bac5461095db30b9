"""Triton kernels that all divergences of a group's rows share: the normalizer before, and the row gradient after them.

Both are one pass over float32 logits; deterministic. Count for G 128, K 8, V 151936, 0.62 GB of logits, at 4.3 TB/s:
0.15 ms for the normalizer (read), 0.43 ms for the gradient (logits and F' are read, F' is overwritten).

Log-probabilities are stored as two parts, since rows may be nearly equal while their log-probabilities are far from
zero: a log p of -12 in float32 is rounded by up to 5e-7, so that a log-ratio of 1e-6 would have no correct digit. The
coarse parts of a column are subtracted first, which is exact, and then the fine parts, which are small. Logarithms are
to base 2, since 2^x is one instruction on a GPU; the weights include the factor log 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import triton.language as tl
from torch import Tensor

from mind_kernels.triton_math import (
    FLOOR,
    LOG2_E,
    LOWEST,
    cdiv,
    columns_of,
    jit,
    join_lanes,
    next_power_of_2,
    online_softmax,
    row_launch,
    row_pointer,
)
from mind_kernels.triton_variant import Variant

# Adding 3 x 2^12 rounds a number of up to 4096 to a multiple of 2^-10, and subtracting it again is exact. Larger
# numbers are rounded to a coarser grid, or not at all, and the subtraction is exact up to 2^36.
_GRID = tl.constexpr(12288.0)
# log 2 rounded to a multiple of 2^-10, so that products with it are exact, and the rest.
_LOG_2 = tl.constexpr(0.693359375)
_LOG_2_REST = tl.constexpr(-2.1219444005469057e-4)
# The bits of 2^-0.5, the smallest mantissa in [2^-0.5, 2^0.5).
_SMALLEST_MANTISSA = tl.constexpr(0x3F3504F3)

# Columns of a row per program of `finish_gradient_`: five programs per row at V 151936, enough to distribute 1024 rows
# evenly over 132 multiprocessors, and 8 tiles for a program, which begins with a sum over spans.
_ROW_SPAN = 1 << 15
# Warps of kernels for whole columns: one, which sums without waiting for other warps; with few rows four, since at most
# 32 programs share a multiprocessor and each loads little.
_FEW_ROWS, _WARPS_FOR_FEW = 4, 4
# Columns per thread of these kernels. Starting and ending a program costs as much as one column.
_STEPS = 64


def column_launch(count: int) -> dict[str, int]:
    """Columns of a program and of one step of it, and warps: a thread has one column of all `count` rows."""
    warps = _WARPS_FOR_FEW if count <= _FEW_ROWS else 1
    return {"SPAN": 32 * warps * _STEPS, "COLUMNS": 32 * warps, "num_warps": warps}


@jit
def _split(x):
    """x as the sum of a multiple of 2^-10 and a rest, exactly."""
    coarse = (x + _GRID) - _GRID
    return coarse, x - coarse


@jit
def _offset_and_rest(maximum, total):
    """maximum + log(total) as offset - _GRID, a multiple of 2^-10, and the rest, to base 2; their sum has an error of
    3e-8. In one float32, log(total) alone would have an error of 5e-7 at 12, and the log-sum-exp one of 5e-4 at logits
    of 1e4.
    """
    bits = total.to(tl.int32, bitcast=True)
    power = (bits - _SMALLEST_MANTISSA) >> 23
    log_mantissa = tl.log((bits - (power << 23)).to(tl.float32, bitcast=True))
    # 0, infinity and nan have mantissas too, which are not used.
    log_mantissa = tl.where((total > 0) & (total < float("inf")), log_mantissa, float("nan"))
    coarse_maximum, fine_maximum = _split(maximum)
    coarse_log, fine_log = _split(log_mantissa)
    coarse_log += power * _LOG_2
    offset = (coarse_maximum + coarse_log) + _GRID
    rounding = ((offset - _GRID) - coarse_maximum) - coarse_log
    return offset, ((fine_maximum + fine_log) + (power * _LOG_2_REST - rounding)) * LOG2_E


@jit
def log_probability(z, offset, rest):
    """log2 p as high LOG2_E + low: high is exact, low about 1e-3 or less. A log p below LOWEST counts as that.

    Either condition may replace a nan, but then `rest` is nan.
    """
    shifted = z + _GRID
    low = tl.where(z > float("-inf"), z - (shifted - _GRID), 0.0)
    return tl.maximum(shifted - offset, LOWEST), low * LOG2_E - rest


@jit
def load_normalizer(normalizer, row, rows, vocabulary, inside=True):
    """offset and rest of a row, for `log_probability`, and its number of columns, 0 if it is absent.

    The offset of an absent row makes its logits 1e18 smaller than their log-sum-exp, so that its p is 0. A column
    beyond the vocabulary is loaded as minus infinity.
    """
    offset = tl.load(normalizer + row, mask=inside, other=-LOWEST)
    rest = tl.load(normalizer + rows + row, mask=inside, other=0.0)
    return offset, rest, tl.where(offset != -LOWEST, vocabulary, 0)


@jit
def _normalizer_kernel(
    logits,  # (G K, V)
    mask,  # (G K,)
    normalizer,  # (2, G K)
    vocabulary,
    IS_SHARD: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Offset and rest of a row; for a shard, the maximum and the sum of e^(z - maximum) of its part of the row."""
    r = tl.program_id(0)
    row = row_pointer(logits, r, vocabulary)
    present = tl.load(mask + r)
    maximum = tl.full((LANES,), FLOOR, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    unused = tl.zeros((LANES,), tl.float32)
    for start in range(0, tl.where(present, vocabulary, 0), LANES * VECTOR):
        columns = columns_of(start, LANES, VECTOR)
        z = tl.load(row + columns, mask=columns < vocabulary, other=float("-inf"))
        maximum, total, unused = online_softmax(z, tl.max(z, axis=1), maximum, total, unused)
    row_maximum, row_total, unused = join_lanes(maximum, total, unused)
    first, second = row_maximum, row_total
    if not IS_SHARD:
        offset, rest = _offset_and_rest(row_maximum, row_total)
        first, second = tl.where(present, offset, -LOWEST), tl.where(present, rest, 0.0)
    tl.store(normalizer + r, first)
    tl.store(normalizer + tl.num_programs(0) + r, second)


@jit
def _gradient_kernel(
    logits,  # (G K, V)
    normalizer,  # (2, G K)
    sums,  # (spans, 2, G K)
    gradient,  # (G K, V)
    vocabulary,
    spans,
    SPANS: tl.constexpr,
    ROW_SPAN: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    TIMES_P: tl.constexpr,
):
    r, rows = tl.program_id(0), tl.num_programs(0)
    offset, rest, length = load_normalizer(normalizer, r, rows, vocabulary)
    span = tl.arange(0, SPANS)
    of_row = sums + span * 2 * rows + r
    weighted = tl.sum(tl.load(of_row, mask=span < spans, other=0.0), axis=0)
    scalar = weighted / tl.sum(tl.load(of_row + rows, mask=span < spans, other=0.0), axis=0)
    row, out = row_pointer(logits, r, vocabulary), row_pointer(gradient, r, vocabulary)
    first = tl.program_id(1) * ROW_SPAN
    for start in range(first, tl.minimum(first + ROW_SPAN, vocabulary), LANES * VECTOR):
        columns = columns_of(start, LANES, VECTOR)
        z = tl.load(row + columns, mask=columns < length, other=0.0)
        derivative = tl.load(out + columns, mask=columns < length, other=0.0)
        high, low = log_probability(z, offset, rest)
        p = tl.exp2(high * LOG2_E + low)
        dz = derivative - p * scalar if TIMES_P else p * (derivative - scalar)
        tl.store(out + columns, tl.where(columns < length, dz, 0.0), mask=columns < vocabulary)


_TYPES = {
    "logits": "*fp32",
    "mask": "*i1",
    "normalizer": "*fp32",
    "sums": "*fp32",
    "gradient": "*fp32",
    "vocabulary": "i32",
    "spans": "i32",
}


def variants() -> list[Variant]:
    """Both kernels, for a vocabulary that is a multiple of 16 and one that is not."""
    out = []
    for vocabulary, label in ((151936, ""), (50257, ", unaligned")):
        launch = row_launch(vocabulary, vocabulary, torch.float32)
        spans = cdiv(vocabulary, column_launch(8)["SPAN"])
        of_gradient = launch | {"SPANS": next_power_of_2(spans), "ROW_SPAN": _ROW_SPAN, "TIMES_P": False}
        unaligned = ("spans", "vocabulary") if label else ("spans",)
        both = ("logits", "gradient")
        for name, kernel, keywords, wide in (
            ("group normalizer", _normalizer_kernel, launch | {"IS_SHARD": False}, ("logits",)),
            ("group normalizer of a shard", _normalizer_kernel, launch | {"IS_SHARD": True}, ("logits",)),
            ("group row gradient", _gradient_kernel, of_gradient, both),
            ("group row gradient of p F' + d", _gradient_kernel, of_gradient | {"TIMES_P": True}, both),
        ):
            out.append(Variant(name + label, kernel, _TYPES, keywords, wide, unaligned))
    return out


def normalize(
    logits: Tensor,  # (G, K, V) float32, contiguous
    mask: Tensor,  # (G, K) bool
) -> Tensor:
    """(2, G K) float32: offset and rest of each row, which `log_probability` subtracts from its logits."""
    return _normalizer(logits, mask, is_shard=False)


def normalize_shard(
    logits: Tensor,  # (G, K, V of the shard) float32, contiguous
    mask: Tensor,  # (G, K) bool
    join: Callable[[Tensor], Tensor],
) -> Tensor:
    """`normalize` for whole rows. `join` gathers this shard's (2, G K) from all processes: (processes, 2, G K)."""
    maxima, totals = join(_normalizer(logits, mask, is_shard=True)).double().unbind(1)
    top = maxima.amax(0)
    log_total = ((maxima - top).exp() * totals).sum(0).log()
    log_total = torch.where((top + log_total).isfinite(), log_total, math.nan)
    offset = ((top + log_total) + _GRID.value).float()
    # The parts of `top` as `log_probability` computes them: beside 1e17, log 2 would be lost in float64.
    shifted = top.float() + _GRID.value
    coarse, fine = shifted.double() - offset.double(), top - (shifted - _GRID.value).double()
    rest = ((coarse + fine + log_total) * LOG2_E.value).float()
    absent = ~mask.flatten()
    return torch.stack([offset.masked_fill_(absent, -LOWEST.value), rest.masked_fill_(absent, 0)])


def _normalizer(logits: Tensor, mask: Tensor, *, is_shard: bool) -> Tensor:
    groups, count, vocabulary = logits.shape
    normalizer, launch = logits.new_empty(2, groups * count), row_launch(vocabulary, vocabulary, torch.float32)
    _normalizer_kernel[(groups * count,)](
        logits, mask.contiguous(), normalizer, vocabulary, IS_SHARD=is_shard, **launch
    )
    return normalizer


Join = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""join(parts, sums) -> (parts summed over spans, sums): the parts of the divergences (spans, ...) and of the rows' sums
(spans, 2, G K) from each span of the vocabulary; `sums` is None without a gradient. For a shard, it sums over all
shards too."""


def join_spans(parts: Tensor, sums: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """See `Join`."""
    return parts.sum(0), sums


def finish_gradient_(
    gradient: Tensor,  # (G, K, V) float32, contiguous: F' of each row, or p F' + d; becomes the gradient
    logits: Tensor,  # (G, K, V) float32, contiguous
    normalizer: Tensor,  # (2, G K)
    sums: Tensor,  # (spans, 2, G K): parts of sum p F' and of sum p
    *,
    times_p: bool = False,
) -> None:
    """Overwrites F' of every row by p (F' - S), S = sum p F' / sum p; zero for absent rows.

    With `times_p`, overwrites p F' + d by p (F' - S) + d, where d sums to 0."""
    groups, count, vocabulary = logits.shape
    spans = sums.shape[0]
    _gradient_kernel[(groups * count, cdiv(vocabulary, _ROW_SPAN))](
        logits,
        normalizer,
        sums,
        gradient,
        vocabulary,
        spans,
        SPANS=next_power_of_2(spans),
        ROW_SPAN=_ROW_SPAN,
        TIMES_P=times_p,
        **row_launch(vocabulary, vocabulary, torch.float32),
    )
