"""Row statistics of linear cross-entropy in Triton, computed from hidden states and head without storing logits.

One pass over the vocabulary with a tile of logits in registers; the vocabulary is split over programs, and PyTorch then
merges their results. Peak memory: 24 bytes per row and split, and 4 bytes per row and vocabulary tile for tile maxima.
Products of hidden and weight in their dtype, accumulated in float32 (float32 operands: no TF32); everything after them
is float32. Deterministic.

Program order, counted for N 16384, D 3584, V 151936 in bfloat16 on 132 multiprocessors. A program computes 128 rows for
one split of the vocabulary, 256 entries at a time: 57,000 tensor-core cycles each, and then about 2,100 for the softmax
(1,050 instructions per warp). Programs that run together are G row blocks x 132 / G splits. At each step they read the
same G x 0.92 MB of hidden states and 132 / G x 1.84 MB of weight. The sum is least at G = sqrt(132 x 256 / 128) = 16:
30 MB, which fits the L2 cache of 50 MB. So the weight is read from device memory once per group, 8 times: 8.7 GB, 2 ms
at 4.3 TB/s, in addition to 22.6 ms of products. All 128 row blocks at once would read 117 MB of hidden states in each
step of 0.04 ms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy._triton.stream_tiles import Tile, chosen_tile, label, stream_tiles
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowValues
from mind_kernels.linear_cross_entropy.shard_contract import RowSums
from mind_kernels.triton_math import FLOOR, LOWEST, cdiv, condition, conditions, exp, jit, row_pointer
from mind_kernels.triton_variant import DTYPES, Variant

# Vocabulary entries of a tile, the unit of `tile_maxima` and of kept pieces.
TILE = 128
# The cost of starting and ending a program, in column blocks: filling the pipeline and writing the partial results. An
# estimate, not a measurement.
_START = 0.5
# Fields of the partial results.
_FIELDS = 6


@lru_cache
def stream_order(rows: int, vocabulary: int, block_n: int, block_v: int, processors: int) -> dict[str, int]:
    """The number of row blocks per group, and of splits of the vocabulary, with the fewest idle multiprocessors at the
    end."""
    group = round(math.sqrt(processors * block_v / block_n))
    row_blocks, column_blocks = cdiv(rows, block_n), cdiv(vocabulary, block_v)

    def duration(length: int) -> tuple[float, int]:
        waves = cdiv(row_blocks * cdiv(column_blocks, length), processors)
        return waves * (length + _START), -length

    # With longer splits than these, more row blocks than a group would run at once.
    longest = max(1, column_blocks * group // processors)
    length = min(range(1, longest + 1), key=duration)
    return {"group": group, "splits": cdiv(column_blocks, length), "split_size": length * block_v}


def is_aligned(tensor: Tensor) -> bool:
    """Whether every row of a matrix begins at a multiple of 16 bytes."""
    return tensor.data_ptr() % 16 == 0 and tensor.stride(0) * tensor.element_size() % 16 == 0


def capability_and_processors(device: torch.device) -> tuple[int, int]:
    """10 major + minor, and the number of multiprocessors; on a CPU, Triton's interpreter behaves as sm_90."""
    if device.type == "cpu":
        return 90, 4
    properties = torch.cuda.get_device_properties(device)
    return 10 * properties.major + properties.minor, properties.multi_processor_count


@jit
def _row_block_and_split(row_blocks, splits, group):
    """The row block and split of this program: programs go through groups of row blocks, and within a group split by
    split."""
    program = tl.program_id(0)
    first = program // (group * splits) * group
    size = tl.minimum(row_blocks - first, group)
    within = program % (group * splits)
    return first + within % size, within // size


@jit
def load_block(source, stride, row, rows, d, size, BLOCK_D: tl.constexpr):
    """Rows `row` and columns d to d + BLOCK_D of source (rows, size); zero outside."""
    column = d + tl.arange(0, BLOCK_D)
    inside = (row[:, None] < rows) & (column[None, :] < size)
    return tl.load(row_pointer(source, row, stride)[:, None] + column[None, :], mask=inside, other=0.0)


