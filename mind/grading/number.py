"""Numbers: plain integers, decimals, fractions and percentages, with or without currency sign and thousands commas."""

from __future__ import annotations

import re
from fractions import Fraction

from mind.grading.answer_type import AnswerType
from mind.grading.latex import compare_latex
from mind.grading.latex_equality import normal_latex
from mind.grading.marks import LATEX_SIGNS
from mind.grading.number_text import (
    begins_with_number,
    concluding_number,
    equal_in_cents,
    has_number,
    is_number,
    number_value,
    plain,
)
from mind.records import Grade, Question

_WORD_OR_EQUATION = re.compile(r"[^\W\d_]{2}|=")
_ALTERNATIVES = re.compile(r"[0-9]%?\s+or\s+[-$]?[0-9]")


class Number(AnswerType):
    """Compared as exact fractions, whatever their commas, currency, percent sign or trailing unit.

    Dollars are equal to cents if the question asks for cents (`equal_in_cents`), and a formula is compared as LaTeX.
    """

    name = "number"

    def fits(self, question: Question) -> bool:
        return question.choices is None and is_number(question.answer)

    def unmarked(self, text: str, question: Question) -> str | None:
        """The number that `text` concludes with (`concluding_number`)."""
        return concluding_number(text, question.question)

    def compare(self, stated: str, question: Question) -> tuple[Grade, str]:
        value = _stated_value(stated, question.question)
        if value is None and _WORD_OR_EQUATION.search(stated) and not LATEX_SIGNS.search(stated):
            return "unparsed", "not a number"
        if value is None:
            return compare_latex(question.answer, stated)
        if value == number_value(question.answer):
            return "right", "equal as numbers"
        if equal_in_cents(stated, question.answer, question.question):
            return "right", "equal in cents"
        return "wrong", "different as numbers"

    def begins_with_gold(self, statement: str, question: Question) -> bool:
        return begins_with_number(statement, question.answer)

    def mentions_gold(self, sentence: str, question: Question) -> bool:
        return has_number(sentence, question.answer)


def _stated_value(stated: str, question: str) -> Fraction | None:
    """The number that `stated` is or, if it is a sentence, concludes with; None for other formulas."""
    value = number_value(normal_latex(stated) if LATEX_SIGNS.search(stated) else stated)
    if value is not None or not _is_sentence(stated):
        return value
    number = concluding_number(stated, question)
    return number_value(number) if number else None


def _is_sentence(stated: str) -> bool:
    return _WORD_OR_EQUATION.search(stated) is not None and not (
        LATEX_SIGNS.search(plain(stated)) or _ALTERNATIVES.search(stated)
    )
