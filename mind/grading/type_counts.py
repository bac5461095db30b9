"""Counts questions per answer type, so that users can see the detected types before they matter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mind.grading import answer_type
from mind.records import Question


def type_counts(questions: Iterable[Question]) -> dict[str, int]:
    """The name of an answer type -> number of questions of that type, the most frequent first."""
    counts = Counter(answer_type(question).name.replace("_", "/") for question in questions)
    return dict(counts.most_common())


def described_types(questions: Iterable[Question]) -> str:
    """The same in words: "14 number, 3 choice, 2 yes/no"."""
    return ", ".join(f"{count:,} {name}" for name, count in type_counts(questions).items())
