"""Passes over a row of logits in Triton, which the row kernels of a whole head and of a shard share; see `rows`."""

from __future__ import annotations

import triton.language as tl

from mind_kernels.linear_cross_entropy._triton.terms import is_kept, probability_part
from mind_kernels.triton_math import FLOOR, columns_of, exp, jit, join_lanes, load_logits, online_softmax, slope


@jit
def row_sums(
    row,
    target,
    vocabulary,
    softcap,
    temperature,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One pass over a row: its maximum; the sums of e^(z - maximum) and of e^(z - maximum) (z - maximum) without the
    target's; the target's z, 0 for a target of -1; the sum of z, 0 without label smoothing; the largest z before the
    target; the first column of the first vector with the maximum, the vocabulary's end if no logit is a number. The
    compiler removes what the caller does not use."""
    # The vector of the target, for its own entry and those before it. The loop only compares whole vectors: one
    # comparison per entry would cost as much as the softmax. Loaded here, it has arrived when the loop ends.
    near = tl.maximum(target, 0) // VECTOR * VECTOR + tl.arange(0, VECTOR)
    z_near = load_logits(row, near, vocabulary, softcap, temperature, HAS_SOFTCAP)

    maximum = tl.full((LANES,), FLOOR, tl.float32)
    earlier = tl.full((LANES,), float("-inf"), tl.float32)
    first = tl.zeros((LANES,), tl.int32)
    others = tl.zeros((LANES,), tl.float32)
    entropy_sum = tl.zeros((LANES,), tl.float32)
    z_sum = tl.zeros((LANES,), tl.float32)
    for start in range(0, vocabulary, LANES * VECTOR):
        columns = columns_of(start, LANES, VECTOR)
        z = load_logits(row, columns, vocabulary, softcap, temperature, HAS_SOFTCAP)
        tile_maximum = tl.max(z, axis=1)
        if HAS_SMOOTHING:
            z_sum += tl.sum(tl.where(columns < vocabulary, z, 0.0), axis=1)
        if (target >= start) & (target < start + LANES * VECTOR):  # true for one tile of the row; see `with_target`
            z = tl.where(columns == target, float("-inf"), z)
        begins = start + tl.arange(0, LANES) * VECTOR
        first = tl.where(tile_maximum > maximum, begins, first)
        maximum, others, entropy_sum = online_softmax(z, tile_maximum, maximum, others, entropy_sum)
        earlier = tl.maximum(earlier, tl.where(begins + VECTOR <= target, tile_maximum, float("-inf")))

    first = tl.where(maximum == tl.max(maximum, axis=0), first, vocabulary)
    row_maximum, others, entropy_sum = join_lanes(maximum, others, entropy_sum)
    z_target = tl.sum(tl.where(near == target, z_near, 0.0), axis=0)
    before = tl.maximum(tl.max(earlier, axis=0), tl.max(tl.where(near < target, z_near, float("-inf")), axis=0))
    return row_maximum, others, entropy_sum, z_target, tl.sum(z_sum, axis=0), before, tl.min(first, axis=0)


@jit
def write_gradient(
    row,
    target,
    maximum,
    log_total,
    a,
    b,
    at_target,
    uniform,
    vocabulary,
    softcap,
    temperature,
    HAS_ENTROPY: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Overwrites a row of logits by their gradient; `a`, `b` and `at_target` are results of `coefficients`."""
    for start in range(0, vocabulary, LANES * VECTOR):
        columns = columns_of(start, LANES, VECTOR)
        z = load_logits(row, columns, vocabulary, softcap, temperature, HAS_SOFTCAP)
        part = probability_part((z - maximum) - log_total, a, b, HAS_ENTROPY)
        dz = tl.where(columns == target, at_target, part)
        if HAS_SMOOTHING:
            dz -= uniform
        dx = dz * slope(z, softcap, temperature, HAS_SOFTCAP)
        tl.store(row + columns, dx, mask=columns < vocabulary)


@jit
def count_kept(
    row,
    target,
    maximum,
    log_total,
    lse_others,
    kept,
    dropped_mass,
    vocabulary,
    softcap,
    temperature,
    log_threshold,
    HAS_SOFTCAP: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Stores the number of kept entries of this program's row, and the probability of the others."""
    count = tl.zeros((LANES,), tl.int32)
    dropped = tl.zeros((LANES,), tl.float32)
    # Reads the whole row again, mostly from the L2 cache: almost every tile of 16384 entries has a kept one (35 per
    # row), so remembering the maximum of each tile would skip almost nothing, and cost a reduction per tile.
    for start in range(0, vocabulary, LANES * VECTOR):
        columns = columns_of(start, LANES, VECTOR)
        z = load_logits(row, columns, vocabulary, softcap, temperature, HAS_SOFTCAP)
        keep = is_kept(z, columns, target, lse_others, log_threshold)
        count += tl.sum(keep.to(tl.int32), axis=1)
        dropped += tl.sum(tl.where(keep, 0.0, exp((z - maximum) - log_total)), axis=1)
    tl.store(kept + tl.program_id(0), tl.sum(count, axis=0))
    tl.store(dropped_mass + tl.program_id(0), tl.sum(dropped, axis=0))
