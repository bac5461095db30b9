"""What the divergences of a group's rows share in Triton: the normaliser before them, the row gradient after them.

Both are one pass over float32 logits, deterministic. Count for G 128, K 8, V 151936, 0.62 GB of logits, at 4.3 TB/s:
0.15 ms for the normaliser (read), 0.43 ms for the gradient (logits and F' are read, F' is overwritten).

Log-probabilities are kept in two parts, since rows may nearly coincide where each is far from zero: at log p of -12 a
float32 is rounded to 5e-7, which is half of a log-ratio of 1e-6. The coarse parts of a column are subtracted from one
another first, which is exact, and then the fine parts, which are small. Logarithms are to base 2 from here on, since
2^x is one instruction on a GPU; the weights carry the factor log 2.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mind_kernels.triton_ahead import Variant
from mind_kernels.triton_math import LOG2_E, LOWEST, exp, row_pointer

# Adding 3 x 2^12 rounds a number of up to 4096 to a multiple of 2^-10, and subtracting it again is exact: it is a
# multiple of 2^12, so that holds up to 2^36. Larger numbers get a coarser grid, or keep all their digits.
_GRID = tl.constexpr(12288.0)
# log 2 as a multiple of 2^-10, whose multiples are exact, and the rest.
_LOG_2 = tl.constexpr(0.693359375)
_LOG_2_REST = tl.constexpr(-2.1219444005469057e-4)
# The bits of 2^-0.5, where the exponent of a mantissa in [2^-0.5, 2^0.5) begins.
_SMALLEST_MANTISSA = tl.constexpr(0x3F3504F3)

# Columns of a row that one program of `finish_gradient_` takes: five programs a row at V 151936, enough to spread 1024
# rows evenly over 132 multiprocessors, and 16 tiles for a program that begins with a sum over spans.
_ROW_SPAN = 1 << 15
# As in the kernels of linear_cross_entropy: 16 warps with two 16-byte loads a thread, two programs a multiprocessor.
_WARPS = 16
_LOADS = 2


def row_launch(vocabulary: int) -> dict[str, int]:
    """Tile and warps of the kernels that take one row at a time."""
    loads = _LOADS if vocabulary % 16 == 0 else 1  # without 16-byte loads a vector lies in as many threads
    warps = min(_WARPS, triton.next_power_of_2(triton.cdiv(vocabulary, 32 * loads * 4)))
    return {"LANES": 32 * loads * warps, "VECTOR": 4, "num_warps": warps}


@triton.jit
def _columns(start, LANES: tl.constexpr, VECTOR: tl.constexpr):
    return start + tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]


@triton.jit
def _split(x):
    """x as a multiple of 2^-10 and the rest, without an error."""
    coarse = (x + _GRID) - _GRID
    return coarse, x - coarse


@triton.jit
def _offset_and_rest(maximum, total):
    """lse = maximum + log(total) as offset - _GRID, a multiple of 2^-10, and rest, in units of log 2, to 3e-8 in all.

    Rounded to one float32, log(total) alone would err by 5e-7 at 12, and lse by 5e-4 at logits of 1e4.
    """
    bits = total.to(tl.int32, bitcast=True)
    power = (bits - _SMALLEST_MANTISSA) >> 23
    log_mantissa = tl.log((bits - (power << 23)).to(tl.float32, bitcast=True))
    log_mantissa = tl.where(total < float("inf"), log_mantissa, total)  # infinity and nan have mantissas too
    coarse_maximum, fine_maximum = _split(maximum)
    coarse_log, fine_log = _split(log_mantissa)
    coarse_log += power * _LOG_2
    offset = (coarse_maximum + coarse_log) + _GRID
    rounding = ((offset - _GRID) - coarse_maximum) - coarse_log
    return offset, ((fine_maximum + fine_log) + (power * _LOG_2_REST - rounding)) * LOG2_E


@triton.jit
def log_probability(z, offset, rest):
    """log2 p as high LOG2_E + low: high is exact, low is about 1e-3 or less. Any z of an absent row has p = 0."""
    shifted = z + _GRID
    return shifted - offset, (z - (shifted - _GRID)) * LOG2_E - rest


@triton.jit
def load_normalizer(normalizer, row, rows):
    """offset and rest of a row, for `log_probability`."""
    return tl.load(normalizer + row), tl.load(normalizer + rows + row)


@triton.jit
def _normalizer_kernel(
    logits,  # (G K, V)
    mask,  # (G K,)
    normalizer,  # (2, G K)
    vocabulary,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    r = tl.program_id(0)
    row = row_pointer(logits, r, vocabulary)
    present = tl.load(mask + r)
    maximum = tl.full((LANES,), LOWEST, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    for start in range(0, tl.where(present, vocabulary, 0), LANES * VECTOR):
        columns = _columns(start, LANES, VECTOR)
        z = tl.load(row + columns, mask=columns < vocabulary, other=LOWEST)
        grown = tl.maximum(maximum, tl.max(z, axis=1))
        total = total * exp(maximum - grown) + tl.sum(exp(z - grown[:, None]), axis=1)
        maximum = grown
    row_maximum = tl.max(maximum, axis=0)
    offset, rest = _offset_and_rest(row_maximum, tl.sum(total * exp(maximum - row_maximum), axis=0))
    tl.store(normalizer + r, tl.where(present, offset, -LOWEST))
    tl.store(normalizer + tl.num_programs(0) + r, tl.where(present, rest, 0.0))


@triton.jit
def _gradient_kernel(
    logits,  # (G K, V)
    mask,  # (G K,)
    normalizer,  # (2, G K)
    sums,  # (spans, 2, G K)
    gradient,  # (G K, V)
    vocabulary,
    spans,
    SPANS: tl.constexpr,
    ROW_SPAN: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    r, rows = tl.program_id(0), tl.num_programs(0)
    present = tl.load(mask + r)
    offset, rest = load_normalizer(normalizer, r, rows)
    span = tl.arange(0, SPANS)
    of_row = sums + span * 2 * rows + r
    weighted = tl.sum(tl.load(of_row, mask=span < spans, other=0.0), axis=0)
    scalar = weighted / tl.sum(tl.load(of_row + rows, mask=span < spans, other=0.0), axis=0)
    row, out = row_pointer(logits, r, vocabulary), row_pointer(gradient, r, vocabulary)
    first = tl.program_id(1) * ROW_SPAN
    for start in range(first, tl.minimum(first + ROW_SPAN, vocabulary), LANES * VECTOR):
        columns = _columns(start, LANES, VECTOR)
        inside = columns < vocabulary
        z = tl.load(row + columns, mask=inside & present, other=0.0)
        derivative = tl.load(out + columns, mask=inside & present, other=0.0)
        high, low = log_probability(z, offset, rest)
        dz = tl.exp2(high * LOG2_E + low) * (derivative - scalar)
        tl.store(out + columns, tl.where(present, dz, 0.0), mask=inside)


def normalize(
    logits: Tensor,  # (G, K, V) float32, contiguous
    mask: Tensor,  # (G, K) bool
) -> Tensor:
    """(2, G K) float32: what `log_probability` takes off the logits of each row."""
    groups, count, vocabulary = logits.shape
    normalizer = logits.new_empty(2, groups * count)
    _normalizer_kernel[(groups * count,)](logits, mask, normalizer, vocabulary, **row_launch(vocabulary))
    return normalizer


def finish_gradient_(
    gradient: Tensor,  # (G, K, V) float32, contiguous: F' of each row, becomes the gradient
    logits: Tensor,  # (G, K, V) float32, contiguous
    mask: Tensor,  # (G, K) bool
    normalizer: Tensor,  # (2, G K)
    sums: Tensor,  # (spans, 2, G K): parts of sum p F' and of sum p
) -> None:
    """p (F' - S) of every row in place of its F', S = sum p F' / sum p; zero where a row is absent."""
    groups, count, vocabulary = logits.shape
    spans = sums.shape[0]
    _gradient_kernel[(groups * count, triton.cdiv(vocabulary, _ROW_SPAN))](
        logits, mask, normalizer, sums, gradient, vocabulary, spans, SPANS=triton.next_power_of_2(spans),
        ROW_SPAN=_ROW_SPAN, **row_launch(vocabulary))


_TYPES = {"logits": "*fp32", "mask": "*i1", "normalizer": "*fp32", "sums": "*fp32", "gradient": "*fp32",
          "vocabulary": "i32", "spans": "i32"}


def variants() -> list[Variant]:
    """Both kernels, for a vocabulary that is a multiple of 16 and one that is not."""
    out = []
    for vocabulary, label in ((151936, ""), (50257, ", unaligned")):
        launch, unaligned = row_launch(vocabulary), ("spans", "vocabulary")[:1 + bool(label)]
        out += [Variant(f"normaliser{label}", _normalizer_kernel, _TYPES, launch, ("logits",), unaligned),
                Variant(f"row gradient{label}", _gradient_kernel, _TYPES, launch | {"SPANS": 64, "ROW_SPAN": _ROW_SPAN},
                        ("logits", "gradient"), unaligned)]
    return out
