"""How many questions there are of each answer type: what a user sees of the choice before it matters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mind.grading import answer_type
from mind.records import Question


def described_types(questions: Iterable[Question]) -> str:
    """The questions by the type of their answers, in words: "14 number, 3 choice, 2 yes/no"."""
    counts = Counter(answer_type(question).name.replace("_", "/") for question in questions)
    return "answers by type: " + ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
