"""Row kernels of linear cross-entropy in Triton, over a chunk of logits in memory. One program a row.

Passes: statistics (read), then the gradient in place (read, write) or the count of kept entries (read). Peak memory: a
few numbers a row beside the logits. Logits in float32, bfloat16 or float16, all arithmetic in float32; deterministic.

A row is read as tiles (LANES, VECTOR), see `triton_math`.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.triton_math import (
    LOWEST,
    columns_of,
    conditions,
    exp,
    join_lanes,
    load_logits,
    online_softmax,
    row_launch,
    row_pointer,
    slope,
)
from mind_kernels.triton_variant import DTYPES, Variant


@triton.jit
def _row_statistics(
    row,
    target,
    vocabulary,
    softcap,
    temperature,
    label_smoothing,
    z_loss,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One pass over a row: (loss, nll, lse, entropy, maximum, log_total), correct."""
    # The vector of the target, for its own entry and those before it. In the loop only whole vectors are told apart:
    # a comparison an entry would cost as much as the softmax. Loaded here, it has arrived when the loop ends.
    near = target // VECTOR * VECTOR + tl.arange(0, VECTOR)
    z_near = load_logits(row, near, vocabulary, softcap, temperature, HAS_SOFTCAP)

    maximum = tl.full((LANES,), LOWEST, tl.float32)
    earlier = tl.full((LANES,), LOWEST, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    entropy_sum = tl.zeros((LANES,), tl.float32)
    z_sum = tl.zeros((LANES,), tl.float32)
    for start in range(0, vocabulary, LANES * VECTOR):
        columns = columns_of(start, LANES, VECTOR)
        z = load_logits(row, columns, vocabulary, softcap, temperature, HAS_SOFTCAP)
        tile_maximum = tl.max(z, axis=1)
        maximum, total, entropy_sum = online_softmax(z, tile_maximum, maximum, total, entropy_sum)
        ends = start + tl.arange(0, LANES) * VECTOR + VECTOR
        earlier = tl.maximum(earlier, tl.where(ends <= target, tile_maximum, LOWEST))
        if HAS_SMOOTHING:
            z_sum += tl.sum(tl.where(columns < vocabulary, z, 0.0), axis=1)

    row_maximum, total, entropy_sum = join_lanes(maximum, total, entropy_sum)
    z_target = tl.sum(tl.where(near == target, z_near, 0.0), axis=0)
    log_total = tl.log(total)
    nll = log_total - (z_target - row_maximum)
    lse = log_total + row_maximum
    loss = nll + z_loss * lse * lse
    if HAS_SMOOTHING:  # (1 - eps) nll + eps (lse - mean z) = nll + eps (z_target - mean z)
        loss += label_smoothing * (z_target - tl.sum(z_sum, axis=0) / vocabulary)
    # The first maximum is the target if no entry before it reaches it.
    first = tl.maximum(tl.max(earlier, axis=0), tl.max(tl.where(near < target, z_near, LOWEST), axis=0))
    correct = (z_target == row_maximum) & (first < z_target)
    return (loss, nll, lse, log_total - entropy_sum / total, row_maximum, log_total), correct


@triton.jit
def _statistics(
    logits,
    stride,
    target,
    numbers,
    correct,
    vocabulary,
    softcap,
    temperature,
    label_smoothing,
    z_loss,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Stores the statistics of this program's row: its pointer, its target, lse, entropy, maximum and log_total."""
    row = row_pointer(logits, tl.program_id(0), stride)
    y = tl.load(target + tl.program_id(0)).to(tl.int32)
    values, is_correct = _row_statistics(
        row, y, vocabulary, softcap, temperature, label_smoothing, z_loss, HAS_SOFTCAP, HAS_SMOOTHING, LANES, VECTOR
    )
    for k in tl.static_range(len(values)):
        tl.store(numbers + k * tl.num_programs(0) + tl.program_id(0), values[k])
    tl.store(correct + tl.program_id(0), is_correct)
    return row, y, values[2], values[3], values[4], values[5]


@triton.jit
def weights(scale, entropy_scale, lse, entropy, label_smoothing, z_loss):
    """a, b and t of the gradient with respect to z: p (a + b log p) - t [v = target], and a uniform part."""
    weight = tl.load(scale + tl.program_id(0))
    a = weight * (1.0 + 2.0 * z_loss * lse)
    b = 0.0
    if entropy_scale is not None:
        b = -tl.load(entropy_scale + tl.program_id(0))
        a += b * entropy
    return a, b, weight * (1.0 - label_smoothing)


@triton.jit
def probability_part(log_p, a, b, HAS_ENTROPY: tl.constexpr):
    """p (a + b log p); 0 where p underflows, since log p is finite."""
    factor = a
    if HAS_ENTROPY:
        factor += b * log_p
    return exp(log_p) * factor


@triton.jit
def entry_gradient(
    z,
    columns,
    target,
    maximum,
    log_total,
    a,
    b,
    t,
    softcap,
    temperature,
    HAS_ENTROPY: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """p (a + b log p), and the gradient of the projected logit without a uniform part."""
    part = probability_part((z - maximum) - log_total, a, b, HAS_ENTROPY)
    return part, (part - tl.where(columns == target, t, 0.0)) * slope(z, softcap, temperature, HAS_SOFTCAP)


@triton.jit
def load_normalizer(normalizer, row, rows):
    """maximum, log_total and lse of rows. log p is (z - maximum) - log_total: at logits of 1e4 the rounding of lse
    alone would be 1e-3 of p."""
    maximum, log_total = tl.load(normalizer + row), tl.load(normalizer + rows + row)
    return maximum, log_total, log_total + maximum


@triton.jit
def is_kept(z, columns, target, lse, log_threshold):
    """p > threshold, or the target. Written without z - lse: the compiler may fuse that into the last product of z, and
    so round it differently, in one kernel and not in another; here the same entries are kept in all of them."""
    return (z > lse + log_threshold) | (columns == target)


@triton.jit
def _row_kernel(
    logits,  # (n, V)
    stride,
    target,  # (n,)
    scale,  # (n,) or None: statistics only
    entropy_scale,  # (n,) or None
    numbers,  # (6, n): loss, nll, lse, entropy, maximum, log_total
    correct,  # (n,)
    vocabulary,
    softcap,
    temperature,
    label_smoothing,
    z_loss,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    row, y, lse, entropy, maximum, log_total = _statistics(
        logits,
        stride,
        target,
        numbers,
        correct,
        vocabulary,
        softcap,
        temperature,
        label_smoothing,
        z_loss,
        HAS_SOFTCAP,
        HAS_SMOOTHING,
        LANES,
        VECTOR,
    )
    if scale is not None:
        a, b, t = weights(scale, entropy_scale, lse, entropy, label_smoothing, z_loss)
        uniform = tl.load(scale + tl.program_id(0)) * (label_smoothing / vocabulary)
        for start in range(0, vocabulary, LANES * VECTOR):
            columns = columns_of(start, LANES, VECTOR)
            z = load_logits(row, columns, vocabulary, softcap, temperature, HAS_SOFTCAP)
            log_p = (z - maximum) - log_total
            dz = probability_part(log_p, a, b, entropy_scale is not None) - tl.where(columns == y, t, 0.0)
            if HAS_SMOOTHING:
                dz -= uniform
            dx = dz * slope(z, softcap, temperature, HAS_SOFTCAP)
            tl.store(row + columns, dx, mask=columns < vocabulary)


@triton.jit
def _count_kernel(
    logits,  # (n, V)
    stride,
    target,  # (n,)
    numbers,  # (6, n): loss, nll, lse, entropy, maximum, log_total
    correct,  # (n,)
    kept,  # (n,)
    kept_mass,  # (n,)
    vocabulary,
    softcap,
    temperature,
    label_smoothing,
    z_loss,
    log_threshold,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    row, y, lse, entropy, maximum, log_total = _statistics(
        logits,
        stride,
        target,
        numbers,
        correct,
        vocabulary,
        softcap,
        temperature,
        label_smoothing,
        z_loss,
        HAS_SOFTCAP,
        HAS_SMOOTHING,
        LANES,
        VECTOR,
    )
    count = tl.zeros((LANES,), tl.int32)
    mass = tl.zeros((LANES,), tl.float32)
    # The whole row again, mostly from the L2 cache: a tile of 16384 entries is rarely without a kept one (35 a row), so
    # to remember the maximum of each would skip next to nothing, and cost a reduction a tile.
    for start in range(0, vocabulary, LANES * VECTOR):
        columns = columns_of(start, LANES, VECTOR)
        z = load_logits(row, columns, vocabulary, softcap, temperature, HAS_SOFTCAP)
        keep = is_kept(z, columns, y, lse, log_threshold)
        count += tl.sum(keep.to(tl.int32), axis=1)
        mass += tl.sum(tl.where(keep, exp((z - maximum) - log_total), 0.0), axis=1)
    tl.store(kept + tl.program_id(0), tl.sum(count, axis=0))
    tl.store(kept_mass + tl.program_id(0), tl.sum(mass, axis=0))


def _outputs(logits: Tensor) -> tuple[Tensor, Tensor]:
    rows = logits.shape[0]
    return logits.new_empty(6, rows, dtype=torch.float32), logits.new_empty(rows, dtype=torch.bool)


def row_kernel_(
    logits: Tensor,  # (n, V), projected, stride(1) == 1; becomes the gradient where scale is given
    target: Tensor,  # (n,) int64, in [0, V)
    scale: Tensor | None,  # (n,) float32, d(total loss) / d(row loss)
    entropy_scale: Tensor | None,  # (n,) float32, d(total loss) / d(row entropy)
    head: Head,
    label_smoothing: float,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The rows' loss, nll, lse, entropy (float32) and correct (bool), (n,); `logits` become their gradient."""
    rows, vocabulary = logits.shape
    numbers, correct = _outputs(logits)
    _row_kernel[(rows,)](
        logits,
        logits.stride(0),
        target,
        scale,
        entropy_scale,
        numbers,
        correct,
        vocabulary,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        HAS_SMOOTHING=label_smoothing != 0,
        **conditions(head),
        **row_launch(vocabulary, logits.stride(0), logits.dtype),
    )
    return (*numbers[:4], correct)


def statistics(
    logits: Tensor,  # (n, V), projected, stride(1) == 1
    target: Tensor,  # (n,) int64, in [0, V)
    head: Head,
    label_smoothing: float,
    z_loss: float,
    threshold: float,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor, Tensor, Tensor]:
    """The rows' values as `row_kernel_` gives them, normalizer, kept (n,) int32 and kept_mass (n,); `logits` stay.

    Kept are the entries with p > threshold, and the target. The normalizer (2, n) is the maximum of a row and the
    logarithm of its sum of e^(z - maximum).
    """
    rows, vocabulary = logits.shape
    numbers, correct = _outputs(logits)
    kept, kept_mass = logits.new_empty(rows, dtype=torch.int32), logits.new_empty(rows, dtype=torch.float32)
    _count_kernel[(rows,)](
        logits,
        logits.stride(0),
        target,
        numbers,
        correct,
        kept,
        kept_mass,
        vocabulary,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        log_threshold=math.log(threshold),
        HAS_SMOOTHING=label_smoothing != 0,
        **conditions(head),
        **row_launch(vocabulary, logits.stride(0), logits.dtype),
    )
    return (*numbers[:4], correct), numbers[4:], kept, kept_mass


_TYPES = {
    "stride": "i32",
    "target": "*i64",
    "scale": "*fp32",
    "entropy_scale": "*fp32",
    "numbers": "*fp32",
    "correct": "*i1",
    "kept": "*i32",
    "kept_mass": "*fp32",
    "vocabulary": "i32",
    "softcap": "fp32",
    "temperature": "fp32",
    "label_smoothing": "fp32",
    "z_loss": "fp32",
    "log_threshold": "fp32",
}


def variants() -> list[Variant]:
    """Each dtype with no option and with all of them, and a vocabulary that is not a multiple of 16."""
    plain = {"HAS_SOFTCAP": False, "HAS_SMOOTHING": False}
    full = {"HAS_SOFTCAP": True, "HAS_SMOOTHING": True}
    out = []
    for dtype, name in DTYPES.items():
        types, launch = _TYPES | {"logits": f"*{name}"}, row_launch(151936, 151936, dtype)
        out += [
            Variant(
                f"row gradient {name}", _row_kernel, types, plain | launch | {"entropy_scale": None}, wide=("logits",)
            ),
            Variant(f"row gradient {name}, all options", _row_kernel, types, full | launch, wide=("logits",)),
            Variant(f"kept entries {name}, all options", _count_kernel, types, full | launch, wide=("logits",)),
            Variant(
                f"row gradient {name}, all options, unaligned",
                _row_kernel,
                types,
                full | row_launch(50257, 50257, dtype),
                wide=("logits",),
                unaligned=("stride", "vocabulary"),
            ),
        ]
    absent = {"scale": None, "entropy_scale": None}
    out.append(Variant(f"row statistics {name}", _row_kernel, types, plain | launch | absent, wide=("logits",)))
    return out
