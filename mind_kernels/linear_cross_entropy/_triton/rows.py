"""Row kernels of linear cross-entropy in Triton, over a chunk of logits in memory. One program per row.

Passes: statistics (read), then the gradient in place (read, write) or the count of kept entries (read). Peak memory: a
few numbers per row beside the logits. Logits in float32, bfloat16 or float16, all arithmetic in float32; deterministic.

A row is read as tiles (LANES, VECTOR), see `triton_math`.
"""

# Type checkers do not see that tl.static_range, which Triton unrolls, is an iterator.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from mind_kernels.linear_cross_entropy._triton.passes import count_kept, row_sums, write_gradient
from mind_kernels.linear_cross_entropy._triton.terms import coefficients, loss_arguments, with_target
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowValues, RowWeights
from mind_kernels.linear_cross_entropy.logits_rows import Counted
from mind_kernels.triton_math import jit, row_launch, row_pointer
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
    """(loss, nll, lse, entropy, maximum, log_total, others, lse_others) of a row, and correct."""
    row_maximum, others, entropy_sum, z_target, z_sum, before, _ = row_sums(
        row, target, vocabulary, softcap, temperature, HAS_SOFTCAP, HAS_SMOOTHING, LANES, VECTOR
    )
    entropy, log_total, others, lse_others = with_target(row_maximum, others, entropy_sum, z_target)
    nll = log_total - (z_target - row_maximum)
    lse = log_total + row_maximum
    loss = nll
    if HAS_SMOOTHING:
        mean = z_sum / vocabulary - row_maximum
        loss = (1.0 - label_smoothing) * nll + label_smoothing * (log_total - mean)
    loss += z_loss * lse * lse
    # The target is the first maximum if no entry before it is as large.
    correct = (z_target == row_maximum) & (before < z_target)
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
    """Stores the statistics of this program's row; returns its pointer, its target, and all statistics but the loss."""
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
        write_gradient(
            row,
            y,
            maximum,
            log_total,
            a,
            b,
            at_target,
            uniform,
            vocabulary,
            softcap,
            temperature,
            entropy_scale is not None,
            HAS_SOFTCAP,
            HAS_SMOOTHING,
            LANES,
            VECTOR,
        )


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
    count_kept(
        row,
        y,
        maximum,
        log_total,
        lse_others,
        kept,
        dropped_mass,
        vocabulary,
        softcap,
        temperature,
        log_threshold,
        HAS_SOFTCAP,
        LANES,
        VECTOR,
    )


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
    """Uninitialized `numbers` (8, n) float32 and `correct` (n,) bool, which the kernels fill."""
    rows = logits.shape[0]
    return logits.new_empty(8, rows, dtype=torch.float32), logits.new_empty(rows, dtype=torch.bool)


def _values_and_normalizer(numbers: Tensor, correct: Tensor) -> tuple[RowValues, Tensor]:
    of_values, normalizer = numbers.split(4)  # loss, nll, lse, entropy; maximum, log_total, others, lse_others
    loss, nll, lse, entropy = of_values
    return RowValues(loss, nll, lse, entropy, correct & nll.isfinite()), normalizer
