"""Whether a stated answer is the gold answer, type by type."""

from __future__ import annotations

import threading

import pytest
from test_answers import CHOICE, LATEX, NUMBER, YES_NO, with_answer

from mind.grading import latex_equality
from mind.grading.answers import is_correct, judge_text
from mind.records import Question


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A time limit for LaTeX that a busy machine does not reach."""
    monkeypatch.setattr(latex_equality._worker, "timeout_seconds", 60)


@pytest.mark.parametrize(
    ("extracted", "answer"),
    [
        ("1234", "$1,234.00"),
        ("$1,234.00", "1234"),
        ("50%", "50"),
        ("50", "50%"),
        ("12 apples", "12"),
        ("$18 per day", "18"),
        ("$-3", "-3"),
        ("-$3", "-3"),
        ("\u22123", "-3"),
        ("0.5", "1/2"),
        (".50", "0.5"),
        ("x = 12.", "12"),
        ("5 + 7 = 12 pears", "12"),
        ("**12**", "12"),
        ("\\$42.00", "42"),
        ("$42$", "42"),
        ("\\frac{84}{2}", "42"),
        ("42\\text{ dollars}", "42"),
        ("12 = x", "12"),
        ("007", "7"),
        ("twelve", "12"),
        ("1{,}234", "1234"),
        ("10,\\!080", "10,080"),
        ("$\\$12$", "12"),
        ("(12)", "12"),
        ("12^\\circ", "12"),
        ("12\\text{ cm}^2", "12"),
        ("$118 000", "118000"),
    ],
)
def test_equal_numbers_are_correct(extracted, answer):
    assert is_correct(extracted, with_answer(answer))


@pytest.mark.parametrize(
    "extracted",
    [
        "13",
        "-12",
        "12.01",
        "1.2",
        "120",
        "12/0",
        "eleven",
        "",
        None,
        "12 or 13",
        "13 or 12",
        "11,12",
        "(a+2)(b+12)",
        "2 + 12i",
        "12_8",
        "12x",
        "\\frac{12}{2}",
    ],
)
def test_other_numbers_are_wrong(extracted):
    assert not is_correct(extracted, NUMBER)


def test_nothing_equals_a_fraction_without_value():
    assert not is_correct("twelve", with_answer("5/0"))


@pytest.mark.parametrize(
    ("extracted", "correct"),
    [
        ("B", True),
        ("b", True),
        ("(B)", True),
        ("B. bank", True),
        ("Bank", True),
        (" bank. ", True),
        ("(B) bank", True),
        ("A", False),
        ("store", False),
        ("a river bank or a mall", False),
        ("", False),
        (None, False),
    ],
)
def test_choices_compare_by_label_or_text(extracted, correct):
    assert is_correct(extracted, CHOICE) is correct


@pytest.mark.parametrize(
    ("extracted", "correct"),
    [
        ("No", True),
        ("no, it is not", True),
        ("YES", False),
        ("none", False),
        (None, False),
    ],
)
def test_yes_and_no_compare_in_any_case(extracted, correct):
    assert is_correct(extracted, YES_NO) is correct


@pytest.mark.parametrize(
    ("extracted", "correct"),
    [
        ("\\left(3,\\frac{\\pi}{2}\\right)", True),
        ("(3, \\pi/2)", True),
        ("$(3, \\frac{\\pi}{2})$", True),
        ("(3, 2)", False),
        ("((((", False),
        ("\\frac{", False),
        ("", False),
        (None, False),
    ],
)
def test_latex_compares_by_value(extracted, correct):
    assert is_correct(extracted, LATEX) is correct


def test_latex_compares_in_any_thread():
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(is_correct("(3, \\pi/2)", LATEX))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [True] * 3


PARIS, DAY, EQUATION = Question("p", "Where?", "Paris"), Question("d", "When?", "July 4"), Question("x", "?", "x^2")


@pytest.mark.parametrize(
    ("question", "responses", "verdict"),
    [
        (NUMBER, ["12, but should be 13", "12, but it should be 13", "12 but should be 13", "12 (should be 13)",
                  "12; actually 13", "12 (actually 13)", "12, should have been 13", "12, which should be 13",
                  "12, although the correct value is 13", "12, but that is wrong", "12, wait, that is wrong",
                  "\\boxed{12}, but should be 13", "$\\boxed{12}$ (should be 13)"], "unparsed"),
        (NUMBER, ["13, but should be 12", "13; actually 12"], "unparsed"),
        (NUMBER, ["12, no wait, 13", "12, wait, 13", "12 or rather 13", "12, or rather 13", "12 - no, 13", "12; no, 13",
                  "12... no, 13", "12, I mean 13", "12, correction: 13", "12, but the correct answer is 13",
                  "13, not 12", "14, but should be 13"], "wrong"),
        (NUMBER, ["12, not 13", "12, actually", "13, no wait, 12", "12; it should be 12", "It should be 12",
                  "12, rather than 13", "12 (which is the right number of pears)"], "right"),
        (CHOICE, ["B, but should be C", "bank, but it should be the mall"], "unparsed"),
        (YES_NO, ["no, but should be yes"], "unparsed"),
        (PARIS, ["Paris, but should be London", "Paris, no wait, London", "Paris, or London"], "unparsed"),
        (PARIS, ["Paris, no doubt", "Paris, rather than London", "Since it is hot, it should be Paris"], "right"),
        (DAY, ["July 4, but should be July 5", "July 4, no wait, the 5th"], "unparsed"),
    ],
)  # fmt: skip
def test_an_answer_that_is_taken_back_does_not_count(question, responses, verdict):
    for response in responses:
        assert judge_text(f"#### {response}", question).verdict == verdict, response


def test_an_answer_in_a_sentence_is_taken_back_too():
    for sentence in ("The answer is 12, but should be 13.", "The answer is 12 (actually 13)."):
        judgement = judge_text(sentence, NUMBER)
        assert judgement.verdict == "unparsed" and not is_correct(judgement.extracted, NUMBER), sentence


HALF, FRACTION, MINUTES = with_answer("0.5"), with_answer("\\frac{1}{2}"), with_answer("30 minutes")
THIRD, TWELFTH = with_answer("1/3"), with_answer("12")


@pytest.mark.parametrize(
    ("question", "responses", "verdict"),
    [
        (with_answer("3/5"), ["3 out of 5", "3 in 5", "3 of 5", "three out of five", "3 out of every 5", "6 out of 10",
                              "3 out of 5 people", "The probability is 3 out of 5.", "a 3 in 5 chance"], "right"),
        (with_answer("3/5"), ["2 out of 5", "5 out of 3", "3 in 4"], "wrong"),
        (with_answer("3/5"), ["3:5", "3 to 5"], "unparsed"),
        (with_answer("0.6"), ["3 out of 5", "3 in 5"], "right"),
        (with_answer("60%"), ["3 out of 5"], "right"),
        (NUMBER, ["12 out of 20", "12 of the 20", "12 in 20", "twelve out of twenty"], "right"),
        (NUMBER, ["20 out of 30", "20 in 30"], "wrong"),
        (with_answer("20"), ["12 out of 20"], "unparsed"),
        (with_answer("20"), ["20 in 2019", "20 of the 30 pears"], "right"),
        (with_answer("3:5"), ["3 to 5", "3 is to 5", "The ratio is 3 to 5.", "three to five", "3 : 5"], "right"),
        (with_answer("3:5"), ["5 to 3", "3 to 4"], "wrong"),
        (with_answer("3:4:5"), ["3 to 4 to 5"], "right"),
        (HALF, ["half", "Half.", "one half", "a half", "one-half", "about half", "half of it"], "right"),
        (FRACTION, ["half", "one half", "a half"], "right"),
        (THIRD, ["a third", "a third of them", "one third"], "right"),
        (with_answer("2/3"), ["two thirds", "two-thirds of it"], "right"),
        (with_answer("\\frac{3}{4}"), ["three quarters", "three fourths"], "right"),
        (with_answer("1/4"), ["a quarter", "a fourth", "a fourth of it", "one quarter"], "right"),
        (HALF, ["a third", "two halves"], "wrong"),
        (MINUTES, ["half an hour", "half of an hour"], "right"),
        (with_answer("6"), ["half a dozen"], "right"),
        (TWELFTH, ["half", "half of the students", "a third of the students", "50% of them"], "unparsed"),
        (TWELFTH, ["half of 20", "half-life"], "unparsed"),
        (TWELFTH, ["12. That is 12.", "12. It is the number of pears."], "right"),
        (TWELFTH, ["12. That is the answer to question 3.", "12. So 13 in all."], "unparsed"),
        (with_answer("3"), ["12. That is the answer to question 3."], "unparsed"),
        (TWELFTH, ["12. No, 13."], "wrong"),
    ],
)  # fmt: skip
def test_shares_ratios_and_parts_in_words(question, responses, verdict):
    for response in responses:
        assert judge_text(f"#### {response}", question).verdict == verdict, response


@pytest.mark.parametrize(
    ("response", "verdict"),
    [("She answered 12 out of 20 questions.", "right"), ("She answered 20 out of 30 questions.", "wrong")],
)
def test_a_share_in_a_sentence_is_its_first_number(response, verdict):
    assert judge_text(response, Question("q", "How many questions did she answer?", "12")).verdict == verdict
    assert judge_text(response, Question("q", "Which part did she answer?", "3/5")).verdict == verdict
