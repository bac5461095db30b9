"""Triton's weighted gather against float64; Triton's interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from mind_kernels.testing import assert_within_budget
from mind_kernels.triton_gather import gather_launch, gather_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()
COUNTS = [0, 1, 3, 0, 40, 16, 0]  # empty bags at the ends and inside, less and more than a tile, one tile


def make(size, dtype, counts=COUNTS, rows=11):
    generator = torch.Generator().manual_seed(size)
    counts = torch.tensor(counts)
    total = int(counts.sum())
    values = torch.randn(total, generator=generator)
    indices = torch.randint(0, rows, (total,), generator=generator, dtype=torch.int32)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    matrix = torch.randn(rows, size, generator=generator).to(dtype)
    return [tensor.to(DEVICE) for tensor in (values, indices, offsets, matrix)]


def formula(values, indices, offsets, matrix, left=None, right=None):
    bags = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=DEVICE), offsets.diff())
    out = values.new_zeros(len(offsets) - 1, matrix.shape[1])
    out.index_add_(0, bags, values[:, None] * matrix.to(values.dtype)[indices.long()])
    return out if left is None else out + left.to(values.dtype) @ right.to(values.dtype)


def check(found, *arguments):
    wide = [a.double() if a.is_floating_point() else a for a in arguments]
    assert_within_budget({"sum": found}, {"sum": formula(*arguments)}, {"sum": formula(*wide)}, found.dtype)


@pytest.mark.parametrize("size", [8, 37, 512, 700])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_float64(dtype, size):
    arguments = make(size, dtype)
    found = gather_rows(*arguments)
    assert found.dtype == torch.float32
    check(found, *arguments)
    assert not found[0].any() and not found[-1].any()  # empty bags


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adds_a_product_of_small_rank(dtype, rank):
    arguments = make(37, dtype)
    left = torch.linspace(-1, 1, rank * len(COUNTS), device=DEVICE).view(rank, -1).T  # not contiguous
    right = torch.linspace(1, 2, rank * 37, device=DEVICE).view(rank, 37).to(dtype)
    check(gather_rows(*arguments, left, right), *arguments, left, right)
    out = torch.empty(len(COUNTS), 48, dtype=dtype, device=DEVICE)[:, :37]
    assert gather_rows(*arguments, left, right, out) is out
    check(out, *arguments, left, right)


def test_some_of_the_bags():
    """Offsets are positions in the whole lists, so a slice of them gives those bags."""
    values, indices, offsets, matrix = make(64, torch.float32)
    whole = gather_rows(values, indices, offsets, matrix)
    assert torch.equal(gather_rows(values, indices, offsets[3:6], matrix), whole[3:5])


def test_rows_of_a_wider_matrix():
    values, indices, offsets, matrix = make(64, torch.float32)
    assert torch.equal(
        gather_rows(values, indices, offsets, matrix[:, :37]),
        gather_rows(values, indices, offsets, matrix[:, :37].contiguous()),
    )


def test_deterministic():
    arguments = make(64, torch.float32, counts=[500, 20])
    assert torch.equal(gather_rows(*arguments), gather_rows(*arguments))


@pytest.mark.parametrize("counts", [[], [0, 0]], ids=["no bags", "no entries"])
def test_nothing_to_gather(counts):
    found = gather_rows(*make(37, torch.float32, counts=counts))
    assert found.shape == (len(counts), 37) and not found.any()


def test_launch():
    assert gather_launch(3584, torch.bfloat16) == {"ENTRIES": 16, "COLUMNS": 512, "num_warps": 4}
    assert gather_launch(3584, torch.float32)["COLUMNS"] == 256
    assert gather_launch(37, torch.float32)["COLUMNS"] == 64