@jit
def _stream_kernel(
    target,  # (n,)
    bias,  # (V,) or None
    partials,  # (_FIELDS, splits, n)
    tile_maxima,  # (n, tiles) or None
    hidden,  # (n, D), or its descriptor
    hidden_stride,
    weight,  # (V, D), or its descriptor
    weight_stride,
    rows,
    size,
    vocabulary,
    softcap,
    temperature,
    group,
    splits,
    split_size,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TMA: tl.constexpr,
):
    row_block, split = _row_block_and_split(tl.cdiv(rows, BLOCK_N), splits, group)
    row = row_block * BLOCK_N + tl.arange(0, BLOCK_N)
    y = tl.load(target + row, mask=row < rows, other=0).to(tl.int32)
    maximum = tl.full((BLOCK_N,), FLOOR, tl.float32)
    # The largest logit before the target: if it is as large as the target's, the target is not the first maximum.
    earlier = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    others = tl.zeros((BLOCK_N,), tl.float32)
    entropy_sum = tl.zeros((BLOCK_N,), tl.float32)
    z_target = tl.zeros((BLOCK_N,), tl.float32)
    z_sum = tl.zeros((BLOCK_N,), tl.float32)
    stop = tl.minimum((split + 1) * split_size, vocabulary)
    for start in tl.range(split * split_size, stop, BLOCK_V, flatten=TMA):
        x = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
        column = start + tl.arange(0, BLOCK_V)
        for d in range(0, size, BLOCK_D):
            if TMA:
                h, w = hidden.load([row_block * BLOCK_N, d]), weight.load([start, d])
            else:
                h = load_block(hidden, hidden_stride, row, rows, d, size, BLOCK_D)
                w = load_block(weight, weight_stride, column, vocabulary, d, size, BLOCK_D)
            x = tl.dot(h, w.T, x, input_precision="ieee")
        if bias is not None:
            x += tl.load(bias + column, mask=column < vocabulary, other=0.0).to(tl.float32)[None, :]
        z = condition(x, softcap, temperature, HAS_SOFTCAP)
        if HAS_SMOOTHING:
            z_sum += tl.sum(z, axis=1)  # beyond the vocabulary, weight, bias and z are zero
        if start + BLOCK_V > vocabulary:
            z = tl.where(column[None, :] < vocabulary, z, float("-inf"))
        tile_maximum = tl.max(tl.reshape(z, (BLOCK_N, BLOCK_V // TILE, TILE)), axis=2)
        if tile_maxima is not None:
            tile, tiles = start // TILE + tl.arange(0, BLOCK_V // TILE), tl.cdiv(vocabulary, TILE)
            tl.store(
                row_pointer(tile_maxima, row, tiles)[:, None] + tile[None, :],
                tile_maximum,
                mask=(row[:, None] < rows) & (tile[None, :] < tiles),
            )
        block_maximum = tl.max(tile_maximum, axis=1)
        before = tl.where(y > start, block_maximum, float("-inf"))
        z_here = tl.zeros((BLOCK_N,), tl.float32)
        here = (y >= start) & (y < start + BLOCK_V)
        any_here = tl.max(here.to(tl.int32), axis=0) > 0
        # Compares entries with targets only if a row has its target here: this is half of the instructions of the
        # block.
        if any_here:
            z_here = tl.sum(tl.where(column[None, :] == y[:, None], z, 0.0), axis=1)
            before = tl.max(tl.where(column[None, :] < y[:, None], z, float("-inf")), axis=1)
        z_target += z_here
        earlier = tl.maximum(earlier, before)
        # As `online_softmax`, but the sums leave out the target: see `_merge`. Each of the two branches needs one tile:
        # with z and e^(z - m) at the same time, registers would spill.
        grown = tl.maximum(maximum, block_maximum)
        rise = tl.maximum(maximum - grown, LOWEST)
        decay = exp(rise)
        shifted = z - grown[:, None]
        exponential = exp(shifted)
        of_target = exp(z_here - grown) * tl.maximum(z_here - grown, LOWEST)  # 0 if it is the maximum: no digit is lost
        of_block = tl.sum(exponential * tl.maximum(shifted, LOWEST), axis=1) - tl.where(here, of_target, 0.0)
        block_total = tl.sum(exponential, axis=1)
        if any_here:
            without = tl.sum(tl.where(column[None, :] == y[:, None], 0.0, exponential), axis=1)
            block_total = tl.where(here, without, block_total)
        entropy_sum = (entropy_sum + others * rise) * decay + of_block
        others = others * decay + block_total
        maximum = grown
    values = (maximum, others, entropy_sum, z_target, earlier, z_sum)
    for field in tl.static_range(len(values)):
        tl.store(row_pointer(partials, field * splits + split, rows) + row, values[field], mask=row < rows)


_TYPES = {
    "target": "*i64",
    "partials": "*fp32",
    "tile_maxima": "*fp32",
    "hidden_stride": "i32",
    "weight_stride": "i32",
    "rows": "i32",
    "size": "i32",
    "vocabulary": "i32",
    "softcap": "fp32",
    "temperature": "fp32",
    "group": "i32",
    "splits": "i32",
    "split_size": "i32",
}
_OPTIONS = {
    "no option": {"HAS_SOFTCAP": False, "HAS_SMOOTHING": False, "bias": None},
    "all but a bias": {"HAS_SOFTCAP": True, "HAS_SMOOTHING": True, "bias": None},
    "all options": {"HAS_SOFTCAP": True, "HAS_SMOOTHING": True},
}


def stream_variants(dtype: torch.dtype, capability: int, aligned: bool, options: str) -> list[Variant]:
    """The variants that `stream_statistics` may launch on sm_`capability`, the default first."""
    biased = "bias" not in _OPTIONS[options]
    tiles = stream_tiles(dtype, capability, aligned, biased)
    return [
        _variant(dtype, capability, aligned, options, tile, "" if tile is tiles[0] else f", {label(tile)}")
        for tile in tiles
    ]


def _variant(dtype: torch.dtype, capability: int, aligned: bool, options: str, tile: Tile, told: str) -> Variant:
    name = DTYPES[dtype]
    operand = f"tensordesc<{name}[{{}}, {tile['BLOCK_D']}]>" if tile["TMA"] else f"*{name}"
    types = _TYPES | {
        "bias": f"*{name}",
        "hidden": operand.format(tile["BLOCK_N"]),
        "weight": operand.format(tile["BLOCK_V"]),
    }
    operands = ("hidden", "weight", "hidden_stride", "weight_stride", "size")
    return Variant(
        f"stream {name}{'' if aligned else ', unaligned'}, {options}{told}",
        _stream_kernel,
        types,
        {"TILE": TILE} | _OPTIONS[options] | tile,
        wide=("tile_maxima",) if tile["TMA"] else ("tile_maxima", "hidden", "weight"),
        unaligned=("rows", "vocabulary", "group", "splits", "split_size", *(() if aligned else operands)),
        capabilities=(capability,),
        harmless_spills="16 bytes, in 11 of thousands of instructions per block" if capability == 80 else "",
    )


def variants() -> list[Variant]:
    """The default for each dtype and set of options on each architecture, also for unaligned rows."""
    return [variants[0] for variants in _every()]


def candidates() -> list[Variant]:
    """The variants by which `tune` may replace them."""
    return [variant for variants in _every() for variant in variants[1:]]


def _every() -> Iterator[list[Variant]]:
    for capability in (80, 90, 100):
        for dtype in DTYPES:
            for options in _OPTIONS:
                yield stream_variants(dtype, capability, True, options)
        yield stream_variants(torch.bfloat16, capability, False, "all options")


class _Sums(NamedTuple):
    """Sums over the logits z of n rows, after softcap and temperature; (n,) float32 each."""

    maximum: Tensor
    others: Tensor  # the sum of e^(z - maximum), without the target's
    moment: Tensor  # the sum of e^(z - maximum) (z - maximum), without the target's
    z_target: Tensor  # 0 for a target of -1
    earlier: Tensor  # the largest z before the target; -inf for none
    z_sum: Tensor  # the sum of all z; 0 without label smoothing


class Streamed(NamedTuple):
    """The results of one pass over n rows. A row is correct if the first of its largest logits is the target's."""

    values: RowValues  # (n,) float32, `correct` bool
    normalizer: Tensor  # (4, n) float32, that of `terms.load_normalizer`
    tile_maxima: Tensor  # (n, ceil(V / TILE)) float32, the largest of TILE consecutive conditioned logits


def stream_statistics(
    hidden: Tensor,  # (n, D), n > 0, stride(1) == 1
    target: Tensor,  # (n,) int64, in [0, V)
    spec: RowSpec,  # its head's weight has stride(1) == 1
) -> Streamed:
    """Statistics of the rows, and the largest logit of each tile of the vocabulary."""
    tile_maxima = hidden.new_empty(hidden.shape[0], cdiv(spec.head.vocabulary, TILE), dtype=torch.float32)
    return Streamed(*_values(_stream(hidden, target, spec, tile_maxima), spec), tile_maxima)


def stream_values(hidden: Tensor, target: Tensor, spec: RowSpec, tile: Tile | None = None) -> RowValues:
    """Only the values of `stream_statistics`; `tile`, one of `tiles_of`, replaces the tile that it would choose."""
    return _values(_stream(hidden, target, spec, None, tile), spec)[0]


def stream_sums(hidden: Tensor, target: Tensor, spec: RowSpec) -> RowSums:
    """See `shard_contract.StreamedShards`; hidden and head as for `stream_statistics`."""
    sums = _stream(hidden, target, spec, None)
    shifted = sums.z_target - sums.maximum
    of_target = torch.where(target < 0, 0, shifted.exp() * shifted.clamp(min=LOWEST.value))
    # The pass knows only whether the largest entry is the target, an entry before it, or one after it.
    is_target = (sums.z_target == sums.maximum) & (sums.earlier < sums.maximum)
    after = torch.where(sums.earlier < sums.maximum, spec.head.vocabulary - 1, 0)
    argmax = torch.where(target < 0, 0, torch.where(is_target, target, after))
    maximum = torch.where(sums.maximum == FLOOR.value, -math.inf, sums.maximum)
    return RowSums(maximum, sums.others, sums.moment + of_target, sums.z_target, sums.z_sum, argmax)


def tiles_of(hidden: Tensor, head: Head) -> tuple[Tile, ...]:
    """The candidates for these operands, the default first."""
    capability, _ = capability_and_processors(hidden.device)
    aligned = is_aligned(hidden) and is_aligned(head.weight)
    return stream_tiles(hidden.dtype, capability, aligned, head.bias is not None)


def _stream(
    hidden: Tensor, target: Tensor, spec: RowSpec, tile_maxima: Tensor | None, tile: Tile | None = None
) -> _Sums:
    """The sums of the rows, whose targets may be -1 for none; fills tile_maxima."""
    head, (rows, size) = spec.head, hidden.shape
    _, processors = capability_and_processors(hidden.device)
    if tile is None:
        tile = chosen_tile(tiles_of(hidden, head), hidden.device, hidden.dtype, (head.vocabulary, size))
    order = stream_order(rows, head.vocabulary, tile["BLOCK_N"], tile["BLOCK_V"], processors)
    partials = hidden.new_empty(_FIELDS, order["splits"], rows, dtype=torch.float32)
    operands = hidden, head.weight
    if tile["TMA"]:
        operands = [
            TensorDescriptor.from_tensor(operand, [tile[block], tile["BLOCK_D"]])
            for operand, block in zip(operands, ("BLOCK_N", "BLOCK_V"), strict=True)
        ]
    _stream_kernel[(cdiv(rows, tile["BLOCK_N"]) * order["splits"],)](
        target,
        head.bias,
        partials,
        tile_maxima,
        operands[0],
        hidden.stride(0),
        operands[1],
        head.weight.stride(0),
        rows,
        size,
        head.vocabulary,
        HAS_SMOOTHING=spec.label_smoothing != 0,
        TILE=TILE,
        **order,
        **conditions(head),
        **tile,
    )
    return _merge(partials)


def _merge(
    partials: Tensor,  # (_FIELDS, splits, n)
) -> _Sums:
    maxima, totals, entropy_sums, z_targets, earlier, z_sums = partials
    maximum = maxima.amax(0)
    rise = (maxima - maximum).clamp(min=LOWEST.value)
    decay = rise.exp()
    others = (totals * decay).sum(0)
    moment = ((entropy_sums + totals * rise) * decay).sum(0)
    return _Sums(maximum, others, moment, z_targets.sum(0), earlier.amax(0), z_sums.sum(0))


def _values(sums: _Sums, spec: RowSpec) -> tuple[RowValues, Tensor]:
    """Values and normalizer. The target is added last, since the sum of the others may be smaller than its rounding."""
    maximum, others = sums.maximum, sums.others
    shifted = sums.z_target - maximum
    of_target = shifted.exp()
    total = others + of_target
    log_total = torch.where(shifted == 0, others.log1p(), total.log())
    entropy = log_total - (sums.moment + of_target * shifted.clamp(min=LOWEST.value)) / total
    nll = log_total - shifted
    lse = log_total + maximum
    loss = nll
    if spec.label_smoothing:
        mean = sums.z_sum / spec.head.vocabulary - maximum
        loss = (1 - spec.label_smoothing) * nll + spec.label_smoothing * (log_total - mean)
    if spec.z_loss:  # the square may be infinite
        loss = loss + spec.z_loss * lse.square()
    correct = (sums.z_target == maximum) & (sums.earlier < sums.z_target)
    lse_others = torch.where(others > 0, maximum + others.log(), math.inf)
    normalizer = torch.stack([maximum, log_total, others / total, lse_others])
    return RowValues(loss, nll, lse, entropy, correct & nll.isfinite()), normalizer
