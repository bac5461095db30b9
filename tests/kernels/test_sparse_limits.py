"""The sparse gradient's decisions: which rows are sampled, what is worth it, and how entries are ordered."""

from __future__ import annotations

import pytest
import torch

from mind_kernels import sparse_gradient
from mind_kernels.sparse_gradient import (
    Entries,
    dropped_share,
    most_kept,
    most_of_batch,
    offsets_of,
    sampled_of_batch,
    sampled_rows,
    sort_entries,
    worth_it,
    worth_it_in_batch,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_chunk_is_sparse_up_to_its_limits():
    assert most_kept(49152, CPU) == 3072 and most_kept(49152, GPU) == 192 and most_of_batch(49152) == 6144
    for device, most in ((CPU, 64.0), (GPU, 4.0)):
        assert worth_it(most, 1 / 16, 1024, device)
        assert not worth_it(most + 0.01, 0, 1024, device) and not worth_it(1, 0.063, 1024, device)
    assert worth_it(1, torch.nan, 1024, CPU)  # a row without a softmax


def test_a_batch_is_sparse_up_to_its_limits():
    weight, nll, lse = torch.tensor([1.0, 3.0]), torch.tensor([0.7, 0.2]), torch.tensor([5.0, 7.0])
    size = float(weight @ (1 - torch.exp(-nll)))
    for share, worth in ((1 / 16 - 1e-6, True), (1 / 16 + 1e-6, False)):
        dropped = torch.tensor([size * share, 0.0])
        assert worth_it_in_batch(8, weight, dropped, lse, nll, 8) == worth
        assert not worth_it_in_batch(8.1, weight, dropped, lse, nll, 8)
    assert not worth_it_in_batch(8, weight, torch.zeros(2), torch.tensor([5.0, 1e8]), nll, 8)
    assert worth_it_in_batch(0, torch.zeros(2), torch.zeros(2), lse, nll, 8)


def test_a_share_is_of_the_size_of_the_gradient():
    others = torch.tensor([0.5, 1e-30, 2e-30, 0.0])
    found = dropped_share(torch.tensor([0.25, 1.0, 1e-30, 1.0]), others, torch.zeros(4))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.0, 0.5, 0.0]))
    assert dropped_share(others, others, torch.tensor([0.0, 1e8, 0.0, 0.0])).tolist() == [1, torch.inf, 1, 0]


def test_256_to_511_rows_are_sampled():
    for total in (1, 255, 256, 511, 512, 1000, 5120):
        step = max(1, total // 256)
        places = list(sampled_rows(0, total, total))
        assert places == list(range(0, total, step)) and len(places) <= 511 and len(places) >= min(total, 256)
        in_chunks = [start + place for start in range(0, total, 7) for place in sampled_rows(start, 7, total)]
        assert [place for place in in_chunks if place < total] == places


def test_one_row_of_each_stretch_is_sampled_for_a_batch():
    for total in (0, 1, 127, 128, 129, 1000):
        places = sampled_of_batch(total)
        count = min(total, 128)
        assert len(places) == count and torch.equal(places, sampled_of_batch(total)) and places.dtype == torch.int64
        for stretch, place in enumerate(places.tolist()):
            assert stretch * total // count <= place < (stretch + 1) * total // count
    assert not torch.equal(sampled_of_batch(1000)[:100], torch.arange(1000)[:: 1000 // 128][:100])


def test_entries_are_sorted_by_column_and_then_by_row():
    counts = torch.tensor([2, 0, 3])
    offsets = offsets_of(counts)
    assert offsets.tolist() == [0, 2, 2, 5]
    columns, values = torch.tensor([1, 4, 0, 1, 4], dtype=torch.int32), torch.arange(5.0)
    found = sort_entries(torch.tensor([7, 8, 3]), offsets, columns, values, 5)
    assert found.offsets.tolist() == [0, 1, 3, 3, 3, 5]
    assert found.rows.tolist() == [3, 7, 3, 7, 3] and found.values.tolist() == [2, 0, 3, 1, 4]


def test_the_targets_entry_is_replaced():
    entries = Entries(torch.tensor([2, 1]), torch.tensor([1, 4, 0], dtype=torch.int32), torch.ones(3), torch.zeros(2))
    entries.put_at(torch.tensor([4, 0]), torch.tensor([5.0, 6.0]))
    assert entries.values.tolist() == [1, 5, 6]


@pytest.mark.parametrize(
    ("rows", "runs"),
    [([3, 5, 9], [(0, 3)]), ([3, 9, 1, 2, 8], [(0, 2), (2, 5)]), ([4, 4, 2], [(0, 2), (2, 3)])],
)
def test_rows_are_gathered_in_stretches_that_increase(rows, runs):
    found = sparse_gradient._runs(torch.tensor(rows))
    assert [(run.start, run.stop) for run in found] == runs
