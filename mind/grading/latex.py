"""LaTeX: every answer without choices that is not a plain number, a time or words."""

from __future__ import annotations

import re

from mind.grading.answer_type import AnswerType
from mind.grading.latex_equality import LATEX_TIMEOUT_SECONDS, latex_equality
from mind.grading.marks import FORMULA
from mind.grading.number_text import has_number
from mind.records import Grade, Question

_GRADES: dict[str, tuple[Grade, str]] = {
    "equal": ("right", "equal as LaTeX"),
    "different": ("wrong", "different as LaTeX"),
    "unparsed": ("unparsed", "not readable as LaTeX"),
    "timeout": ("unparsed", f"no result within {LATEX_TIMEOUT_SECONDS} s"),
}


_WORD = re.compile(r"(?<![A-Za-z\\])(?!(?:sqrt|pi|infinity|sin|cos|tan|log|ln|or|and)(?![A-Za-z]))[A-Za-z]{2,}")


class Latex(AnswerType):
    """Compared by `latex_equality`. Only a marked answer is reliable: other formulas may be any step of a solution."""

    name = "latex"

    def fits(self, question: Question) -> bool:
        return question.choices is None

    def marked(self, statement: str, question: Question) -> str | None:
        """The formula that `statement` begins with, else all of it."""
        formula = FORMULA.match(statement)
        return formula[0] if formula else statement

    def unmarked(self, text: str, question: Question) -> str | None:
        """`text` if it is nothing but a formula, else the only formula in dollar signs of its last sentence."""
        if "$" not in text and _is_formula(text):
            return text.strip()
        lines = [line for line in text.split("\n") if line.strip()]
        sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z])", lines[-1])[-1] if lines else ""
        formulas = FORMULA.findall(sentence)
        return formulas[0] if len(formulas) == 1 else None

    def compare(self, stated: str, question: Question) -> tuple[Grade, str]:
        return compare_latex(question.answer, stated)

    def mentions_gold(self, sentence: str, question: Question) -> bool:
        """Only as a number: a longer formula would have to be found in any notation."""
        return has_number(sentence, question.answer)


def _is_formula(text: str) -> bool:
    """Whether `text` is one line without words other than those that occur in formulas."""
    words = re.sub(r"\\(?:text|mathrm|mathbf)\s*\{[^{}]*\}", "", text.strip())
    return words != "" and "\n" not in words and _WORD.search(words) is None


def compare_latex(gold: str, stated: str) -> tuple[Grade, str]:
    """Whether two LaTeX answers are equal, and the reason; "unparsed" if there is no result within
    LATEX_TIMEOUT_SECONDS."""
    return _GRADES[latex_equality(gold, stated)]
