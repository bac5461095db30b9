"""Sizes of chunks, and the weights and reductions of rows."""

from __future__ import annotations

import pytest
import torch

from mind_kernels import row_chunks
from mind_kernels.row_chunks import (
    accumulation_dtype,
    chunks,
    flat_rows,
    gradient_dtype,
    has_gradient,
    known_finite,
    may_be_nan,
    reduced,
    row_major,
    row_weights,
    rows_per_block,
    rows_per_chunk,
    scale_of_rows,
    selects_by_weight,
    upstream_weights,
    weighted,
    without_spoilt,
    write_rows,
)

CPU, GPU, MIB = torch.device("cpu"), torch.device("cuda"), 1 << 20


@pytest.mark.parametrize(
    ("device", "options", "mib"),
    [(CPU, {}, 48), (GPU, {}, 1024), (CPU, {"sparse": True}, 48), (GPU, {"sparse": True}, 192)],
)
def test_a_chunk_has_its_bytes(device, options, mib):
    assert rows_per_chunk(1, device, 1, **options) == mib * MIB
    assert rows_per_chunk(1, device, **options) == rows_per_chunk(4, device, 1, **options) == mib * MIB // 4
    assert rows_per_chunk(1, device, 1, spare=2 * MIB, **options) == (mib + 2) * MIB
    assert rows_per_chunk(mib * MIB, device, 1, **options) == 1 == rows_per_chunk(mib * MIB + 1, device, 1, **options)


