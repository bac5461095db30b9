"""What an answer type must know: the one place where types of answers differ.

Every method is linear in its text, because texts come from a model and may be arbitrarily odd.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from mind.grading.marks import FORMULA, LATEX_SIGNS
from mind.records import Grade, Question

GoldAnswer = tuple[str, Mapping[str, str] | None]
"""An answer and the choices that it belongs to, as in mind.records.Question."""


class AnswerType(ABC):
    """How answers of one type are found, compared, asked for, and given away too early."""

    name: ClassVar[str]
    request: ClassVar[str] = "the final answer"
    """What the teacher is asked to write behind "####"."""

    @abstractmethod
    def fits(self, question: Question) -> bool:
        """Whether the gold answer of `question` is of this type."""

    def gold(self, value: object) -> GoldAnswer | None:
        """The gold answer that `value` of a data set stands for; None if it is a text, a number or another type's."""
        return None

    # Finding

    @abstractmethod
    def unmarked(self, text: str, question: Question) -> str | None:
        """The answer that `text` states without a mark such as "####" before it; None if it states none."""

    def in_phrase(self, phrase: str, question: Question) -> str | None:
        """The answer within `phrase`, which follows "the answer is"; None if it states none."""
        return phrase if FORMULA.fullmatch(phrase) else self.unmarked(phrase, question)

    def is_formula(self, text: str) -> bool:
        """Whether `text`, between two dollar signs, is a formula, and not what stands between two prices."""
        return LATEX_SIGNS.search(text) is not None

    def is_heading(self, line: str, below: str, question: Question) -> bool:
        """Whether `line`, behind "####", only announces the answer that stands `below` it, as "Final answer" does."""
        return self.unmarked(line, question) is None

    # Comparing

    @abstractmethod
    def compare(self, stated: str, question: Question) -> tuple[Grade, str]:
        """Whether the answer `stated` is that of `question`, and a short phrase that says why."""

    # Leaks

    def begins_with_gold(self, statement: str, question: Question) -> bool:
        """Whether `statement`, which follows "the answer is" in the first sentence, begins with the gold answer."""
        signs = map(re.escape, "".join(question.answer.strip("$").split()))
        return re.match(r"\s*".join(signs) + r"(?!\w)", statement) is not None

    def mentions_gold(self, sentence: str, question: Question) -> bool:
        """Whether `sentence`, which computes nothing, holds the gold answer."""
        return question.answer.lower() in sentence.lower()
