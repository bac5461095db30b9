"""Triton row kernels for a head that is split over the vocabulary, on a chunk of a shard's logits. One program per row.

Passes: the sums over the row's entries in this shard (read); after these have been combined with those of the other
shards, the gradient in place (read, write) or the count of kept entries (read), which `entries` then lists. Logits,
arithmetic and passes are those of `rows`.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from mind_kernels.linear_cross_entropy._triton.passes import count_kept, row_sums, write_gradient
from mind_kernels.linear_cross_entropy._triton.terms import load_normalizer
from mind_kernels.linear_cross_entropy.contract import RowSpec
from mind_kernels.linear_cross_entropy.logits_rows import Counted
from mind_kernels.linear_cross_entropy.shard_contract import GradientTerms, RowSums
from mind_kernels.linear_cross_entropy.shard_rows import JoinedRows
from mind_kernels.triton_math import LOWEST, conditions, exp, jit, load_logits, row_launch, row_pointer
from mind_kernels.triton_variant import DTYPES, Variant

# maximum, others, moment, at_target, sum
_FIELDS = 5


@jit
def _shard_sums_kernel(
    logits,  # (n, V of the shard)
    stride,
    target,  # (n,), -1 if it is in another shard
    numbers,  # (_FIELDS, n)
    argmax,  # (n,)
    vocabulary,
    softcap,
    temperature,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    r, rows = tl.program_id(0), tl.num_programs(0)
    row = row_pointer(logits, r, stride)
    y = tl.load(target + r).to(tl.int32)
    maximum, others, moment, z_target, z_sum, _, first = row_sums(
        row, y, vocabulary, softcap, temperature, HAS_SOFTCAP, HAS_SMOOTHING, LANES, VECTOR
    )
    shifted = z_target - maximum
    of_target = tl.where(y >= 0, exp(shifted), 0.0)
    moment += of_target * tl.maximum(shifted, LOWEST)
    # No exponential: all entries are minus infinity.
    tl.store(numbers + r, tl.where(others + of_target == 0, float("-inf"), maximum))
    tl.store(numbers + rows + r, others)
    tl.store(numbers + 2 * rows + r, moment)
    tl.store(numbers + 3 * rows + r, z_target)
    tl.store(numbers + 4 * rows + r, z_sum)
    # Compares with the largest of this vector, not with the row's maximum: z, computed again, might be rounded
    # differently.
    of_vector = first + tl.arange(0, VECTOR)
    z = load_logits(row, of_vector, vocabulary, softcap, temperature, HAS_SOFTCAP)
    largest = first + tl.argmax(z, axis=0, tie_break_left=True)
    tl.store(argmax + r, tl.minimum(largest, vocabulary - 1).to(tl.int64))


@jit
def _shard_gradient_kernel(
    logits,  # (n, V of the shard)
    stride,
    target,  # (n,), -1 if it is in another shard
    maximum,  # (n,), of the whole row, as the following ones
    log_total,  # (n,)
    a,  # (n,)
    b,  # (n,) or None
    at_target,  # (n,)
    uniform,  # (n,) or None
    vocabulary,
    softcap,
    temperature,
    HAS_SOFTCAP: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    r = tl.program_id(0)
    row = row_pointer(logits, r, stride)
    y = tl.load(target + r).to(tl.int32)
    of_entropy, of_uniform = 0.0, 0.0
    if b is not None:
        of_entropy = tl.load(b + r)
    if uniform is not None:
        of_uniform = tl.load(uniform + r)
    write_gradient(
        row,
        y,
        tl.load(maximum + r),
        tl.load(log_total + r),
        tl.load(a + r),
        of_entropy,
        tl.load(at_target + r),
        of_uniform,
        vocabulary,
        softcap,
        temperature,
        b is not None,
        HAS_SOFTCAP,
        uniform is not None,
        LANES,
        VECTOR,
    )


@jit
def _shard_count_kernel(
    logits,  # (n, V of the shard)
    stride,
    target,  # (n,), -1 if it is in another shard
    normalizer,  # (4, n), of the whole row
    kept,  # (n,)
    dropped_mass,  # (n,)
    vocabulary,
    softcap,
    temperature,
    log_threshold,
    HAS_SOFTCAP: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    r = tl.program_id(0)
    maximum, log_total, _, lse_others = load_normalizer(normalizer, r, tl.num_programs(0))
    count_kept(
        row_pointer(logits, r, stride),
        tl.load(target + r).to(tl.int32),
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
    "numbers": "*fp32",
    "argmax": "*i64",
    "maximum": "*fp32",
    "log_total": "*fp32",
    "a": "*fp32",
    "b": "*fp32",
    "at_target": "*fp32",
    "uniform": "*fp32",
    "normalizer": "*fp32",
    "kept": "*i32",
    "dropped_mass": "*fp32",
    "vocabulary": "i32",
    "softcap": "fp32",
    "temperature": "fp32",
    "log_threshold": "fp32",
}


def variants() -> list[Variant]:
    """Each dtype without options and with all of them, for an eighth of a vocabulary, and for one that is not a
    multiple of 16."""

    def variant(label, kernel, dtype, options, vocabulary=18992, unaligned=()):
        types = _TYPES | {"logits": f"*{DTYPES[dtype]}"}
        launch = row_launch(vocabulary, vocabulary, dtype)
        name = f"shard {label.format(DTYPES[dtype])}"
        return Variant(name, kernel, types, options | launch, wide=("logits",), unaligned=unaligned)

    capped, not_capped = {"HAS_SOFTCAP": True}, {"HAS_SOFTCAP": False}
    sums = _shard_sums_kernel, not_capped | {"HAS_SMOOTHING": False}, capped | {"HAS_SMOOTHING": True}
    gradient = _shard_gradient_kernel, not_capped | {"b": None, "uniform": None}, capped
    unaligned = 50257, ("stride", "vocabulary")
    out = []
    for dtype in DTYPES:
        for name, (kernel, plain, full) in (("sums {}", sums), ("gradient {}", gradient)):
            out += [
                variant(name, kernel, dtype, plain),
                variant(f"{name}, all options", kernel, dtype, full),
                variant(f"{name}, all options, unaligned", kernel, dtype, full, *unaligned),
            ]
        out.append(variant("kept entries {}, softcap", _shard_count_kernel, dtype, capped))
    return out


def shard_sums(
    logits: Tensor,  # (n, V of the shard), projected, stride(1) == 1, V > 0
    target: Tensor,  # (n,) int64, in [-1, V)
    spec: RowSpec,
) -> RowSums:
    """See `shard_contract.ShardKernels`."""
    rows, vocabulary = logits.shape
    numbers = logits.new_empty(_FIELDS, rows, dtype=torch.float32)
    argmax = torch.empty_like(target)
    _shard_sums_kernel[(rows,)](
        logits,
        logits.stride(0),
        target,
        numbers,
        argmax,
        vocabulary,
        HAS_SMOOTHING=spec.label_smoothing != 0,
        **conditions(spec.head),
        **row_launch(vocabulary, logits.stride(0), logits.dtype),
    )
    return RowSums(*numbers, argmax)


def shard_gradient_(
    logits: Tensor,  # (n, V of the shard), projected, stride(1) == 1, V > 0
    target: Tensor,  # (n,) int64, in [-1, V)
    terms: GradientTerms,  # (n,) float32
    spec: RowSpec,
) -> None:
    """See `shard_contract.ShardKernels`."""
    rows, vocabulary = logits.shape
    _shard_gradient_kernel[(rows,)](
        logits,
        logits.stride(0),
        target,
        terms.maximum,
        terms.log_total,
        terms.a,
        terms.b,
        terms.at_target,
        terms.uniform,
        vocabulary,
        **conditions(spec.head),
        **row_launch(vocabulary, logits.stride(0), logits.dtype),
    )


def count_shard(
    logits: Tensor,  # (n, V of the shard), projected, stride(1) == 1, V > 0
    target: Tensor,  # (n,) int64, in [-1, V)
    joined: JoinedRows,  # (n,) float32
    spec: RowSpec,
) -> Counted:
    """See `sparse_shard_rows.SparseShardKernels`. The normalizer (4, n) float32 is that of `terms.load_normalizer`."""
    rows, vocabulary = logits.shape
    normalizer = torch.stack([joined.maximum, joined.log_total, joined.others, joined.lse_others])
    kept, dropped_mass = logits.new_empty(rows, dtype=torch.int32), logits.new_empty(rows, dtype=torch.float32)
    _shard_count_kernel[(rows,)](
        logits,
        logits.stride(0),
        target,
        normalizer,
        kept,
        dropped_mass,
        vocabulary,
        log_threshold=spec.log_threshold,
        **conditions(spec.head),
        **row_launch(vocabulary, logits.stride(0), logits.dtype),
    )
    return Counted(joined.values, normalizer, kept.long(), dropped_mass, joined.others)
