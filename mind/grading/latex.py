"""LaTeX: every answer without choices that is not a plain number, a time or words."""

from __future__ import annotations

import re

from mind.grading.answer_type import AnswerType
from mind.grading.latex_equality import LATEX_TIMEOUT_SECONDS, latex_equality
from mind.grading.latex_notation import FUNCTIONS, normal_latex
from mind.grading.marks import FORMULA
from mind.grading.number_text import has_number
from mind.grading.plain_text import SUBSCRIPTS
from mind.grading.quantity import number_value
from mind.records import Grade, Question

_GRADES: dict[str, tuple[Grade, str]] = {
    "equal": ("right", "equal as LaTeX"),
    "different": ("wrong", "different as LaTeX"),
    "unparsed": ("unparsed", "not readable as LaTeX"),
    "timeout": ("unparsed", f"no result within {LATEX_TIMEOUT_SECONDS} s"),
}
_WORD = re.compile(
    rf"(?<![A-Za-z\\])(?!(?:sqrt|pi|infinity|or|and|[nxyz]?(?:{FUNCTIONS})[nxyz]?)(?![A-Za-z]))[A-Za-z]{{2,}}"
)
_CHEMICAL = re.compile(r"(?=[^0-9]*[0-9])(?:[A-Z][a-z]?[0-9]*|[()][0-9]*)+|[A-Z][a-z]")
"""Formulas of substances: H2O, Ca(OH)2, Co."""
_SUBSCRIPT = re.compile(r"[\s_{}$]|\\(?:mathrm|text|ce)(?![a-z])")
"""What is left out between the elements of H_2O or \\mathrm{H_{2}O}."""
_ROWS = re.compile(r"[\s$]*([\[(]\s*[\[(].{1,1000}[\])]\s*[\])])[\s$.]*", re.DOTALL)
"""A matrix as nested lists."""
_TUPLE = re.compile(r"[\s$]*[(\[]([^()\[\]]{1,400})[)\]][\s$.]*")
_SHARE = re.compile(r"\s*([0-9]{1,9})\s(?:in|out\sof)\s(?:every\s)?([0-9]{1,9})\s*\.?\s*")
_DIGIT = re.compile("[0-9]")
_PROSE = re.compile(rf"(?<![A-Za-z\\])(?!(?:sqrt|and|{FUNCTIONS})(?![A-Za-z]))[A-Za-z][a-z]{{2,}}(?![A-Za-z])")
"""Words that are neither functions nor names of points."""


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
        """As LaTeX; "75%" is equal to 75 and to 3/4, and "one half" to 1/2."""
        gold = question.answer
        if _CHEMICAL.fullmatch(plain := _SUBSCRIPT.sub("", gold)):
            return _compared_substance(plain, _SUBSCRIPT.sub("", stated.translate(SUBSCRIPTS)).strip("."))
        stated = _in_notation_of(gold, stated)
        grade = compare_latex(gold, stated)
        if grade[0] != "wrong":
            return grade
        value, is_percent = number_value(stated), "%" in stated
        if value is not None and (not _DIGIT.search(stated) or (is_percent and "%" not in gold)):
            exact = rf"\frac{{{value.numerator}}}{{{100**is_percent * value.denominator}}}"
            read = compare_latex(gold, exact)
            if read[0] == "right" or " of " not in stated:
                return read
        gold, stated = normal_latex(gold), normal_latex(stated)
        in_words = not gold.isalpha() and set(_PROSE.findall(stated)) - set(_PROSE.findall(gold))
        return ("unparsed", "in words") if in_words else grade

    def mentions_gold(self, sentence: str, question: Question) -> bool:
        """Only as a number: a longer formula would have to be found in any notation."""
        return has_number(sentence, question.answer)


def _compared_substance(gold: str, said: str) -> tuple[Grade, str]:
    """Letter by letter: as a product, NO2 would be N2O, and CO would be Co."""
    if said == gold:
        return "right", "the same formula of a substance"
    is_other = re.fullmatch("[A-Za-z0-9()]+", said) and said.lower() != gold.lower()
    return ("wrong", "another formula") if is_other else ("unparsed", "not the formula of a substance")


def _in_notation_of(gold: str, stated: str) -> str:
    """`stated` with matrices and shares as `gold` has them: [[1, 2], [3, 4]], 1 in 6."""
    if "matrix" in gold and (rows := _ROWS.fullmatch(stated)):
        return _matrix(rows[1])
    if "matrix" in gold and "&" not in gold and (column := _TUPLE.fullmatch(stated)):
        return r"\begin{pmatrix}" + column[1].replace(",", r"\\") + r"\end{pmatrix}"
    share = _SHARE.fullmatch(stated)
    return rf"\frac{{{share[1]}}}{{{share[2]}}}" if share else stated


def _matrix(rows: str) -> str:
    """The LaTeX of a matrix that is written as nested lists, [[1, 2], [3, 4]]."""
    found = re.findall(r"[\[(]([^\[\]()]*)[\])]", rows)
    return r"\begin{pmatrix}" + r"\\".join(row.replace(",", "&") for row in found) + r"\end{pmatrix}"


def _is_formula(text: str) -> bool:
    """Whether `text` is one line without words other than those that occur in formulas."""
    words = re.sub(r"\\(?:text|mathrm|mathbf|begin|end)\s*\{[^{}]*\}", "", text.strip())
    return words != "" and "\n" not in words and _WORD.search(words) is None


def compare_latex(gold: str, stated: str) -> tuple[Grade, str]:
    """Whether two LaTeX answers are equal, and the reason; "unparsed" if there is no result within
    LATEX_TIMEOUT_SECONDS."""
    return _GRADES[latex_equality(gold, stated)]
