"""Row kernels of linear cross-entropy in Triton, over a chunk of logits in memory. One program per row.

Passes: statistics (read), then the gradient in place (read, write) or the count of kept entries (read). Peak memory: a
few numbers per row beside the logits. Logits in float32, bfloat16 or float16, all arithmetic in float32; deterministic.

A row is read as tiles (LANES, VECTOR), see `triton_math`.
"""

# To a type checker tl.static_range, which Triton unrolls, is no iterator.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from mind_kernels.linear_cross_entropy._triton.terms import (
    coefficients,
    is_kept,
    loss_arguments,
    probability_part,
    with_target,
)
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowValues, RowWeights
from mind_kernels.linear_cross_entropy.logits_rows import Counted
from mind_kernels.triton_math import (
    FLOOR,
    columns_of,
    exp,
    jit,
    join_lanes,
    load_logits,
    online_softmax,
    row_launch,
    row_pointer,
    slope,
)
from mind_kernels.triton_variant import DTYPES, Variant


@jit
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
    """One pass over a row: (loss, nll, lse, entropy, maximum, log_total, others, lse_others), and correct."""
    # The vector of the target, for its own entry and those before it. In the loop only whole vectors are told apart:
    # a comparison an entry would cost as much as the softmax. Loaded here, it has arrived when the loop ends.
    near = target // VECTOR * VECTOR + tl.arange(0, VECTOR)
    z_near = load_logits(row, near, vocabulary, softcap, temperature, HAS_SOFTCAP)

    maximum = tl.full((LANES,), FLOOR, tl.float32)
    earlier = tl.full((LANES,), float("-inf"), tl.float32)
    others = tl.zeros((LANES,), tl.float32)
    entropy_sum = tl.zeros((LANES,), tl.float32)
    z_sum = tl.zeros((LANES,), tl.float32)
    for start in range(0, vocabulary, LANES * VECTOR):
        columns = columns_of(start, LANES, VECTOR)
        z = load_logits(row, columns, vocabulary, softcap, temperature, HAS_SOFTCAP)
        tile_maximum = tl.max(z, axis=1)
        if HAS_SMOOTHING:
            z_sum += tl.sum(tl.where(columns < vocabulary, z, 0.0), axis=1)
        if (target >= start) & (target < start + LANES * VECTOR):  # in one tile of the row; see `with_target`
            z = tl.where(columns == target, float("-inf"), z)
        maximum, others, entropy_sum = online_softmax(z, tile_maximum, maximum, others, entropy_sum)
        ends = start + tl.arange(0, LANES) * VECTOR + VECTOR
        earlier = tl.maximum(earlier, tl.where(ends <= target, tile_maximum, float("-inf")))

    row_maximum, others, entropy_sum = join_lanes(maximum, others, entropy_sum)
    z_target = tl.sum(tl.where(near == target, z_near, 0.0), axis=0)
    entropy, log_total, others, lse_others = with_target(row_maximum, others, entropy_sum, z_target)
    nll = log_total - (z_target - row_maximum)
    lse = log_total + row_maximum
    loss = nll
    if HAS_SMOOTHING:
        mean = tl.sum(z_sum, axis=0) / vocabulary - row_maximum
        loss = (1.0 - label_smoothing) * nll + label_smoothing * (log_total - mean)
    loss += z_loss * lse * lse
    # The first maximum is the target if no entry before it reaches it.
    first = tl.maximum(tl.max(earlier, axis=0), tl.max(tl.where(near < target, z_near, float("-inf")), axis=0))
    correct = (z_target == row_maximum) & (first < z_target)
    return (loss, nll, lse, entropy, row_maximum, log_total, others, lse_others), correct


@jit
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
    """Stores the statistics of this program's row: its pointer, its target, and the statistics but the loss."""
    row = row_pointer(logits, tl.program_id(0), stride)
    y = tl.load(target + tl.program_id(0)).to(tl.int32)
    values, is_correct = _row_statistics(
        row, y, vocabulary, softcap, temperature, label_smoothing, z_loss, HAS_SOFTCAP, HAS_SMOOTHING, LANES, VECTOR
    )
    for k in tl.static_range(len(values)):
        tl.store(numbers + k * tl.num_programs(0) + tl.program_id(0), values[k])
    tl.store(correct + tl.program_id(0), is_correct)
    loss, nll, lse, entropy, maximum, log_total, others, lse_others = values
    return row, y, nll, lse, entropy, maximum, log_total, others, lse_others


