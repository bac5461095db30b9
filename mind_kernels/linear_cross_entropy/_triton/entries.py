"""The sparse gradient of linear cross-entropy in Triton, from a chunk of logits in memory and their statistics.

One read of the logits for the kept entries, one program a row, and one of the sampled rows for the background
distribution, one program a block of the vocabulary. Peak memory: 8 bytes a kept entry beside the logits. Logits in
float32, bfloat16 or float16, all arithmetic in float32; deterministic: no atomics.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy._triton.rows import entry_gradient, is_kept, load_normalizer, weights
from mind_kernels.triton_math import condition, conditions, exp, load_logits, row_pointer, slope
from mind_kernels.triton_variant import DTYPES, Variant

# Entries of one block of `entries`: 8 a thread at 8 warps. That takes 64 registers, so four programs share a
# multiprocessor, and most blocks (35 kept entries lie in at most 35 of the 75 at V 151936) end at one reduction.
_BLOCK = 2048
# Kept entries whose values are computed at once.
_LIST = 128
# Rows and columns of one tile of `background`: 512 columns give 297 programs at V 151936.
_ROWS, _COLUMNS = 8, 512


def entry_launch(vocabulary: int) -> dict[str, int]:
    """Block of the vocabulary and warps of a program a row."""
    block = min(_BLOCK, max(_LIST, triton.next_power_of_2(vocabulary)))
    return {"BLOCK": block, "LIST": _LIST, "num_warps": triton.cdiv(block, 256)}


def background_launch() -> dict[str, int]:
    """Tile and warps of a program a block of the vocabulary."""
    return {"ROWS": _ROWS, "COLUMNS": _COLUMNS, "num_warps": 4}


@triton.jit
def _entries_kernel(
    logits,  # (n, V)
    stride,
    target,  # (n,)
    normalizer,  # (2, n)
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
    maximum, log_total, lse = load_normalizer(normalizer, r, tl.num_programs(0))
    first, last = tl.load(offsets + r), tl.load(offsets + r + 1)
    # The columns first, so that the long loop holds nothing but them.
    base = first
    for start in range(0, vocabulary, BLOCK):
        block = start + tl.arange(0, BLOCK)
        keep = is_kept(
            load_logits(row, block, vocabulary, softcap, temperature, HAS_SOFTCAP), block, y, lse, log_threshold
        )
        count = tl.sum(keep.to(tl.int32), axis=0)
        if count > 0:
            tl.store(columns + base + tl.cumsum(keep.to(tl.int32), axis=0) - 1, block, mask=keep)
            base += count
    tl.debug_barrier()  # other threads of the program wrote the columns
    a, b, t = weights(scale, entropy_scale, lse, tl.load(entropy + r), label_smoothing, z_loss)
    total = tl.zeros((LIST,), tl.float32)
    for start in range(first, last, LIST):
        entry = start + tl.arange(0, LIST)
        listed = entry < last
        column = tl.load(columns + entry, mask=listed, other=0)
        z = load_logits(row, column, vocabulary, softcap, temperature, HAS_SOFTCAP)
        part, dx = entry_gradient(
            z, column, y, maximum, log_total, a, b, t, softcap, temperature, entropy_scale is not None, HAS_SOFTCAP
        )
        tl.store(values + entry, dx, mask=listed)
        total += tl.where(listed, part, 0.0)
    tl.store(kept_sum + r, tl.sum(total, axis=0))


@triton.jit
def _background_kernel(
    logits,  # (n, V)
    stride,
    rows,  # (m,)
    count,
    target,  # (n,)
    normalizer,  # (2, n)
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
        maximum, log_total, lse = load_normalizer(normalizer, r, chunk_rows)
        y = tl.load(target + r).to(tl.int32)[:, None]
        dropped = inside & ~is_kept(z, columns[None, :], y, lse[:, None], log_threshold)
        weight = tl.load(row_weight + index, mask=listed, other=0.0)[:, None]
        part = weight * exp((z - maximum[:, None]) - log_total[:, None]) * slope(z, softcap, temperature, HAS_SOFTCAP)
        total += tl.where(dropped, part, 0.0)
    tl.store(background + columns, tl.sum(total, axis=0), mask=columns < vocabulary)


def entries(
    logits: Tensor,  # (n, V), projected, stride(1) == 1
    target: Tensor,  # (n,) int64
    normalizer: Tensor,  # (2, n) float32, of `statistics`
    entropy: Tensor,  # (n,) float32, of `statistics`
    scale: Tensor,  # (n,) float32
    entropy_scale: Tensor | None,  # (n,) float32
    head: Head,
    label_smoothing: float,
    z_loss: float,
    threshold: float,
    offsets: Tensor,  # (n + 1,) int64, the exclusive prefix sum of `kept`
    total: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """columns (total,) int32, values (total,) float32 and kept_sum (n,) float32 of the kept entries.

    Row after row, in increasing column order. A value is the gradient of its projected logit without the uniform part
    of label smoothing; kept_sum adds up p (a + b log p), so neither target nor slope is in it.
    """
    rows, vocabulary = logits.shape
    columns, values = logits.new_empty(total, dtype=torch.int32), logits.new_empty(total, dtype=torch.float32)
    kept_sum = torch.empty_like(entropy)
    _entries_kernel[(rows,)](
        logits,
        logits.stride(0),
        target,
        normalizer,
        entropy,
        scale,
        entropy_scale,
        offsets,
        columns,
        values,
        kept_sum,
        vocabulary,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        log_threshold=math.log(threshold),
        **conditions(head),
        **entry_launch(vocabulary),
    )
    return columns, values, kept_sum


def background(
    logits: Tensor,  # (n, V), projected, stride(1) == 1
    rows: Tensor,  # (m,) int64, rows of `logits`
    target: Tensor,  # (n,) int64
    normalizer: Tensor,  # (2, n) float32, of `statistics`
    row_weight: Tensor,  # (m,) float32, of the listed rows
    head: Head,
    threshold: float,
) -> Tensor:
    """(V,) float32: the weighted sum over `rows` of dropped probability x slope of the logits."""
    vocabulary = logits.shape[1]
    out = logits.new_empty(vocabulary, dtype=torch.float32)
    launch = background_launch()
    _background_kernel[(triton.cdiv(vocabulary, launch["COLUMNS"]),)](
        logits,
        logits.stride(0),
        rows,
        rows.numel(),
        target,
        normalizer,
        logits.shape[0],
        row_weight,
        out,
        vocabulary,
        log_threshold=math.log(threshold),
        **conditions(head),
        **launch,
    )
    return out


_TYPES = {
    "stride": "i32",
    "target": "*i64",
    "normalizer": "*fp32",
    "chunk_rows": "i32",
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
    out = []
    for dtype in DTYPES.values():
        types = _TYPES | {"logits": f"*{dtype}"}
        out += [
            Variant(
                f"entries {dtype}, all options",
                _entries_kernel,
                types,
                {"HAS_SOFTCAP": True} | entry_launch(151936),
                wide=("logits",),
            ),
            Variant(
                f"background {dtype}, softcap",
                _background_kernel,
                types,
                {"HAS_SOFTCAP": True} | background_launch(),
                wide=("logits",),
            ),
        ]
    plain = {"HAS_SOFTCAP": False, "entropy_scale": None}
    out.append(Variant(f"entries {dtype}", _entries_kernel, types, plain | entry_launch(151936), wide=("logits",)))
    return out
