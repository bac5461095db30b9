"""Handles several samples of an answer: their seeds, the majority answer, and pass@k."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from zlib import crc32

from mind.grading.answers import is_correct
from mind.records import Question

if TYPE_CHECKING:
    from torch import Tensor


def sample_seed(seed: int, name: str, question: Question) -> int:
    """The seed of the sample `name` of a question, which depends on nothing else."""
    return crc32(f"{seed} {name} {question.id}".encode("utf-8", "surrogatepass"))


def numbers(seeds: Sequence[int], count: int) -> Tensor:  # (seeds, count) float64 in [0, 1)
    """The random numbers that decide the tokens of samples, independent for each seed."""
    import torch  # not above: the command line reads files of responses before it loads torch

    rows = [torch.rand(count, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
    return torch.stack(rows) if rows else torch.empty(0, count, dtype=torch.float64)


def same_answer(one: str | None, other: str | None, question: Question) -> bool:
    """Whether two answers to a question are the same apart from their notation; None equals nothing."""
    if one is None or other is None:
        return False
    if " ".join(one.split()).casefold() == " ".join(other.split()).casefold():
        return True
    return question.choices is None and is_correct(one, replace(question, answer=other))


def majority(samples: Sequence[Mapping[str, Any]], question: Question) -> int | None:
    """The index of the sample that represents the answer stated most often; None if no sample states one.

    Samples without an answer that can be compared have no vote. Answers in different notation count as one
    (`same_answer`), which is represented by the first sample that states it; if several have as many votes, the one
    that came first wins.
    """
    votes: dict[int, int] = {}
    for index, sample in enumerate(samples):
        if sample["parsed"]:
            answer = sample["extracted"]
            first = next((one for one in votes if same_answer(answer, samples[one]["extracted"], question)), index)
            votes[first] = votes.get(first, 0) + 1
    return max(votes, key=votes.__getitem__) if votes else None


def pass_at(k: int, samples: int, correct: int) -> float:
    """The probability that at least one of k samples, drawn without replacement, is correct: an unbiased estimate of
    this probability for k new samples.

    Args:
        k: 1 to `samples`.
        samples: number of samples of a question.
        correct: number of them that are correct.

    Raises ValueError for numbers outside these ranges. Source: M. Chen et al., Evaluating large language models trained
    on code (arXiv 2107.03374), equation 1.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(
            f"k {k} and {correct} correct of {samples}: expected 1 <= k <= samples, 0 <= correct <= samples"
        )
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)
