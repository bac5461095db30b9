"""Decides how many prompts are continued together: as many as was asked for, or as fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil
import torch
from transformers import PreTrainedModel

from mind import processes
from mind.batches.isolation import fault
from mind.student.model import causal_lm
from mind.student.tokenization import embedding_rows

T = TypeVar("T")

BatchSize = int | Literal["auto"]
MOST = {"cpu": 128, "cuda": 2048}
"""The largest batch that "auto" chooses: on a CPU, reading the weights for more rows at once gains nothing more
(bench/results/generation.jsonl)."""
SHARE = 0.5
"""The share of the free memory that a batch may use: other processes grow too, and the estimate leaves out small
things."""
_LIMIT, _USED = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))


def in_batches(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    batch_size: BatchSize,
    max_new_tokens: int,
    answer: Callable[[list[int]], Sequence[T]],
) -> Iterator[tuple[list[int], Sequence[T]]]:
    """The prompts in batches, by index, each with the result of `answer` for it.

    Prompts of similar length share a batch, so it pads little; the longest come first, so that memory runs out early if
    it does. If "auto" takes too many for a GPU (torch.cuda.OutOfMemoryError), half of the batch is tried, and no later
    batch is larger.
    """
    most = MOST.get(model.device.type, MOST["cuda"]) if batch_size == "auto" else batch_size
    for group in _alike(model, prompts, most):
        start = 0
        while start < len(group):
            count = most
            if batch_size == "auto":
                row = row_memory(model, len(prompts[group[start]]), max_new_tokens)
                count = min(most, max(1, int(SHARE * free_memory(model.device)) // row))
            batch = group[start : start + count]
            answers = _answered(answer, batch, retry=batch_size == "auto" and len(batch) > 1)
            if answers is None:
                most = len(batch) // 2
                torch.cuda.empty_cache()
                continue
            yield batch, answers
            start += len(batch)


def _answered(answer: Callable[[list[int]], Sequence[T]], batch: list[int], retry: bool) -> Sequence[T] | None:
    """The answers, or None if the GPU's memory cannot hold the batch: what the attempt used is free after the
    return."""
    try:
        return answer(batch)
    except torch.cuda.OutOfMemoryError:
        if not retry:
            raise
        return None


def _alike(model: PreTrainedModel, prompts: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Groups of prompts that may share a batch: all, or those of one length if left padding changes the model's
    output."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    longest = len(prompts[order[0]]) if prompts else 0
    mixed = most > 1 and fault(causal_lm(model), "left", longest) is None
    for _, group in groupby(order, key=lambda index: 0 if mixed else len(prompts[index])):
        yield list(group)


def row_memory(model: PreTrainedModel, width: int, max_new_tokens: int) -> int:
    """Bytes needed to continue a prompt of `width` tokens, approximately: keys and values of every token, the widest
    activations of the prompt in one layer, and what is computed from its logits."""
    config: Any = causal_lm(model).config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    shared = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else config.hidden_size)
    # A model that counts its heads differently, or has none, stores at most a vector as wide as its states.
    values = shared * size if isinstance(shared, int) and isinstance(size, int) else config.hidden_size
    number = next(model.parameters()).element_size()
    cache = 2 * config.num_hidden_layers * values * (width + max_new_tokens) * number
    inner = getattr(config, "intermediate_size", None)
    inner = inner if isinstance(inner, int) else 4 * config.hidden_size
    activations = width * (3 * inner + 8 * config.hidden_size) * number
    return cache + activations + 4 * 8 * embedding_rows(model)


def free_memory(device: torch.device) -> int:
    """Bytes that this process can use: the free memory of its GPU, or its share of what its machine and control group
    have free, which it divides with the launch's other processes there."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    free = psutil.virtual_memory().available
    if _LIMIT.exists() and (limit := _LIMIT.read_text().strip()) != "max":
        free = min(free, max(int(limit) - int(_USED.read_text()), 0))
    return free // processes.of_machine()
