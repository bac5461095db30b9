"""Finds the answer that a response states and decides whether it is right: one file per answer type, listed in
ANSWER_TYPES."""

from __future__ import annotations

from mind.grading.answer_type import AnswerType
from mind.grading.choice import Choice
from mind.grading.clock_time import ClockTime
from mind.grading.date import Date
from mind.grading.digit_groups import DigitGroups
from mind.grading.latex import Latex
from mind.grading.number import Number
from mind.grading.ratio import Ratio
from mind.grading.words import Words
from mind.grading.yes_no import YesNo
from mind.records import Question

ANSWER_TYPES: tuple[AnswerType, ...] = (
    YesNo(),
    Choice(),
    Ratio(),
    ClockTime(),
    Date(),
    Number(),
    DigitGroups(),
    Words(),
    Latex(),
)
"""The answer types; the first one that fits a question is used. Latex fits whatever the others do not."""


def answer_type(question: Question) -> AnswerType:
    """The type of the gold answer of `question`, which decides how answers to it are found and compared."""
    return next(kind for kind in ANSWER_TYPES if kind.fits(question))
