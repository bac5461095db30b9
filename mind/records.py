"""Plain records that the rooms of this package hand to one another: data, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rationale:
    """One teacher rationale: the name of its perspective and its text (without the answer suffix)."""

    perspective: str
    text: str


@dataclass(frozen=True)
class Question:
    """A question, its gold answer and its rationales, at most one a perspective.

    `choices` maps a label ("A", "yes") to its text for multiple-choice questions and is None otherwise; `answer` is
    then one of the labels. `rationales` is empty for questions that only serve evaluation.
    """

    id: str
    question: str
    answer: str
    choices: Mapping[str, str] | None = None
    rationales: tuple[Rationale, ...] = ()
