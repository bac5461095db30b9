"""What an answer type must know: the one place where types of answers differ.

Every method gets text as `mind.grading.plain_text.plain_text` makes it, and is linear in it, because texts come from a
model and may be arbitrarily odd.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import ClassVar

from mind.records import Grade, Question


class AnswerType(ABC):
    """How answers of one type are found, compared, asked for, and given away too early."""

    name: ClassVar[str]
    request: ClassVar[str] = "the final answer"
    """What the teacher is asked to write behind "####"."""

    @abstractmethod
    def fits(self, question: Question) -> bool:
        """Whether the gold answer of `question` is of this type."""

    # Finding

    @abstractmethod
    def unmarked(self, text: str, question: Question) -> str | None:
        """The answer that `text` states without a mark such as "####" before it; None if it states none."""

    def marked(self, statement: str, question: Question) -> str | None:
        """The answer within `statement`, which stands behind a mark or "the answer is"; None if it is none."""
        return self.unmarked(statement, question)

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
