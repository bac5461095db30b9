"""Answers of any text: extraction and comparison end, and take no long."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_answers import CHOICE, LATEX, NUMBER, TIME, WORDS, YES_NO

from mind.answer_line import suffix
from mind.grading import latex_equality
from mind.grading.answers import extract_answer, is_correct, judge_text
from mind.grading.plain_text import LATEX_SIGNS, plain_text
from mind.grading.quantity import number_value
from mind.records import Question
from tests.fuzz.mutations import PIECES


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A time limit for LaTeX that a busy machine does not reach."""
    monkeypatch.setattr(latex_equality._worker, "timeout_seconds", 60)


@given(
    st.integers(-(10**12), 10**12),
    st.integers(0, 6),
    st.sampled_from(["", "$", "€"]),
    st.sampled_from(["", "%", " apples", " per day", "."]),
    st.booleans(),
)
def test_decimals_round_trip(mantissa, places, currency, unit, commas):
    value = Fraction(mantissa, 10**places)
    digits = f"{abs(mantissa) // 10**places:{',' if commas else ''}}"
    if places:
        digits += f".{abs(mantissa) % 10**places:0{places}}"
    written = f"{'-' if mantissa < 0 else ''}{currency}{digits}{unit}"
    gold = digits if mantissa >= 0 else f"-{digits}"
    question = Question("n", "By what percent?" if unit == "%" else "How much?", gold)
    assert number_value(written) == value
    assert is_correct(written, question)
    assert extract_answer(f"Some text.{suffix(written)}", question) == written.strip()
    assert is_correct(extract_answer(f"So it is {written}", question), question)


@settings(deadline=None)  # the first text that may be LaTeX starts a process
@given(st.text(max_size=200))
def test_any_text_is_handled(text):
    for question in (NUMBER, CHOICE, YES_NO, TIME, WORDS):
        extracted = extract_answer(text, question)
        if not LATEX_SIGNS.search(extracted or ""):
            is_correct(extracted, question)
    extract_answer(text, LATEX)


@pytest.mark.parametrize("piece", PIECES)
def test_no_text_takes_the_extraction_long(piece):
    """Every pattern is linear: ten million characters take what the last MAX_RESPONSE_CHARACTERS do, some 0.1 s."""
    text = piece * (10_000_000 // len(piece))
    for question in (NUMBER, Question("n", "", "12"), CHOICE, YES_NO, TIME, WORDS, LATEX):
        for response in (text, f"12 {text[-30_000:]} 12", f"{text[-10_000:]}\\boxed{{{text[-9_000:]}}}"):
            start = time.process_time()
            extract_answer(response, question)
            assert time.process_time() - start < 2


@pytest.mark.parametrize("piece", PIECES)
def test_no_text_takes_the_comparison_of_numbers_and_choices_long(piece, monkeypatch):
    monkeypatch.setattr(latex_equality, "_compared", lambda *_: "different")
    for question in (NUMBER, CHOICE, YES_NO, TIME, WORDS, LATEX):
        start = time.process_time()
        is_correct(piece * 10_000, question)
        assert time.process_time() - start < 2


@pytest.mark.parametrize("choice", ["a" * 1_500, "(" * 999, "\\", ".*", "[", "\0", "a|b", "\u017f", "(?i)", "$", "1"])
def test_hostile_choices_are_compared_as_text(choice):
    question = Question("c", "?", "A", {"A": choice, "\u0130": "other", "s": "third"})
    for response in (choice, f"It is {choice}.", choice * 20, "(\u017f)", "(i)", "(\u212a)"):
        start = time.process_time()
        judge_text(response, question)
        assert time.process_time() - start < 2
    assert judge_text(f"#### {choice}", question).verdict == "right" or not plain_text(choice).strip(" \t\n*`.:()[]")
