"""The interface of an answer type: the only place where types of answers differ.

Every method gets text as `mind.grading.plain_text.plain_text` makes it, and takes time linear in its length, because a
model may write any text.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import ClassVar

from mind.records import Grade, Question
from mind.words import ends_word


class AnswerType(ABC):
    """How answers of one type are found, compared, asked for, and recognized as leaks."""

    name: ClassVar[str]
    request: ClassVar[str] = "the final answer"
    """What the teacher is asked to write after "####"."""

    reads_denials: ClassVar[bool] = False
    """Whether the methods below understand "A is wrong"; if not, a statement that denies its answer is undecided."""

    @abstractmethod
    def fits(self, question: Question) -> bool:
        """Whether the gold answer of `question` is of this type."""

    # Finding

    @abstractmethod
    def unmarked(self, text: str, question: Question) -> str | None:
        """The answer that `text` states without a mark such as "####" before it; None if it states none."""

    def marked(self, statement: str, question: Question) -> str | None:
        """The answer within `statement`, a text after a mark or after "the answer is"; None if it contains none."""
        return self.unmarked(statement, question)

    # Comparing

    @abstractmethod
    def compare(self, stated: str, question: Question) -> tuple[Grade, str]:
        """Whether the answer `stated` equals the answer of `question`, and a short phrase with the reason."""

    # Leaks

    def begins_with_gold(self, statement: str, question: Question) -> bool:
        """Whether `statement`, which follows "the answer is" in the first sentence, begins with the gold answer."""
        signs = map(re.escape, "".join(question.answer.strip("$").split()))
        gold = re.match(r"\s*".join(signs), statement)
        return gold is not None and ends_word(statement, gold.end())

    def readable(self, response: str) -> str:
        """`response` without what would hide its answer; as it is in most types."""
        return response

    def mentions_gold(self, sentence: str, question: Question) -> bool:
        """Whether `sentence`, which computes nothing, contains the gold answer."""
        return question.answer.lower() in sentence.lower()
