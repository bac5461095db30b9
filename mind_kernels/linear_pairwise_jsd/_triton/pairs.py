"""Jensen-Shannon or Jeffreys divergences of all pairs of a group's rows, and their gradient, in Triton.

Passes over float32 logits: normalizer (read), pairs (read, F' is written), gradient in place of F' (read both, write).
Peak memory: the gradient beside the logits, and a few numbers per row, pair and span of the vocabulary. All arithmetic
is float32; deterministic: sums have a fixed order.

A thread handles one column of the vocabulary at a time: it loads the logits of all rows, and then visits every pair of
them once. So a pair costs no load of logits, one exponential, and no reduction before its program ends. Every entry of
a divergence is non-negative and has a small relative error, so nothing cancels between entries; see `pair_terms`.

Count for K 8, G 128, V 151936 (19.4 million columns) on 132 multiprocessors of 4 warp instructions per cycle at 1.7
GHz: the loop has 1157 instructions per column, 41 per pair with its share of the rows' work, which is 0.78 ms; its
traffic, 1.24 GB, takes 0.29 ms of that at 4.3 TB/s. With the normalizer and the gradient (groups.py), 1.4 ms.
"""

# Type checkers do not see that tl.static_range, which Triton unrolls, is an iterator.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import math

import torch
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from mind_kernels.linear_pairwise_jsd._triton.groups import (
    Join,
    column_launch,
    finish_gradient_,
    join_spans,
    load_normalizer,
    log_probability,
    normalize,
)
from mind_kernels.triton_math import LOG2_E, LOWEST, cdiv, jit, row_pointer, tanh
from mind_kernels.triton_variant import Variant

# Rows per block. The sums of 28 pairs and 8 rows, the normalizers and a column's 8 x 3 numbers need 128 registers, so
# 16 warps share a multiprocessor; more rows would not fit. Larger groups need one launch per block, and one for any two
# halves of different blocks.
_BLOCK = 8
_HALF = 4

# Two probabilities count as near if the square of their log-ratio (base 2) is below this.
_NEAR = tl.constexpr(2.0)
_HALF_LOG_2 = math.log(2) / 2
_HALF_OF_LOG_2 = tl.constexpr(_HALF_LOG_2)
# A log-ratio (base 2) with LOWEST is larger than this.
_RULED_OUT = tl.constexpr(1e17)


