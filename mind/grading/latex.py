"""LaTeX: every answer without choices that is no plain number."""

from __future__ import annotations

import re

from mind.grading.answer_type import AnswerType
from mind.grading.latex_equality import LATEX_TIMEOUT_SECONDS, latex_equality
from mind.grading.marks import behind_phrase
from mind.grading.number_text import has_number
from mind.records import Grade, Question

_FORMULA_SIGNS = re.compile(r"[0-9\\$^_={]")
_GRADES: dict[str, tuple[Grade, str]] = {
    "equal": ("right", "equal as LaTeX"),
    "different": ("wrong", "different as LaTeX"),
    "unparsed": ("unparsed", "not readable as LaTeX"),
    "timeout": ("unparsed", f"no result within {LATEX_TIMEOUT_SECONDS} s"),
}


class Latex(AnswerType):
    """Compared by `latex_equality`. An answer must be marked: a formula in the text may be any step of the solution."""

    name = "latex"

    def fits(self, question: Question) -> bool:
        return question.choices is None

    def unmarked(self, text: str, question: Question) -> str | None:
        return None

    def in_phrase(self, phrase: str, question: Question) -> str | None:
        return phrase

    def is_formula(self, text: str) -> bool:
        return True

    def is_heading(self, line: str, below: str, question: Question) -> bool:
        return _FORMULA_SIGNS.search(line) is None and behind_phrase(below, self.is_formula) is not None

    def compare(self, stated: str, question: Question) -> tuple[Grade, str]:
        return compare_latex(question.answer, stated)

    def mentions_gold(self, sentence: str, question: Question) -> bool:
        """As a number: a longer formula would have to be found in any notation."""
        return has_number(sentence, question.answer)


def compare_latex(gold: str, stated: str) -> tuple[Grade, str]:
    """Whether two LaTeX answers are equal, and why; "unparsed" without a result in LATEX_TIMEOUT_SECONDS."""
    return _GRADES[latex_equality(gold, stated)]
