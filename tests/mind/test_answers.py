"""Answers: found in responses, compared with the gold answer, on the real files where they are at hand."""

from __future__ import annotations

import json
import signal
import threading
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mind import answers
from mind.answers import answer_kind, concluding_number, extract_answer, is_correct, number_value, suffix
from mind.records import Question

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is not next to the repository")

NUMBER = Question("n", "Ann has 5 pears and buys 7 more. How many pears has she?", "12")
CHOICE = Question("c", "Where is a revolving door?", "B", {"A": "book store", "B": "bank", "C": "store", "D": "mall"})
YES_NO = Question("y", "Is frost common in May?", "no", {"yes": "yes", "no": "no"})
LATEX = Question("l", "Which point?", "\\left( 3, \\frac{\\pi}{2} \\right)")


def with_answer(answer: str) -> Question:
    return Question("n", "How much?", answer)


@pytest.mark.parametrize("answer", ["12", "-3", "0.5", ".5", "3/4", "50%", "$18", "1,234", "-$1,234.00", "$-3"])
def test_plain_numbers_are_numbers(answer):
    assert answer_kind(with_answer(answer)) == "number"


@pytest.mark.parametrize("answer", ["\\frac{3}{4}", "3\\sqrt{2}", "p - q", "1,-2", "x=5", "east", "1,23", "52_8"])
def test_other_answers_are_latex(answer):
    assert answer_kind(with_answer(answer)) == "latex"


def test_the_choices_decide_the_kind():
    assert answer_kind(CHOICE) == "choice"
    assert answer_kind(YES_NO) == "yes_no"
    assert answer_kind(Question("y", "?", "Yes", {"Yes": "yes", "No": "no"})) == "yes_no"


@pytest.mark.parametrize(("response", "expected"), [
    ("5 + 7 = 11\n#### 11\n#### 12 pears\nAnd 3 more.", "12 pears"),
    ("So\n####\n12", "12"),
    ("It is \\boxed{5}, no, \\boxed{12}. Ann has 99.", "12"),
    ("It is \\boxed{5}.\n#### 12", "12"),
    ("The answer is 5. Wait: the answer is **12**. She is 30 years old.", "12"),
    ("**Final Answer:** $12.50 in 3 days", "3"),
    ("The answer is simple: she has 12.", "12"),
    ("5 + 7 = 12", "12"),
    ("Ann has 12 pears after buying 7.", "12"),
    ("Ann has 12 pears (5 and 7 = twelve).", "12"),
    ("Ann has 5 pears.", "5"),
    ("She ate 2.5 of 1,234.", "1,234"),
    ("It is -3.", "-3"),
    ("Take 20-8 (12).", "8"),
    ("no digits here", None),
    ("", None),
    ("####", None),
    ("\\boxed{12", "12"),
])
def test_numbers_are_extracted(response, expected):
    assert extract_answer(response, NUMBER) == expected


@pytest.mark.parametrize(("response", "expected"), [
    ("(A) is wrong, so it must be (B).", "B"),
    ("(b)", "B"),
    ("B", "B"),
    ("bank", "B"),
    ("The answer is B. bank, as (A) is no place.", "B"),
    ("The answer is a bank.", "B"),
    ("A revolving door is in a bank.", "B"),
    ("People buy in a book store.", "A"),
    ("It could be a mall or a bank.", None),
    ("A door is a door.", None),
    ("So it is\nC. store", "C"),
])
def test_choices_are_extracted(response, expected):
    assert extract_answer(response, CHOICE) == expected


@pytest.mark.parametrize(("response", "expected"), [
    ("Yes, in some places. In most: no.", "no"),
    ("The answer is Yes. There is no doubt.", "Yes"),
    ("The answer is clear. Nothing grows, so NO!", "NO"),
    ("Nobody knows yesterday.", None),
])
def test_yes_and_no_are_extracted(response, expected):
    assert extract_answer(response, YES_NO) == expected


@pytest.mark.parametrize(("response", "expected"), [
    ("so $\\boxed{\\frac{\\pi}{2}}$.", "\\frac{\\pi}{2}"),
    ("The answer is $(3, \\pi/2)$. Done.", "$(3, \\pi/2)$"),
    ("It may be 3.", None),
])
def test_latex_is_extracted_where_it_is_marked(response, expected):
    assert extract_answer(response, LATEX) == expected


@pytest.mark.parametrize(("extracted", "answer"), [
    ("1234", "$1,234.00"), ("$1,234.00", "1234"), ("50%", "50"), ("50", "50%"), ("12 apples", "12"),
    ("$18 per day", "18"), ("$-3", "-3"), ("-$3", "-3"), ("\u22123", "-3"), ("0.5", "1/2"), (".50", "0.5"),
    ("x = 12.", "12"), ("5 + 7 = 12 pears", "12"), ("**12**", "12"), ("\\$42.00", "42"), ("$42$", "42"),
    ("\\frac{84}{2}", "42"), ("42\\text{ dollars}", "42"), ("12 = x", "12"), ("007", "7"),
])
def test_equal_numbers_are_correct(extracted, answer):
    assert is_correct(extracted, with_answer(answer))


@pytest.mark.parametrize("extracted", ["13", "-12", "12.01", "1.2", "120", "12/0", "twelve", "", None])
def test_other_numbers_are_wrong(extracted):
    assert not is_correct(extracted, NUMBER)


def test_nothing_equals_a_fraction_without_value():
    assert not is_correct("twelve", with_answer("5/0"))


