"""How many prompts are continued together: as many as was asked for, or as the memory holds."""

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
"""The most prompts of a batch that the memory decides: a CPU has no more to gain from reading its weights for more
rows at once (bench/results/generation.jsonl)."""
SHARE = 0.5
"""Of the free memory: other processes grow as well, and the estimate leaves out what is small."""
_LIMIT, _USED = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))


def in_batches(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    batch_size: BatchSize,
    max_new_tokens: int,
    answer: Callable[[list[int]], Sequence[T]],
) -> Iterator[tuple[list[int], Sequence[T]]]:
    """The prompts in batches, by index, each with what `answer` makes of it.

    Neighbours in length share a batch, so it pads little; the longest come first, so memory that is short runs out at
    once. If "auto" takes too many for a GPU, by torch.cuda.OutOfMemoryError, half of them are tried again, and no later
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
    """None if the memory of the GPU does not hold the batch: what the attempt held is free once this has returned."""
    try:
        return answer(batch)
    except torch.cuda.OutOfMemoryError:
        if not retry:
            raise
        return None


def _alike(model: PreTrainedModel, prompts: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """The prompts that may share a batch: all, or those of one length where padding on the left changes what comes
    out."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    longest = len(prompts[order[0]]) if prompts else 0
    mixed = most > 1 and fault(causal_lm(model), "left", longest) is None
    for _, group in groupby(order, key=lambda index: 0 if mixed else len(prompts[index])):
        yield list(group)


def row_memory(model: PreTrainedModel, width: int, max_new_tokens: int) -> int:
    """Bytes that continuing a prompt of `width` tokens takes, about: keys and values of every token, the widest
    activations of the prompt in one layer, and what is made of its logits."""
    config: Any = causal_lm(model).config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    shared = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else config.hidden_size)
    # A model that counts its heads otherwise, or has none, keeps no more than a vector as wide as its states.
    values = shared * size if isinstance(shared, int) and isinstance(size, int) else config.hidden_size
    number = next(model.parameters()).element_size()
    cache = 2 * config.num_hidden_layers * values * (width + max_new_tokens) * number
    inner = getattr(config, "intermediate_size", None)
    inner = inner if isinstance(inner, int) else 4 * config.hidden_size
    activations = width * (3 * inner + 8 * config.hidden_size) * number
    return cache + activations + 4 * 8 * embedding_rows(model)


def free_memory(device: torch.device) -> int:
    """Bytes that this process can have: of its GPU, or of its machine and the control group that it is in, which it
    shares with the other processes of a launch."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    free = psutil.virtual_memory().available
    if _LIMIT.exists() and (limit := _LIMIT.read_text().strip()) != "max":
        free = min(free, max(int(limit) - int(_USED.read_text()), 0))
    return free // processes.of_machine()