def pair_blocks(count: int) -> list[dict[str, int]]:
    """Launches for groups of `count` rows: each block by itself, then its halves with the halves of every later
    block."""
    if count <= _BLOCK:
        return [{"left": 0, "right": 0, "LEFT": count, "RIGHT": 0}]
    alone = [
        {"left": left, "right": left, "LEFT": min(_BLOCK, _whole_halves(count - left)), "RIGHT": 0}
        for left in range(0, count, _BLOCK)
    ]
    return alone + [
        {"left": left, "right": right, "LEFT": _HALF, "RIGHT": _HALF}
        for left in range(0, count, _HALF)
        for right in range(left // _BLOCK * _BLOCK + _BLOCK, count, _HALF)
    ]


def _whole_halves(count: int) -> int:
    return cdiv(count, _HALF) * _HALF


def pair_launch(count: int) -> dict[str, int]:
    """Places of rows in a matrix of pairs, and the launch of a kernel of whole columns."""
    return {"PLACES": count if count <= _BLOCK else _whole_halves(count)} | column_launch(count)


@jit
def pair_terms(log_p, log_q, p, q):
    """log2(p / m), log2(q / m) and p log2(p / m) + q log2(q / m), m = (p + q) / 2; log_p and log_q are to base 2, up to
    a common term.

    With t = log2(q / p), the larger of the first two is log2(1 + tanh(|t| log(2) / 2)), and the other one is |t| less.
    """
    t = log_q - log_p
    minus_t = t * -1.0  # free: the sign is part of the instructions that read t; -t would be 0 - t
    minus_size = tl.minimum(t, minus_t)
    square = t * t
    near = square < _NEAR
    # Polynomials of least error. Near: log2 cosh(t log(2) / 2) = t^2 r(t^2), to 1.4e-8 of `larger`.
    r = -1.7074378320103278e-6
    r = r * square + 5.509141192305833e-5
    r = r * square - 1.7342446371912956e-3
    r = r * square + 8.664336055517197e-2
    # Far: log2(1 + x) = x s(x), x = 2^-|t|, to 1.3e-8 of `larger`. tl.log2 takes 20 instructions, and the hardware's
    # own instruction has an error of 2.4e-7.
    x = tl.exp2(minus_size)
    s = -8.875416219234467e-2
    s = s * x + 2.2606812417507172e-1
    s = s * x - 3.464643955230713e-1
    s = s * x + 4.7917741537094116e-1
    s = s * x - 7.212487459182739e-1
    s = s * x + 1.4426931142807007
    larger = tl.where(near, minus_size * -0.5 - square * r, 1.0 - x * s)
    own, theirs = larger + tl.minimum(minus_t, 0.0), larger + tl.minimum(t, 0.0)
    # Near, per p + q: t / 2 tanh(t log(2) / 2) - log2 cosh(t log(2) / 2) = t^2 e(t^2), to 2.1e-8 of it.
    e = 5.586585416494927e-7
    e = e * square - 1.3928284715802874e-5
    e = e * square + 2.7760618831962347e-4
    e = e * square - 5.203466396778822e-3
    e = e * square + 8.664339780807495e-2
    return own, theirs, tl.where(near, (p + q) * (square * e), p * own + q * theirs)


@jit
def jeffreys_terms(log_p, log_q, p, q):
    """p t + d, -(q t + d) and d t, d = (p - q) / log(2), t = log2(p / q); log_p and log_q as in `pair_terms`.

    d is computed from t, so that nearly equal rows keep their digits. An entry is infinite if only one row excludes the
    token.
    """
    t = log_p - log_q
    d = (p + q) * (tanh(t * _HALF_OF_LOG_2) * LOG2_E)
    ruled_out = (tl.abs(t) > _RULED_OUT) & (d != 0)
    return p * t + d, (q * t + d) * -1.0, tl.where(ruled_out, float("inf"), d * t)


@jit
def _load_rows(normalizer, first, rows, vocabulary, count, left, right, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """For each row of both blocks: its index, and the results of `load_normalizer`."""
    row, offset, rest, length = (), (), (), ()
    for k in tl.static_range(LEFT + RIGHT):
        n = left + k if k < LEFT else right + (k - LEFT)
        values = load_normalizer(normalizer, first + n, rows, vocabulary, n < count)
        row, offset = row + (first + n,), offset + (values[0],)
        rest, length = rest + (values[1],), length + (values[2],)
    return row, offset, rest, length


@jit
def _row_pointers(base, row, stride):
    pointers = ()
    for k in tl.static_range(len(row)):
        pointers += (row_pointer(base, row[k], stride),)
    return pointers


@jit
def _load_columns(source, column, offset, rest, length):
    """log2 p of each row, up to a term common to a column's rows, and p; p is 0 in absent rows."""
    high, low = (), ()
    largest = tl.full(column.shape, LOWEST, tl.float32)
    for k in tl.static_range(len(source)):
        z = tl.load(source[k] + column, mask=column < length[k], other=float("-inf"))
        coarse, fine = log_probability(z, offset[k], rest[k])
        largest = tl.where(coarse > largest, coarse, largest)  # ignores rows that are nan
        high, low = high + (coarse,), low + (fine,)
    log_p, p = (), ()
    for k in tl.static_range(len(source)):
        log_p += ((high[k] - largest) * LOG2_E + low[k],)
        p += (tl.exp2(high[k] * LOG2_E + low[k]),)
    return log_p, p


@jit(do_not_specialize=["count", "left", "right"])
def _pair_kernel(
    logits,  # (G, K, V)
    normalizer,  # (2, G K)
    weight,  # (G, PLACES, PLACES)
    parts,  # (spans, G, PLACES, PLACES)
    sums,  # (spans, 2, G K)
    gradient,  # (G, K, V), F', or p F' + d for JEFFREYS; holds that of earlier launches if RIGHT is not 0; or None
    vocabulary,
    count,
    left,
    right,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    PLACES: tl.constexpr,
    SPAN: tl.constexpr,
    COLUMNS: tl.constexpr,
    JEFFREYS: tl.constexpr,
):
    """Pairs of the LEFT rows from `left` on with one another, or with the RIGHT rows from `right` on."""
    ROWS: tl.constexpr = LEFT + RIGHT
    PAIRS: tl.constexpr = LEFT * RIGHT if RIGHT else LEFT * (LEFT - 1) // 2
    group, span = tl.program_id(0), tl.program_id(1)
    first, rows = group * count, tl.num_programs(0) * count
    row, offset, rest, length = _load_rows(normalizer, first, rows, vocabulary, count, left, right, LEFT, RIGHT)
    place = left * PLACES + (right - LEFT if RIGHT else left)  # of pair (0, 0)
    weight += group * (PLACES * PLACES) + place
    parts += (span * tl.num_programs(0) + group) * (PLACES * PLACES) + place
    source = _row_pointers(logits, row, vocabulary)
    if gradient is not None:
        out = _row_pointers(gradient, row, vocabulary)
    zero = (tl.zeros((COLUMNS,), tl.float32),)
    divergence, weighted, mass = zero * PAIRS, zero * ROWS, zero * ROWS
    for start in range(span * SPAN, tl.minimum((span + 1) * SPAN, vocabulary), COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        log_p, p = _load_columns(source, column, offset, rest, length)
        derivative = zero * ROWS
        if gradient is not None and RIGHT > 0:
            derivative = ()
            for k in tl.static_range(ROWS):
                derivative += (tl.load(out[k] + column, mask=column < length[k], other=0.0),)
        sums_so_far, divergence = divergence, ()
        for i in tl.static_range(LEFT):
            for j in tl.static_range(LEFT if RIGHT else i + 1, ROWS):
                if JEFFREYS:
                    own, theirs, entry = jeffreys_terms(log_p[i], log_p[j], p[i], p[j])
                else:
                    own, theirs, entry = pair_terms(log_p[i], log_p[j], p[i], p[j])
                divergence += (sums_so_far[len(divergence)] + entry,)
                w = tl.load(weight + (i * PLACES + j))  # loaded for each column, since no register is free
                derivative = derivative[:i] + (derivative[i] + w * own,) + derivative[i + 1 :]
                derivative = derivative[:j] + (derivative[j] + w * theirs,) + derivative[j + 1 :]
        if gradient is not None:
            for k in tl.static_range(ROWS):
                tl.store(out[k] + column, derivative[k], mask=column < length[k])
                of_scalar = derivative[k] if JEFFREYS else p[k] * derivative[k]
                weighted = weighted[:k] + (weighted[k] + of_scalar,) + weighted[k + 1 :]
                mass = mass[:k] + (mass[k] + p[k],) + mass[k + 1 :]
    if gradient is not None:
        for k in tl.static_range(ROWS):
            of_row = sums + span * 2 * rows + row[k]
            tl.store(of_row, tl.sum(weighted[k], axis=0), mask=length[k] > 0)
            tl.store(of_row + rows, tl.sum(mass[k], axis=0), mask=length[k] > 0)
    for i in tl.static_range(LEFT):
        for j in tl.static_range(LEFT if RIGHT else i + 1, ROWS):
            tl.store(parts + (i * PLACES + j), tl.sum(divergence[0], axis=0))
            divergence = divergence[1:]


_TYPES = {
    "logits": "*fp32",
    "normalizer": "*fp32",
    "weight": "*fp32",
    "parts": "*fp32",
    "sums": "*fp32",
    "gradient": "*fp32",
    "vocabulary": "i32",
    "count": "i32",
    "left": "i32",
    "right": "i32",
}


def variants() -> list[Variant]:
    """Groups of 2, 3 and 8 rows, and both kinds of blocks of larger ones, with and without a gradient."""
    out, counts = [], ("count", "left", "right")
    for count, index in ((2, 0), (3, 0), (8, 0), (16, -1), (32, -1)):
        blocks = pair_blocks(count)[index]
        keywords = {name: blocks[name] for name in ("LEFT", "RIGHT")} | pair_launch(count) | {"JEFFREYS": False}
        label = f"pairs of {count} rows, block {blocks['LEFT']} x {blocks['RIGHT'] or blocks['LEFT']}"
        forward, wide = keywords | {"sums": None, "gradient": None}, ("logits", "gradient")
        spills = "8 bytes on sm_100, in 2 of a thousand instructions per column" if count == 8 else ""
        out += [
            Variant(label, _pair_kernel, _TYPES, keywords, wide, counts, harmless_spills=spills),
            Variant(f"{label}, no gradient", _pair_kernel, _TYPES, forward, ("logits",), counts),
        ]
        if count == 8:
            unaligned = ("vocabulary", *counts)
            unaligned_label = f"{label}, unaligned"
            out.append(
                Variant(unaligned_label, _pair_kernel, _TYPES, keywords, wide, unaligned, harmless_spills=spills)
            )
        if count in (2, 8, 16):
            jeffreys = keywords | {"JEFFREYS": True}
            out.append(Variant(f"Jeffreys {label}", _pair_kernel, _TYPES, jeffreys, wide, counts))
            alone = forward | {"JEFFREYS": True}
            out.append(Variant(f"Jeffreys {label}, no gradient", _pair_kernel, _TYPES, alone, ("logits",), counts))
    return out


def pair_divergences(
    logits: Tensor,  # (G, K, V) float32, contiguous, conditioned
    pair_weight: Tensor,  # (G, K, K) float32, its upper triangle counts
    mask: Tensor,  # (G, K) bool
    with_gradient: bool,
    *,
    jeffreys: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """JSD or Jeffreys divergence of all pairs (G, K, K), and the gradient (G, K, V) of their weighted sum, see
    `contract.GroupKernels`."""
    normalizer = normalize(logits, mask)
    return pairs_by(join_spans, normalizer, logits, pair_weight, mask, with_gradient, jeffreys=jeffreys)


def pairs_by(
    join: Join,
    normalizer: Tensor,  # (2, G K), of whole rows
    logits: Tensor,
    pair_weight: Tensor,
    mask: Tensor,
    with_gradient: bool,
    *,
    jeffreys: bool,
) -> tuple[Tensor, Tensor | None]:
    """`pair_divergences`, also for a shard."""
    groups, count, vocabulary = logits.shape
    launch = pair_launch(count)
    spans, places = cdiv(vocabulary, launch["SPAN"]), launch["PLACES"]
    both = mask[:, :, None] & mask[:, None, :]
    unit = 2 * _HALF_LOG_2 if jeffreys else _HALF_LOG_2
    weight = torch.where(both, pair_weight.contiguous() * unit, 0)
    padded = pad(weight, (0, places - count) * 2)
    parts = logits.new_zeros(spans, groups, places, places)
    gradient, sums = None, None
    if with_gradient:
        gradient, sums = torch.empty_like(logits), logits.new_empty(spans, 2, groups * count)
    for blocks in pair_blocks(count):
        _pair_kernel[(groups, spans)](
            logits, normalizer, padded, parts, sums, gradient, vocabulary, count, **blocks, **launch, JEFFREYS=jeffreys
        )
    scale = unit**2 if jeffreys else unit
    part, sums = join(parts, sums)
    upper = torch.where(both, part[:, :count, :count] * scale, 0)
    if gradient is not None and sums is not None:
        if jeffreys:
            infinite = ((upper == math.inf) & (weight != 0)).triu(1)
            sums[0, 0].masked_fill_((infinite.any(1) | infinite.any(2)).flatten(), math.nan)
        finish_gradient_(gradient, logits, normalizer, sums, times_p=jeffreys)
    return upper + upper.transpose(1, 2), gradient
