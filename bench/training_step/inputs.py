"""The step that is measured: Q questions with all K rationales, which of them it trains on, and with what weight."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mind.batches.packing import sequence_lengths
from mind.batches.steps import question_tokens
from mind.records import TokenizedQuestion

POOL = 400  # questions that the step's are chosen from, at most
MAX_LENGTH = 1024  # tokens of a sequence, at most
SEED = 0


@dataclass(frozen=True)
class Inputs:
    """Token ids, and what MetaNet would say of them."""

    questions: tuple[TokenizedQuestion, ...]  # Q, each with all K rationales
    selected: Tensor  # (Q, K) bool, half of each question's
    alpha: Tensor  # (Q, K) float64, sums to 1 over a question's selected rationales and is 0 elsewhere
    label: str

    @property
    def perspectives(self) -> int:
        """K"""
        return self.alpha.shape[1]

    @property
    def supervision_tokens(self) -> int:
        """Labeled tokens of all Q K rationales, trained on or observed: the same whatever the variant."""
        return sum(
            len(ids) + len(question.suffix) for question in self.questions for ids in question.rationales.values()
        )

    def first(self) -> Inputs:
        """The first question alone, the shortest: enough to warm up."""
        return Inputs(self.questions[:1], self.selected[:1], self.alpha[:1], self.label)


def select(questions: Sequence[TokenizedQuestion], label: str) -> Inputs:
    """A random half of each question's rationales, and the softmax of random scores over it: always the same ones."""
    counts = {len(question.rationales) for question in questions}
    if len(counts) != 1 or min(counts) < 2:
        raise ValueError(
            f"the questions have {sorted(counts)} rationales: expected the same number for all, and at least 2"
        )
    (perspectives,) = counts
    generator = torch.Generator().manual_seed(SEED)
    order = torch.stack([torch.randperm(perspectives, generator=generator) for _ in questions])
    selected = order < perspectives // 2
    scores = torch.randn(order.shape, generator=generator, dtype=torch.float64)
    return Inputs(tuple(questions), selected, scores.masked_fill(~selected, -torch.inf).softmax(1), label)


def tokenized_step(count: int, data: Path | None, max_length: int = MAX_LENGTH) -> Inputs:
    """`count` questions of a file that `mind data import` wrote, or word problems, tokenized for SmolLM2.

    Of those with a rationale in every perspective, the ones in the middle of `count` equal shares by their tokens: a
    step as long as steps are, with short and long questions in it. None has a sequence of more than `max_length`
    tokens, so that the naive step, which pads all to the longest, fits into memory.
    """
    from bench.real_rows import complete_questions, perspectives_of
    from mind.config import StudentConfig
    from mind.student.model import load_student
    from mind.student.tokenization import tokenize

    pool = complete_questions(POOL, 0, data)
    _, tokenizer = load_student(StudentConfig())
    tokenized = [
        question
        for question in tokenize(pool, tokenizer, perspectives_of(pool, data), MAX_LENGTH)
        if max(sequence_lengths(question)) <= max_length
    ]
    if len(tokenized) < count:
        raise ValueError(
            f"{len(tokenized)} questions have a rationale in every perspective and none of more than "
            f"{max_length} tokens with its prompt: expected at least {count}"
        )
    return select(quantiles(tokenized, count), data.name if data else "word problems")


def quantiles(questions: Sequence[TokenizedQuestion], count: int) -> list[TokenizedQuestion]:
    """The questions in the middle of `count` equal shares, by their tokens."""
    ordered = sorted(questions, key=question_tokens)
    return [ordered[(2 * share + 1) * len(ordered) // (2 * count)] for share in range(count)]


def save_tokens(inputs: Inputs, file: Path) -> None:
    """For a machine without the tokenizer; `load_tokens` reads it."""
    questions = [
        {
            "id": question.id,
            "prompt": question.prompt,
            "suffix": question.suffix,
            "rationales": [ids for _, ids in sorted(question.rationales.items())],
        }
        for question in inputs.questions
    ]
    file.write_text(json.dumps({"label": inputs.label, "questions": questions}) + "\n")


def load_tokens(file: Path) -> Inputs:
    stored = json.loads(file.read_text())
    questions = [
        TokenizedQuestion(
            question["id"],
            tuple(question["prompt"]),
            {k: tuple(ids) for k, ids in enumerate(question["rationales"])},
            tuple(question["suffix"]),
        )
        for question in stored["questions"]
    ]
    return select(questions, stored["label"])
