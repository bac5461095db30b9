"""Which answer a response states, and whether it is right: a file per answer type, and ANSWER_TYPES to choose by."""

from __future__ import annotations

from mind.grading.answer_type import AnswerType
from mind.grading.choice import Choice
from mind.grading.clock_time import ClockTime
from mind.grading.latex import Latex
from mind.grading.number import Number
from mind.grading.words import Words
from mind.grading.yes_no import YesNo
from mind.records import Question

ANSWER_TYPES: tuple[AnswerType, ...] = (YesNo(), Choice(), ClockTime(), Number(), Words(), Latex())
"""The first that fits a question is its type. Latex fits whatever the others leave."""


def answer_type(question: Question) -> AnswerType:
    """How the gold answer of `question` is written, and so how answers to it are found and compared."""
    return next(kind for kind in ANSWER_TYPES if kind.fits(question))