def test_from_128_rows_on_chunks_have_whole_tiles():
    for fit, rows in ((127, 127), (128, 128), (129, 128), (255, 128), (256, 256), (257, 256)):
        assert rows_per_chunk(48 * MIB // fit, CPU, 1) == rows


def test_a_block_fits_a_cache():
    assert rows_per_block(1, CPU) == MIB // 2 and rows_per_block(1, GPU) == 64 * MIB
    assert rows_per_block(MIB, CPU) == rows_per_block(MIB // 2, CPU) == 1


def test_chunks_cover_the_rows():
    assert list(chunks(7, 3)) == [slice(0, 3), slice(3, 6), slice(6, 7)] and not list(chunks(0, 3))
    assert list(chunks(6, 3)) == [slice(0, 3), slice(3, 6)]
    rows = torch.tensor([4, 2, 9])
    assert [part.tolist() for part in chunks(rows, 2)] == [[4, 2], [9]] and not list(chunks(rows[:0], 2))


def test_rows_are_written_in_place():
    values = torch.zeros(4), torch.zeros(4, dtype=torch.bool)
    write_rows(values, torch.tensor([3, 1]), (torch.tensor([1.0, 2.0]), torch.tensor([True, False])))
    assert values[0].tolist() == [0, 2, 0, 1] and values[1].tolist() == [False, False, False, True]
    with pytest.raises(ValueError):
        write_rows(values, slice(0, 1), (torch.zeros(1),))


def test_dtypes():
    kinds = torch.float64, torch.float32, torch.bfloat16, torch.float16
    assert [accumulation_dtype(kind) for kind in kinds] == [torch.float64, *3 * [torch.float32]]
    assert [gradient_dtype(kind) for kind in kinds] == [torch.float64, torch.float32, torch.bfloat16, torch.float32]


def test_values_are_flat():
    assert flat_rows(None) is None
    assert flat_rows(torch.zeros(2, 3, dtype=torch.int32)).dtype == torch.int64
    assert flat_rows(torch.zeros(2, 3, 4)).shape == (24,) and flat_rows(torch.zeros(2, 3, 4), 1).shape == (6, 4)
    assert flat_rows(torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_weights_of_rows():
    hidden, valid = torch.zeros(3, 2, dtype=torch.bfloat16), torch.tensor([True, False, True])
    given = torch.tensor([2.0, 3.0, -4.0], dtype=torch.float64)
    assert row_weights(None, None, hidden).tolist() == [1, 1, 1] and row_weights(None, valid, hidden).tolist() == [
        1,
        0,
        1,
    ]
    assert row_weights(given, None, hidden).tolist() == [2, 3, -4]
    found = row_weights(given, valid, hidden)
    assert found.tolist() == [2, 0, -4] and found.dtype == torch.float32
    assert row_weights(given.repeat_interleave(2)[::2], None, hidden).is_contiguous()
    upstream = torch.tensor([0.5, 1.0, 2.0])
    assert upstream_weights(upstream, None).tolist() == [0.5, 1, 2]
    assert upstream_weights(upstream, given).tolist() == [1, 3, -8]


def test_only_a_cpu_looks_at_numbers():
    finite, infinite, nan = torch.ones(2), torch.tensor([1.0, torch.inf]), torch.tensor([1.0, torch.nan])
    assert [may_be_nan(value) for value in (finite, infinite, nan)] == [False, False, True]
    assert [known_finite(value) for value in (finite, infinite, nan)] == [True, False, False]
    elsewhere = torch.ones(2, device="meta")
    assert may_be_nan(elsewhere) and not known_finite(elsewhere)
    assert selects_by_weight(CPU) and not selects_by_weight(GPU)


def test_where_weights_do_not_select_rows_without_one_hold_numbers(monkeypatch):
    valid, has_weight = torch.tensor([True, True, False, True]), torch.tensor([True, False, True, False])
    hidden = torch.tensor([[torch.nan, 1.0], [torch.inf, 1.0], [2.0, 3.0], [4.0, 5.0]])
    assert has_gradient(valid, has_weight).tolist() == [True, False, False, False]
    assert without_spoilt(hidden, has_weight)[0] is hidden and without_spoilt(hidden, has_weight)[1] is None
    monkeypatch.setattr(row_chunks, "selects_by_weight", lambda device: False)
    assert has_gradient(valid, has_weight).tolist() == valid.tolist()
    found, spoilt = without_spoilt(hidden, has_weight)
    assert spoilt is not None and spoilt.tolist() == [False, True, False, False]
    torch.testing.assert_close(found, torch.tensor([[torch.nan, 1], [0, 0], [2, 3], [4, 5]]), equal_nan=True)


def test_losses_are_weighted_and_reduced():
    losses, weight = torch.tensor([2.0, torch.nan, 5.0]), torch.tensor([0.5, 0.0, 2.0])
    assert weighted(losses, weight).tolist() == reduced(losses, weight, "none").tolist() == [1, 0, 10]
    assert float(reduced(losses, weight, "sum")) == 11
    assert scale_of_rows(weight, "none") is weight is scale_of_rows(weight, "sum")
    shares = scale_of_rows(weight, "mean")
    assert shares.dtype == torch.float32 and shares.tolist() == pytest.approx([0.2, 0, 0.8])
    assert float(reduced(losses, shares, "mean")) == pytest.approx(11 / 2.5)


@pytest.mark.parametrize("size", [1e-42, 1e-30, 3e38])
def test_shares_of_weights_whose_sum_float32_does_not_hold(size):
    shares = scale_of_rows(torch.tensor([size, 0.0, size]), "mean")
    assert shares.tolist() == pytest.approx([0.5, 0, 0.5])


def test_an_infinite_sum_has_no_shares():
    assert scale_of_rows(torch.tensor([torch.inf, 1.0]), "mean").isnan().all()
    assert scale_of_rows(torch.tensor([1e308, 1e308], dtype=torch.float64), "mean").isnan().all()


def test_rows_are_contiguous():
    matrix = torch.arange(6.0).view(2, 3)
    assert row_major(matrix) is matrix and row_major(matrix[:, 1:]).stride() == (3, 1)
    assert row_major(matrix.T).is_contiguous() and torch.equal(row_major(matrix.T), matrix.T)
