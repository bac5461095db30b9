"""How many prompts share a batch: by memory, and fewer when a GPU's runs out."""

from __future__ import annotations

import pytest
import torch
from tiny import build_model

from mind.evaluation import batches
from mind.evaluation.batches import free_memory, in_batches, row_memory

PROMPTS = [[5] * length for length in (3, 9, 1, 4, 4, 7, 2, 8)]
BY_LENGTH = [1, 7, 5, 3, 4, 0, 6, 2]
"""The prompts from the longest to the shortest."""


def sizes(batch_size, answer=lambda batch: batch):
    found = list(in_batches(build_model(), PROMPTS, batch_size, 4, answer))
    assert [index for batch, _ in found for index in batch] == BY_LENGTH
    assert all(answers == batch for batch, answers in found)
    return [len(batch) for batch, _ in found]


def test_a_batch_takes_half_of_the_free_memory(monkeypatch):
    assert sizes(3) == [3, 3, 2]
    monkeypatch.setattr(batches, "row_memory", lambda model, width, new: width + new)
    for free, expected in ((1e9, [8]), (2 * 13, [1] * 6 + [2]), (2 * 26, [2, 2, 3, 1]), (0, [1] * 8)):
        monkeypatch.setattr(batches, "free_memory", lambda device, free=free: int(free))
        assert sizes("auto") == expected


def test_half_of_a_batch_is_tried_again_when_the_memory_runs_out(monkeypatch):
    monkeypatch.setattr(batches, "free_memory", lambda device: 10**12)
    tried = []

    def answer(batch):
        tried.append(len(batch))
        if len(batch) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return batch

    assert sizes("auto", answer) == [2, 2, 2, 2]
    assert tried == [8, 4, 2, 2, 2, 2]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        sizes(8, answer)  # that many were asked for

    def never(batch):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        sizes("auto", never)


def test_the_cache_of_a_row_is_counted():
    """Of two layers with two heads of eight numbers, keys and values, in float32."""
    model = build_model()
    assert row_memory(model, 10, 21) - row_memory(model, 10, 20) == 2 * 2 * (2 * 8) * 4


def test_what_a_control_group_allows_is_a_limit(tmp_path, monkeypatch):
    for name, text in (("_LIMIT", "5000"), ("_USED", "2000")):
        (tmp_path / name).write_text(text + "\n")
        monkeypatch.setattr(batches, name, tmp_path / name)
    cpu = torch.device("cpu")
    assert free_memory(cpu) == 3000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")  # left over: there is no launch
    assert free_memory(cpu) == 3000
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert free_memory(cpu) == 1000
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert free_memory(cpu) == 500
    monkeypatch.delenv("WORLD_SIZE")
    (tmp_path / "_LIMIT").write_text("max\n")
    assert free_memory(cpu) > 3000
