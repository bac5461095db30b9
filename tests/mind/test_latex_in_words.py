"""LaTeX answers that responses say in words, or with signs that SymPy does not know."""

from __future__ import annotations

import pytest

from mind.grading import latex_equality
from mind.grading.answers import judge_text
from mind.records import Question


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit that a busy machine does not reach."""
    monkeypatch.setattr(latex_equality._worker, "timeout_seconds", 60)


@pytest.mark.parametrize(
    ("gold", "responses", "verdict"),
    [
        ("\\emptyset", ["no solution", "No solutions.", "There is no solution.", "the empty set", "\\varnothing",
                        "\u2205", "\\{\\}", "\\text{no solution}"], "right"),
        ("\\emptyset", ["5", "x = 2", "\\{0\\}"], "wrong"),
        ("\\emptyset", ["none", "no real solution", "impossible", "no solution but 5"], "unparsed"),
        ("no solution", ["\\emptyset", "\u2205", "no solutions", "There is no solution"], "right"),
        ("no solution", ["5", "x = 5"], "wrong"),
        ("no solution", ["one solution", "none"], "unparsed"),
        ("\\angle ABC", ["\\angle{ABC}", "angle ABC", "\u2220ABC"], "right"),
        ("\\angle ABC", ["ABC", "ACB", "\\angle CBA", "\\angle ACB", "\\triangle ABC"], "unparsed"),
        ("\\angle ABC", ["\\angle ABX", "angle XYZ", "90"], "wrong"),
        ("\\triangle ABC", ["\u25b3ABC", "triangle ABC"], "right"),
        ("\\overline{AB}", ["\\overline{CD}", "CD"], "wrong"),
        ("0.\\overline{3}", ["1/3"], "right"),
        ("e^{i\\pi}", ["-1"], "right"),
        ("e^{i\\pi}", ["1", "i"], "wrong"),
        ("-1 + 2i", ["2e^{i\\pi/2} - 1"], "right"),
        ("\\cos\\theta + i\\sin\\theta", ["e^{i\\theta}"], "right"),
        ("i^2 + x", ["x - 1"], "unparsed"),  # i may be a variable
        ("2i", ["i", "-2i", "2"], "wrong"),
        ("\\frac{\\pi}{2}", ["pi over 2", "half of pi"], "unparsed"),
        ("\\frac{\\pi}{2}", ["no solution", "\\pi"], "wrong"),
        ("\\sqrt{2}", ["the square root of 2", "root 2", "Wurzel aus 2"], "unparsed"),
        ("x^2 + 1", ["a polynomial", "x^2, but should be x^2 + 1"], "unparsed"),
        ("x^2 + 1", ["x^2 - 1", "x^2", "\\sin x", "ABC"], "wrong"),
    ],
)  # fmt: skip
def test_words_for_a_formula_are_right_or_undecided(gold, responses, verdict):
    for response in responses:
        assert judge_text(f"#### {response}", Question("q", "What?", gold)).verdict == verdict, response
