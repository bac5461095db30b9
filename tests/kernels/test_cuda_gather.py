"""The CUDA gather against float64, on CPU tensors by tests/cuda_emulator."""

from __future__ import annotations

import math

import pytest
import torch
from compiled_kernels import EMULATED, needs_emulator

from mind_kernels.sparse_gradient import offsets_of
from mind_kernels.testing import assert_within_budget

pytestmark = needs_emulator
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = EMULATED.rows


def gathered(values, indices, offsets, matrix, left, right):
    bags = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    out = values.new_zeros(len(offsets) - 1, matrix.shape[1])
    out.index_add_(0, bags, values[:, None] * matrix.to(values.dtype)[indices.long()])
    return {"sum": out + left.to(values.dtype) @ right.to(values.dtype)}


def make_gather(size, dtype, counts, rank=1, rows=11):
    generator = torch.Generator().manual_seed(size)
    total = sum(counts)
    values = torch.randn(total, generator=generator)
    indices = torch.randint(0, rows, (total,), generator=generator, dtype=torch.int32)
    matrix = torch.randn(rows, size, generator=generator).to(dtype)
    left = torch.linspace(-1, 1, rank * len(counts)).view(rank, len(counts)).T  # not contiguous
    right = torch.randn(rank, size, generator=generator).to(dtype)
    return values, indices, offsets_of(torch.tensor(counts, dtype=torch.int64)), matrix, left, right


def check_gather(arguments, out=None):
    values, indices, offsets, matrix = arguments[:4]
    out = matrix.new_empty(len(offsets) - 1, matrix.shape[1]) if out is None else out
    ROWS.gather_rows(*arguments, out)
    wide = [a.double() if a.is_floating_point() else a for a in arguments]
    assert_within_budget({"sum": out}, gathered(*arguments), gathered(*wide), out.dtype)
    return out


# Empty bags at the ends and inside, fewer entries than lanes and more, and bags that a block shares.
@pytest.mark.parametrize(
    "counts", [[0, 1, 3, 0, 40, 33, 5, 4, 2, 0], [3, 700, 0, 129, 1, 128, 300, 2, 0, 1, 500]], ids=["short", "long"]
)
@pytest.mark.parametrize("size", [8, 37, 512, 700])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gather(dtype, size, counts):
    check_gather(make_gather(size, dtype, counts))


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gather_adds_a_product_of_small_rank(dtype, rank):
    check_gather(make_gather(40, dtype, [0, 2, 9], rank))


@pytest.mark.parametrize("size", [8, 37, 512])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gather_of_half_precision_into_float32(dtype, size):
    check_gather(make_gather(size, dtype, [0, 3, 200], rank=2), torch.empty(3, size))


def test_gather_into_a_wider_buffer():
    arguments = make_gather(64, torch.bfloat16, [1, 0, 7])
    buffer = torch.full((3, 81), math.nan, dtype=torch.bfloat16)
    expected = check_gather(arguments)
    for offset in (0, 5, 8):
        assert torch.equal(check_gather(arguments, buffer[:, offset : offset + 64]), expected)
        assert bool(buffer[:, :offset].isnan().all()) and bool(buffer[:, offset + 64 :].isnan().all())
        buffer.fill_(math.nan)


def test_gather_of_some_of_the_bags():
    """Offsets are positions in the whole lists, so a slice of them gives those bags."""
    values, indices, offsets, matrix, left, right = make_gather(64, torch.float32, [5, 0, 200, 1])
    whole = check_gather((values, indices, offsets, matrix, left, right))
    out = torch.empty(2, 64)
    ROWS.gather_rows(values, indices, offsets[1:4], matrix, left[1:3], right, out)
    assert torch.equal(out, whole[1:3])


def test_deterministic():
    arguments = make_gather(64, torch.float32, [500, 20])
    assert torch.equal(check_gather(arguments), check_gather(arguments))


def test_no_bags():
    assert check_gather(make_gather(40, torch.float32, [])).shape == (0, 40)
