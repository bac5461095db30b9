"""Divergences of a group's rows from their weighted mean, and their gradient, in Triton, on float32 logits in memory.

Passes, memory and arithmetic are those of pairs.py: a thread handles one column of the vocabulary at a time, with the
logits of all rows, and computes one logarithm. Let r be the row of nonzero weight with the largest p in the column.
Then d_k = log(p_k / p_r) and lambda = log sum_k w_k e^(d_k) / sum_k w_k give log(p_k / m) = d_k - lambda. If rows are
nearly equal all of these are small, and keep their relative accuracy. An entry p_k log(p_k / m) - p_k + m is
non-negative, so nothing cancels between them.

Counted as there: 634 instructions per column of 8 rows, 0.43 ms, and 1.0 ms with the normalizer and the gradient.
"""

# Type checkers do not see that tl.static_range, which Triton unrolls, is an iterator.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import math

import torch
import triton.language as tl
from torch import Tensor

from mind_kernels.linear_pairwise_jsd._triton.groups import (
    Join,
    column_launch,
    finish_gradient_,
    join_spans,
    load_normalizer,
    log_probability,
    normalize,
)
from mind_kernels.triton_math import LOG2_E, LOWEST, cdiv, jit, row_pointer
from mind_kernels.triton_variant import Variant

# Rows per block: a program sums the divergences of one block, and holds its logits of a column at once, in 80
# registers. In larger groups it reads all blocks for the mixture, so each block is read by the programs of all blocks.
_BLOCK = 8

_LOG_2 = tl.constexpr(math.log(2))
# If no row with weight gives a token any probability, the divergence of a row without weight is infinite. There g is
# about 1e18, and this number replaces log 2. A divergence above _LARGEST, which logits above LOWEST cannot cause, means
# infinity.
_INFINITE = tl.constexpr(1e20)
_LARGEST = 1e19


def mixture_launch(count: int) -> dict[str, int]:
    """Rows of a program, and the launch of a kernel of whole columns."""
    return {"BLOCK": min(count, _BLOCK)} | column_launch(count)


@jit
def _expm1(d):
    """2^d and 2^d - 1 of min(d, 0); the polynomial for d > -1 has a relative error of 9.4e-9."""
    d = tl.minimum(d, 0.0, propagate_nan=tl.PropagateNan.ALL)
    power = tl.exp2(d)
    q = 1.1458056542323902e-4
    q = q * d + 1.2907800264656544e-3
    q = q * d + 9.596276096999645e-3
    q = q * d + 5.549895390868187e-2
    q = q * d + 2.4022606015205383e-1
    q = q * d + 6.931471824645996e-1
    return power, tl.where(d > -1.0, d * q, power - 1.0)


@jit
def _log1p(x, total):
    """log2(1 + x) of -1 < x <= 0, total = 1 + x; the polynomial for x > -0.25 has a relative error of 2.3e-9."""
    q = 4.815361201763153e-1
    q = q * x - 1.29295215010643e-1
    q = q * x + 3.0906030535697937e-1
    q = q * x - 3.587893545627594e-1
    q = q * x + 4.8097944259643555e-1
    q = q * x - 7.213461995124817e-1
    q = q * x + 1.4426950216293335
    return tl.where(x > -0.25, x * q, tl.log2(total))


@jit
def _entry(g, p, m, log_2):
    """p log(p / m) - p + m from g = log2(p / m); the polynomial for |g| < 1 has a relative error of 6.6e-9."""
    q = 1.325645257566066e-6
    q = q * g - 1.543120015412569e-5
    q = q * g + 1.5404152509290725e-4
    q = q * g - 1.3332668459042907e-3
    q = q * g + 9.618124924600124e-3
    q = q * g - 5.5504120886325836e-2
    q = q * g + 2.4022650718688965e-1
    return tl.where(tl.abs(g) < 1.0, p * (g * g * q), p * (g * log_2 - 1.0) + m)


@jit
def _load_block(
    logits, normalizer, share, column, vocabulary, first, rows, start, COUNT: tl.constexpr, BLOCK: tl.constexpr
):
    """For each row of a block: its index, its number of columns, its share, and `log_probability` of these columns."""
    row, length, shares, high, low = (), (), (), (), ()
    for k in tl.static_range(BLOCK):
        inside = start + k < COUNT
        r = first + start + k
        offset, rest, columns = load_normalizer(normalizer, r, rows, vocabulary, inside)
        z = tl.load(row_pointer(logits, r, vocabulary) + column, mask=column < columns, other=float("-inf"))
        coarse, fine = log_probability(z, offset, rest)
        row, length, shares = row + (r,), length + (columns,), shares + (tl.load(share + r, mask=inside, other=0.0),)
        high, low = high + (coarse,), low + (fine,)
    return row, length, shares, high, low


