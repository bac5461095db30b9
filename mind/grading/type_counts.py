"""Counts questions per answer type, so that users can see the detected types before they matter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mind.display import number_of
from mind.grading import answer_type
from mind.grading.answers import with_final_answer
from mind.records import Question

_NOUNS = ("number", "choice", "ratio", "time", "date", "digit group")
"""The names of types that have a plural."""


def type_counts(questions: Iterable[Question]) -> dict[str, int]:
    """The name of an answer type -> number of questions of that type, the most frequent first."""
    kinds = (answer_type(with_final_answer(question)) for question in questions)
    counts = Counter(kind.name.replace("_", "/") for kind in kinds)
    return dict(counts.most_common())


def described_types(questions: Iterable[Question]) -> str:
    """The same in words: "14 numbers, 3 choices, 2 yes/no"."""
    counts = type_counts(questions).items()
    return ", ".join(number_of(count, name) if name in _NOUNS else f"{count:,} {name}" for name, count in counts)
