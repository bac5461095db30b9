"""The sparse gradient of linear cross-entropy in Triton, from a chunk of logits in memory and their statistics.

Two kernels: one reads the logits once for the kept entries, with one program per row; the other reads the sampled rows
once for the background distribution, with one program per block of the vocabulary. Peak memory: 8 bytes per kept entry
beside the logits. Logits in float32, bfloat16 or float16, all arithmetic in float32; deterministic: no atomics.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from mind_kernels.linear_cross_entropy._triton.terms import (
    coefficients,
    entry_gradient,
    is_kept,
    load_normalizer,
    loss_arguments,
)
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowValues, RowWeights
from mind_kernels.linear_cross_entropy.logits_rows import KeptEntries
from mind_kernels.triton_math import (
    cdiv,
    condition,
    conditions,
    exp,
    jit,
    load_logits,
    next_power_of_2,
    row_pointer,
    slope,
)
from mind_kernels.triton_variant import DTYPES, Variant

# Entries of one block of `entries`: 8 per thread at 8 warps. That takes 64 registers, so four programs share a
# multiprocessor, and most blocks have no kept entry and need only one reduction (at V 151936, 35 kept entries are in at
# most 35 of the 75 blocks).
_BLOCK = 2048
# Kept entries whose values are computed at once.
_LIST = 128
# Rows and columns of one tile of `background`: 512 columns give 297 programs at V 151936.
_ROWS, _COLUMNS = 8, 512


def entry_launch(vocabulary: int) -> dict[str, int]:
    """Block of the vocabulary and warps of a program per row."""
    block = min(_BLOCK, max(_LIST, next_power_of_2(vocabulary)))
    return {"BLOCK": block, "LIST": _LIST, "num_warps": cdiv(block, 256)}


def background_launch() -> dict[str, int]:
    """Tile and warps of a program per block of the vocabulary."""
    return {"ROWS": _ROWS, "COLUMNS": _COLUMNS, "num_warps": 4}


@jit
def _entries_kernel(
    logits,  # (n, V)
    stride,
    target,  # (n,)
    normalizer,  # (4, n)
    nll,  # (n,)
    entropy,  # (n,)
    scale,  # (n,)
    entropy_scale,  # (n,) or None
    offsets,  # (n + 1,)
    columns,  # (total,)
    values,  # (total,)
    kept_sum,  # (n,)
    vocabulary,
    softcap,
    temperature,
    label_smoothing,
    z_loss,
    log_threshold,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
    LIST: tl.constexpr,
):
    r = tl.program_id(0)
    row = row_pointer(logits, r, stride)
    y = tl.load(target + r).to(tl.int32)
    maximum, log_total, others, lse_others = load_normalizer(normalizer, r, tl.num_programs(0))
    first, last = tl.load(offsets + r), tl.load(offsets + r + 1)
    # First only the columns, so that the long loop needs no other registers.
    base = first
    for start in range(0, vocabulary, BLOCK):
        block = start + tl.arange(0, BLOCK)
        keep = is_kept(
            load_logits(row, block, vocabulary, softcap, temperature, HAS_SOFTCAP), block, y, lse_others, log_threshold
        )
        count = tl.sum(keep.to(tl.int32), axis=0)
        if count > 0:
            tl.store(columns + base + tl.cumsum(keep.to(tl.int32), axis=0) - 1, block, mask=keep)
            base += count
    tl.debug_barrier()  # other threads of the program wrote the columns
    a, b, at_target = coefficients(
        scale,
        entropy_scale,
        tl.load(nll + r),
        log_total + maximum,
        tl.load(entropy + r),
        others,
        label_smoothing,
        z_loss,
    )
    total = tl.zeros((LIST,), tl.float32)
    for start in range(first, last, LIST):
        entry = start + tl.arange(0, LIST)
        listed = entry < last
        column = tl.load(columns + entry, mask=listed, other=0)
        z = load_logits(row, column, vocabulary, softcap, temperature, HAS_SOFTCAP)
        dz, dx = entry_gradient(
            z,
            column,
            y,
            maximum,
            log_total,
            a,
            b,
            at_target,
            softcap,
            temperature,
            entropy_scale is not None,
            HAS_SOFTCAP,
        )
        tl.store(values + entry, dx, mask=listed)
        total += tl.where(listed, dz, 0.0)
    tl.store(kept_sum + r, tl.sum(total, axis=0))


@jit
def _background_kernel(
    logits,  # (n, V)
    stride,
    rows,  # (m,)
    count,
    target,  # (n,)
    normalizer,  # (4, n)
    chunk_rows,
    row_weight,  # (m,)
    background,  # (V,)
    vocabulary,
    softcap,
    temperature,
    log_threshold,
    HAS_SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)  # summed over its rows once, at the end
    for start in range(0, count, ROWS):
        index = start + tl.arange(0, ROWS)
        listed = index < count
        r = tl.load(rows + index, mask=listed, other=0)
        row = row_pointer(logits, r, stride)
        inside = listed[:, None] & (columns < vocabulary)[None, :]
        x = tl.load(row[:, None] + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        z = condition(x, softcap, temperature, HAS_SOFTCAP)
        maximum, log_total, _, lse_others = load_normalizer(normalizer, r, chunk_rows)
        y = tl.load(target + r).to(tl.int32)[:, None]
        dropped = inside & ~is_kept(z, columns[None, :], y, lse_others[:, None], log_threshold)
        weight = tl.load(row_weight + index, mask=listed, other=0.0)[:, None]
        part = weight * exp((z - maximum[:, None]) - log_total[:, None]) * slope(z, softcap, temperature, HAS_SOFTCAP)
        total += tl.where(dropped, part, 0.0)
    tl.store(background + columns, tl.sum(total, axis=0), mask=columns < vocabulary)


_TYPES = {
    "stride": "i32",
    "target": "*i64",
    "normalizer": "*fp32",
    "chunk_rows": "i32",
    "nll": "*fp32",
    "entropy": "*fp32",
    "scale": "*fp32",
    "entropy_scale": "*fp32",
    "offsets": "*i64",
    "columns": "*i32",
    "values": "*fp32",
    "kept_sum": "*fp32",
    "rows": "*i64",
    "count": "i32",
    "row_weight": "*fp32",
    "background": "*fp32",
    "vocabulary": "i32",
    "softcap": "fp32",
    "temperature": "fp32",
    "label_smoothing": "fp32",
    "z_loss": "fp32",
    "log_threshold": "fp32",
}


def variants() -> list[Variant]:
    """Each dtype with all options, and one with none."""

    def variant(name, kernel, dtype, options, spills=""):
        types = _TYPES | {"logits": f"*{DTYPES[dtype]}"}
        return Variant(name, kernel, types, options, wide=("logits",), harmless_spills=spills)

    full, plain = {"HAS_SOFTCAP": True}, {"HAS_SOFTCAP": False, "entropy_scale": None}
    out = []
    for dtype, name in DTYPES.items():
        out += [
            variant(f"entries {name}, all options", _entries_kernel, dtype, full | entry_launch(151936)),
            variant(f"background {name}, softcap", _background_kernel, dtype, full | background_launch()),
        ]
    spills = "8 bytes on sm_100, in 2 instructions"
    return [*out, variant("entries fp32", _entries_kernel, torch.float32, plain | entry_launch(151936), spills)]


def entries(
    logits: Tensor,  # (n, V), projected, stride(1) == 1
    target: Tensor,  # (n,) int64
    normalizer: Tensor,  # (4, n) float32, of `rows.count`
    values: RowValues,  # (n,) float32, of `rows.count`
    weights: RowWeights,  # (n,) float32
    spec: RowSpec,
    offsets: Tensor,  # (n + 1,) int64, the exclusive prefix sum of `kept`
    total: int,
) -> KeptEntries:
    """See `logits_rows.LogitsKernels`.

    A value is the gradient of a projected logit, without the uniform part of label smoothing; kept_sum is the sum of
    the gradients of the logits z, before the slope.
    """
    vocabulary = logits.shape[1]
    columns = logits.new_empty(total, dtype=torch.int32)
    entry_values = logits.new_empty(total, dtype=torch.float32)
    kept_sum = torch.empty_like(values.entropy)
    _entries_kernel[(logits.shape[0],)](
        logits,
        logits.stride(0),
        target,
        normalizer,
        values.nll,
        values.entropy,
        weights.loss,
        weights.entropy,
        offsets,
        columns,
        entry_values,
        kept_sum,
        vocabulary,
        log_threshold=spec.log_threshold,
        **loss_arguments(spec),
        **entry_launch(vocabulary),
    )
    return KeptEntries(columns, entry_values, kept_sum)


def background(
    logits: Tensor,  # (n, V), projected, stride(1) == 1
    rows: Tensor,  # (m,) int64, rows of `logits`
    target: Tensor,  # (n,) int64
    normalizer: Tensor,  # (4, n) float32, of `rows.count`
    weight: Tensor,  # (m,) float32, of the listed rows
    spec: RowSpec,
) -> Tensor:
    """(V,) float32: the weighted sum over `rows` of dropped probability x slope of the logits."""
    vocabulary = logits.shape[1]
    out = logits.new_empty(vocabulary, dtype=torch.float32)
    launch = background_launch()
    _background_kernel[(cdiv(vocabulary, launch["COLUMNS"]),)](
        logits,
        logits.stride(0),
        rows,
        rows.numel(),
        target,
        normalizer,
        logits.shape[0],
        weight,
        out,
        vocabulary,
        log_threshold=spec.log_threshold,
        **conditions(spec.head),
        **launch,
    )
    return out