@jit
def _mixture_kernel(
    logits,  # (G, K, V)
    normalizer,  # (2, G K)
    weight,  # (G, K)
    share,  # (G, K)
    parts,  # (spans, G K)
    sums,  # (spans, 2, G K)
    gradient,  # (G, K, V) or None
    vocabulary,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The mixture of all rows, and the divergences of a block of them."""
    span, first, rows = tl.program_id(1), tl.program_id(0) * COUNT, tl.num_programs(0) * COUNT
    own = 0 if COUNT == BLOCK else tl.program_id(2) * BLOCK
    zero = tl.zeros((COLUMNS,), tl.float32)
    divergence, weighted, mass = (zero,) * BLOCK, (zero,) * BLOCK, (zero,) * BLOCK
    for column_start in range(span * SPAN, tl.minimum((span + 1) * SPAN, vocabulary), COLUMNS):
        column = column_start + tl.arange(0, COLUMNS)
        high_r, low_r = zero + LOWEST * 10, zero  # the reference: so far below the logits of any row
        for start in range(0, COUNT, BLOCK):
            _, _, shares, high, low = _load_block(
                logits, normalizer, share, column, vocabulary, first, rows, start, COUNT, BLOCK
            )
            for k in tl.static_range(BLOCK):
                lowered = tl.where(shares[k] > 0, 0.0, LOWEST * 100)  # a row without weight cannot be the reference
                larger = (high[k] - high_r) * LOG2_E + (low[k] - low_r) + lowered > 0
                high_r, low_r = tl.where(larger, high[k], high_r), tl.where(larger, low[k], low_r)
        total, total_1, m = zero, zero, zero
        for start in range(0, COUNT, BLOCK):
            _, _, shares, high, low = _load_block(
                logits, normalizer, share, column, vocabulary, first, rows, start, COUNT, BLOCK
            )
            for k in tl.static_range(BLOCK):
                power, power_1 = _expm1((high[k] - high_r) * LOG2_E + (low[k] - low_r))
                total, total_1 = total + shares[k] * power, total_1 + shares[k] * power_1
                m += shares[k] * tl.exp2(high[k] * LOG2_E + low[k])
        rise = _log1p(total_1, total)
        log_2 = tl.where(high_r > 0.9 * LOWEST, _LOG_2, _INFINITE)
        row, length, _, high, low = _load_block(
            logits, normalizer, share, column, vocabulary, first, rows, own, COUNT, BLOCK
        )
        for k in tl.static_range(BLOCK):
            g = ((high[k] - high_r) * LOG2_E + (low[k] - low_r)) - rise
            p = tl.exp2(high[k] * LOG2_E + low[k])
            divergence = divergence[:k] + (divergence[k] + _entry(g, p, m, log_2),) + divergence[k + 1 :]
            if gradient is not None:
                derivative = tl.load(weight + row[k], mask=length[k] > 0, other=0.0) * g
                tl.store(row_pointer(gradient, row[k], vocabulary) + column, derivative, mask=column < length[k])
                weighted = weighted[:k] + (weighted[k] + p * derivative,) + weighted[k + 1 :]
                mass = mass[:k] + (mass[k] + p,) + mass[k + 1 :]
    for k in tl.static_range(BLOCK):
        inside = own + k < COUNT
        tl.store(parts + span * rows + first + own + k, tl.sum(divergence[k], axis=0), mask=inside)
        if gradient is not None:
            out = sums + span * 2 * rows + first + own + k
            tl.store(out, tl.sum(weighted[k], axis=0), mask=inside)
            tl.store(out + rows, tl.sum(mass[k], axis=0), mask=inside)


_TYPES = {
    "logits": "*fp32",
    "normalizer": "*fp32",
    "weight": "*fp32",
    "share": "*fp32",
    "parts": "*fp32",
    "sums": "*fp32",
    "gradient": "*fp32",
    "vocabulary": "i32",
}


def variants() -> list[Variant]:
    """Groups of 2, 8, 16 and 32 rows, with and without a gradient."""
    out = []
    for count in (2, 8, 16, 32):
        keywords, label = {"COUNT": count} | mixture_launch(count), f"mixture of {count} rows"
        forward, wide = keywords | {"sums": None, "gradient": None}, ("logits", "gradient")
        out += [
            Variant(label, _mixture_kernel, _TYPES, keywords, wide),
            Variant(f"{label}, no gradient", _mixture_kernel, _TYPES, forward, ("logits",)),
        ]
        if count == 8:
            out.append(Variant(f"{label}, unaligned", _mixture_kernel, _TYPES, keywords, wide, ("vocabulary",)))
    return out


def mixture_divergences(
    logits: Tensor,  # (G, K, V) float32, contiguous, conditioned
    mixture_weight: Tensor,  # (G, K) float32, not negative
    mask: Tensor,  # (G, K) bool
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """KL(P_k || M) of each row (G, K), and the gradient (G, K, V) of their weighted sum, see
    `contract.GroupKernels`."""
    return mixture_by(join_spans, normalize(logits, mask), logits, mixture_weight, mask, with_gradient)


def mixture_by(
    join: Join,
    normalizer: Tensor,  # (2, G K), of whole rows
    logits: Tensor,
    mixture_weight: Tensor,
    mask: Tensor,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """`mixture_divergences`, also for a shard."""
    groups, count, vocabulary = logits.shape
    launch = mixture_launch(count)
    spans = cdiv(vocabulary, launch["SPAN"])
    weight = torch.where(mask, mixture_weight, 0).contiguous()
    total = weight.sum(1, keepdim=True)
    share = weight / torch.where(total > 0, total, 1)
    parts, gradient, sums = logits.new_empty(spans, groups, count), None, None
    if with_gradient:
        gradient, sums = torch.empty_like(logits), logits.new_empty(spans, 2, groups * count)
    _mixture_kernel[(groups, spans, cdiv(count, launch["BLOCK"]))](
        logits, normalizer, weight * math.log(2), share, parts, sums, gradient, vocabulary, COUNT=count, **launch
    )
    divergence, sums = join(parts, sums)
    if gradient is not None and sums is not None:
        finish_gradient_(gradient, logits, normalizer, sums)
    divergence.masked_fill_(divergence > _LARGEST, math.inf)
    return torch.where(mask & (total > 0), divergence, 0), gradient