@pytest.mark.parametrize(("extracted", "correct"), [
    ("B", True), ("b", True), ("(B)", True), ("B. bank", True), ("Bank", True), (" bank. ", True), ("(B) bank", True),
    ("A", False), ("store", False), ("a river bank or a mall", False), ("", False), (None, False),
])
def test_choices_compare_by_label_or_text(extracted, correct):
    assert is_correct(extracted, CHOICE) is correct


@pytest.mark.parametrize(("extracted", "correct"), [
    ("No", True), ("no, it is not", True), ("YES", False), ("none", False), (None, False),
])
def test_yes_and_no_compare_in_any_case(extracted, correct):
    assert is_correct(extracted, YES_NO) is correct


@pytest.mark.parametrize(("extracted", "correct"), [
    ("\\left(3,\\frac{\\pi}{2}\\right)", True), ("(3, \\pi/2)", True), ("$(3, \\frac{\\pi}{2})$", True),
    ("(3, 2)", False), ("((((", False), ("\\frac{", False), ("", False), (None, False),
])
def test_latex_compares_by_value(extracted, correct):
    assert is_correct(extracted, LATEX) is correct


def in_a_thread(call):
    outcome = []

    def run():
        try:
            outcome.append(call())
        except RuntimeError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outcome[0]


def test_latex_outside_the_main_thread_is_an_error_unless_the_strings_are_identical():
    assert in_a_thread(lambda: is_correct("$\\left(3, \\frac{\\pi}{2}\\right)$", LATEX)) is True
    error = in_a_thread(lambda: is_correct("(3, \\pi/2)", LATEX))
    assert isinstance(error, RuntimeError)
    assert "main thread only" in str(error)


def test_latex_that_takes_too_long_is_wrong_and_logged(monkeypatch, caplog):
    import math_verify
    from math_verify.errors import TimeoutException

    def never(*_, **__):
        raise TimeoutException

    monkeypatch.setattr(math_verify, "parse", never)
    assert not is_correct("(3, \\pi/2)", LATEX)
    assert "no result within 5 s" in caplog.text


def test_an_extracted_answer_is_bounded():
    assert len(extract_answer("#### " + "9" * 50_000, NUMBER)) == answers.MAX_ANSWER_CHARACTERS
    assert number_value("9" * 50_000) is None


@given(st.fractions(), st.booleans())
def test_fractions_round_trip(value, spaced):
    written = f"{value.numerator}/{value.denominator}"
    assert number_value(f" {written} kg" if spaced else written) == value


@given(st.integers(-10**12, 10**12), st.integers(0, 6), st.sampled_from(["", "$", "€"]),
       st.sampled_from(["", "%", " apples", " per day", "."]), st.booleans())
def test_decimals_round_trip(mantissa, places, currency, unit, commas):
    value = Fraction(mantissa, 10**places)
    digits = f"{abs(mantissa) // 10**places:{',' if commas else ''}}"
    if places:
        digits += f".{abs(mantissa) % 10**places:0{places}}"
    written = f"{'-' if mantissa < 0 else ''}{currency}{digits}{unit}"
    question = with_answer(digits if mantissa >= 0 else f"-{digits}")
    assert number_value(written) == value
    assert is_correct(written, question)
    assert extract_answer(f"Some text.{suffix(written)}", question) == written.strip()
    assert is_correct(extract_answer(f"So it is {written}", question), question)


@given(st.text(max_size=200))
def test_any_text_is_handled(text):
    for question in (NUMBER, CHOICE, YES_NO):
        extracted = extract_answer(text, question)
        if not answers._LATEX_SIGNS.search(extracted or ""):
            is_correct(extracted, question)
    extract_answer(text, LATEX)


@pytest.mark.parametrize("piece", ["(", ")", "1", "1,111", ",", "1/", "answer ", "answer is ", "\\boxed{", "#", "yes",
                                   "A", "(B", " ", "\n", ".", "= ", "-", "$", "bank ", "{", "5 and 7. "])
def test_no_text_hangs_the_extraction(piece, hang_guard):
    text = piece * (100_000 // len(piece))
    for question in (NUMBER, CHOICE, YES_NO, LATEX):
        extract_answer(text, question)


@pytest.fixture
def hang_guard():
    """Interrupts a test after two minutes: a linear pattern takes a fraction of a second, a quadratic one more."""
    def interrupt(*_):
        raise TimeoutError("the extraction hangs")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def read(name):
    with (DATA / name).open() as file:
        for line in file:
            record = json.loads(line)
            yield record, Question(record["id"], record["question"], record["answer"], record.get("choices"))


@needs_data
@pytest.mark.parametrize(("name", "kinds"), [
    ("gsm8k.test.jsonl", {"number"}), ("svamp.test.jsonl", {"number"}), ("math500.test.jsonl", {"number", "latex"}),
    ("commonsense_qa.test.jsonl", {"choice"}), ("strategy_qa.test.jsonl", {"yes_no"}),
])
def test_every_gold_answer_is_its_own_answer(name, kinds):
    questions = [question for _, question in read(name)]
    assert {answer_kind(question) for question in questions} == kinds
    for question in questions:
        assert is_correct(extract_answer(f"So it is.{suffix(question.answer)}", question), question)


@needs_data
def test_concluding_numbers_find_the_answers_of_human_solutions():
    found = [number_value(concluding_number(record["rationale"], question.question)) == number_value(question.answer)
             for record, question in read("gsm8k.test.jsonl")]
    assert sum(found) / len(found) > 0.98


@needs_data
def test_concluding_numbers_find_more_than_last_numbers_in_sampled_rationales():
    found = [is_correct(concluding_number(text, question.question), question)
             for record, question in read("svamp_multi_cot.train.jsonl") for text in record["rationales"]]
    assert len(found) == 7_000
    assert 0.72 < sum(found) / len(found) < 0.75