@jit
def _row_kernel(
    logits,  # (n, V)
    stride,
    target,  # (n,)
    scale,  # (n,) or None: statistics only
    entropy_scale,  # (n,) or None
    numbers,  # (8, n): loss, nll, lse, entropy, maximum, log_total, others, lse_others
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
    row, y, nll, lse, entropy, maximum, log_total, others, lse_others = _statistics(
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
        a, b, at_target = coefficients(scale, entropy_scale, nll, lse, entropy, others, label_smoothing, z_loss)
        uniform = tl.load(scale + tl.program_id(0)) * (label_smoothing / vocabulary)
        for start in range(0, vocabulary, LANES * VECTOR):
            columns = columns_of(start, LANES, VECTOR)
            z = load_logits(row, columns, vocabulary, softcap, temperature, HAS_SOFTCAP)
            part = probability_part((z - maximum) - log_total, a, b, entropy_scale is not None)
            dz = tl.where(columns == y, at_target, part)
            if HAS_SMOOTHING:
                dz -= uniform
            dx = dz * slope(z, softcap, temperature, HAS_SOFTCAP)
            tl.store(row + columns, dx, mask=columns < vocabulary)


@jit
def _count_kernel(
    logits,  # (n, V)
    stride,
    target,  # (n,)
    numbers,  # (8, n): loss, nll, lse, entropy, maximum, log_total, others, lse_others
    correct,  # (n,)
    kept,  # (n,)
    dropped_mass,  # (n,)
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
    row, y, nll, lse, entropy, maximum, log_total, others, lse_others = _statistics(
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
    dropped = tl.zeros((LANES,), tl.float32)
    # The whole row again, mostly from the L2 cache: a tile of 16384 entries is rarely without a kept one (35 per row),
    # so to remember the maximum of each would skip next to nothing, and cost a reduction per tile.
    for start in range(0, vocabulary, LANES * VECTOR):
        columns = columns_of(start, LANES, VECTOR)
        z = load_logits(row, columns, vocabulary, softcap, temperature, HAS_SOFTCAP)
        keep = is_kept(z, columns, y, lse_others, log_threshold)
        count += tl.sum(keep.to(tl.int32), axis=1)
        dropped += tl.sum(tl.where(keep, 0.0, exp((z - maximum) - log_total)), axis=1)
    tl.store(kept + tl.program_id(0), tl.sum(count, axis=0))
    tl.store(dropped_mass + tl.program_id(0), tl.sum(dropped, axis=0))


_TYPES = {
    "stride": "i32",
    "target": "*i64",
    "scale": "*fp32",
    "entropy_scale": "*fp32",
    "numbers": "*fp32",
    "correct": "*i1",
    "kept": "*i32",
    "dropped_mass": "*fp32",
    "vocabulary": "i32",
    "softcap": "fp32",
    "temperature": "fp32",
    "label_smoothing": "fp32",
    "z_loss": "fp32",
    "log_threshold": "fp32",
}


def variants() -> list[Variant]:
    """Each dtype with no option and with all of them, and a vocabulary that is not a multiple of 16."""

    def variant(label, kernel, dtype, options, vocabulary=151936, unaligned=()):
        types = _TYPES | {"logits": f"*{DTYPES[dtype]}"}
        launch = row_launch(vocabulary, vocabulary, dtype)
        name = label.format(DTYPES[dtype])
        return Variant(name, kernel, types, options | launch, wide=("logits",), unaligned=unaligned)

    plain = {"HAS_SOFTCAP": False, "HAS_SMOOTHING": False, "entropy_scale": None}
    full = {"HAS_SOFTCAP": True, "HAS_SMOOTHING": True}
    out = []
    for dtype in DTYPES:
        out += [
            variant("row gradient {}", _row_kernel, dtype, plain),
            variant("row gradient {}, all options", _row_kernel, dtype, full),
            variant("kept entries {}, all options", _count_kernel, dtype, full),
            variant(
                "row gradient {}, all options, unaligned", _row_kernel, dtype, full, 50257, ("stride", "vocabulary")
            ),
        ]
    out.append(variant("row statistics {}", _row_kernel, torch.float32, plain | {"scale": None}))
    return out


def row_kernel_(
    logits: Tensor,  # (n, V), projected, stride(1) == 1; becomes its own gradient if there are weights
    target: Tensor,  # (n,) int64, in [0, V)
    weights: RowWeights | None,  # (n,) float32
    spec: RowSpec,
) -> RowValues:
    """See `contract.RowKernels`."""
    scale, entropy_scale = (None, None) if weights is None else (weights.loss, weights.entropy)
    numbers, correct = _outputs(logits)
    vocabulary = logits.shape[1]
    _row_kernel[(logits.shape[0],)](
        logits,
        logits.stride(0),
        target,
        scale,
        entropy_scale,
        numbers,
        correct,
        vocabulary,
        HAS_SMOOTHING=spec.label_smoothing != 0,
        **loss_arguments(spec),
        **row_launch(vocabulary, logits.stride(0), logits.dtype),
    )
    return _values_and_normalizer(numbers, correct)[0]


def count(
    logits: Tensor,  # (n, V), projected, stride(1) == 1
    target: Tensor,  # (n,) int64, in [0, V)
    spec: RowSpec,
) -> Counted:
    """See `logits_rows.LogitsKernels`. The normalizer (4, n) float32 is that of `terms.load_normalizer`."""
    numbers, correct = _outputs(logits)
    rows, vocabulary = logits.shape
    kept, dropped_mass = logits.new_empty(rows, dtype=torch.int32), logits.new_empty(rows, dtype=torch.float32)
    _count_kernel[(rows,)](
        logits,
        logits.stride(0),
        target,
        numbers,
        correct,
        kept,
        dropped_mass,
        vocabulary,
        log_threshold=spec.log_threshold,
        HAS_SMOOTHING=spec.label_smoothing != 0,
        **loss_arguments(spec),
        **row_launch(vocabulary, logits.stride(0), logits.dtype),
    )
    values, normalizer = _values_and_normalizer(numbers, correct)
    return Counted(values, normalizer, kept.long(), dropped_mass, normalizer[2])


def _outputs(logits: Tensor) -> tuple[Tensor, Tensor]:
    """`numbers` (8, n) float32 and `correct` (n,) bool, as the kernels fill them."""
    rows = logits.shape[0]
    return logits.new_empty(8, rows, dtype=torch.float32), logits.new_empty(rows, dtype=torch.bool)


def _values_and_normalizer(numbers: Tensor, correct: Tensor) -> tuple[RowValues, Tensor]:
    of_values, normalizer = numbers.split(4)  # loss, nll, lse, entropy; maximum, log_total, others, lse_others
    loss, nll, lse, entropy = of_values
    return RowValues(loss, nll, lse, entropy, correct), normalizer
