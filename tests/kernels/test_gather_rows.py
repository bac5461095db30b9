"""The contract of gather_rows, for every implementation: weighted sums of matrix rows, plus a product of small rank."""

from __future__ import annotations

import functools
import math

import implementations
import torch
from cases import DTYPES

from mind_kernels.row_chunks import accumulation_dtype
from mind_kernels.sparse_gradient import offsets_of
from mind_kernels.testing import assert_within_budget

# That of triton_streaming is Triton's.
ALL = [each for each in implementations.of("linear_cross_entropy") if each.backend != "triton_streaming"]
# The PyTorch form has no result in float32 of half precision, and no product of rank zero: the loop asks for neither.
KERNELS = [implementation for implementation in ALL if implementation.backend != "torch"]
# Empty bags at the ends and inside, fewer entries than lanes and more, and bags that a block of threads shares.
COUNTS = [[0, 1, 3, 0, 40, 33, 5, 4, 2, 0], [3, 700, 0, 129, 1, 128, 300, 2, 0, 1, 500]]
SIZES = [8, 37, 512, 700]
each = functools.partial(implementations.each, of=ALL, dtypes=DTYPES)


def make(implementation, size, dtype, counts, rank=1, rows=11):
    """values, indices, offsets, matrix, left (not contiguous) and right."""
    generator = torch.Generator().manual_seed(size)
    total = sum(counts)
    values = torch.randn(total, generator=generator).to(accumulation_dtype(dtype))
    indices = torch.randint(0, rows, (total,), generator=generator, dtype=torch.int32)
    matrix = torch.randn(rows, size, generator=generator).to(dtype)
    left = torch.linspace(-1, 1, rank * len(counts)).view(rank, len(counts)).T.to(values.dtype)
    right = torch.randn(rank, size, generator=generator).to(dtype)
    tensors = values, indices, offsets_of(torch.tensor(counts, dtype=torch.int64)), matrix, left, right
    return tuple(tensor.to(implementation.device) for tensor in tensors)


def gathered(values, indices, offsets, matrix, left, right):
    bags = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=values.device), offsets.diff())
    out = values.new_zeros(len(offsets) - 1, matrix.shape[1])
    out.index_add_(0, bags, values[:, None] * matrix.to(values.dtype)[indices.long()])
    return {"sum": out + left.to(values.dtype) @ right.to(values.dtype)}


def gather(implementation, arguments, out=None):
    """The result, in the dtype of the matrix unless there is a place for it."""
    offsets, matrix = arguments[2:4]
    out = matrix.new_empty(len(offsets) - 1, matrix.shape[1]) if out is None else out
    implementation.kernels("linear_cross_entropy").gather_rows(*arguments, out)
    return out


def check(implementation, arguments, out=None):
    out = gather(implementation, arguments, out)
    if implementation.backend == "torch":  # which weighs rows of half precision in half precision
        peer_arguments = [arguments[0].to(arguments[3].dtype), *arguments[1:]]
    else:
        peer_arguments = arguments
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in arguments]
    assert_within_budget({"sum": out}, gathered(*peer_arguments), gathered(*wide), out.dtype)
    return out


@each(SIZES, COUNTS, names="size counts")
def test_matches_float64(implementation, dtype, size, counts):
    out = check(implementation, make(implementation, size, dtype, counts))
    assert out.shape == (len(counts), size)


@each([0, 2], of=KERNELS, names="rank")
def test_adds_a_product_of_small_rank(implementation, dtype, rank):
    check(implementation, make(implementation, 40, dtype, [0, 2, 9], rank))


@each([8, 37, 512], of=KERNELS, names="size", dtypes=[torch.bfloat16, torch.float16])
def test_half_precision_into_float32(implementation, dtype, size):
    arguments = make(implementation, size, dtype, [0, 3, 200], rank=2)
    check(implementation, arguments, torch.empty(3, size, device=implementation.device))


@each([0, 5, 8], names="offset")
def test_into_a_wider_buffer(implementation, dtype, offset):
    arguments = make(implementation, 64, dtype, [1, 0, 7])
    buffer = torch.full((3, 81), math.nan, dtype=dtype, device=implementation.device)
    found = gather(implementation, arguments, buffer[:, offset : offset + 64])
    assert torch.equal(found, check(implementation, arguments))
    assert bool(buffer[:, :offset].isnan().all()) and bool(buffer[:, offset + 64 :].isnan().all())


@each(dtypes=())
def test_rows_of_a_wider_matrix(implementation):
    values, indices, offsets, matrix, left, right = make(implementation, 64, torch.float32, [4, 0, 30])
    wide = (values, indices, offsets, matrix[:, :37], left, right[:, :37])
    narrow = (values, indices, offsets, matrix[:, :37].contiguous(), left, right[:, :37].contiguous())
    torch.testing.assert_close(gather(implementation, wide), gather(implementation, narrow))


@each(dtypes=())
def test_some_of_the_bags(implementation):
    """Offsets are positions in the whole lists, so a slice of them gives those bags."""
    values, indices, offsets, matrix, left, right = make(implementation, 64, torch.float32, [5, 0, 200, 1])
    whole = check(implementation, (values, indices, offsets, matrix, left, right))
    assert torch.equal(gather(implementation, (values, indices, offsets[1:4], matrix, left[1:3], right)), whole[1:3])


@each([[300, 0, 41, 200], [90] * 40], of=KERNELS, names="counts", dtypes=DTYPES)
def test_a_matrix_beyond_the_cache(implementation, dtype, counts):
    """Taken a block at a time; the entries of a bag in increasing order, as the loop has them, or in any."""
    rows = 60 if implementation.slow else 6000  # of 600 or 300 bytes: four or two blocks
    values, indices, *others = make(implementation, 150, dtype, counts, rows=rows)
    check(implementation, (values, indices, *others))
    ordered = torch.cat([part.sort().values for part in indices.split(counts)])
    check(implementation, (values, ordered, *others))


@each(dtypes=())
def test_deterministic(implementation):
    arguments = make(implementation, 64, torch.float32, [500, 20])
    assert torch.equal(gather(implementation, arguments), gather(implementation, arguments))


@each([[], [0, 0]], of=KERNELS, names="counts", dtypes=())
def test_nothing_to_gather(implementation, counts):
    arguments = make(implementation, 40, torch.float32, counts)
    check(implementation, arguments, torch.empty(len(counts), 40, device=implementation.device))
