"""Numbers in words and in LaTeX as digits, and the signs of plain text."""

from __future__ import annotations

import pytest

from mind.grading.number_notation import in_digits, part_size, plain_number
from mind.grading.plain_text import plain_text, unwrapped, with_overlines


@pytest.mark.parametrize(
    ("words", "digits"),
    {
        "one half": "1/2",
        "two halves": "2/2",
        "two thirds": "2/3",
        "2 3rds": "2/3",
        "three quarters": "3/4",
        "3 fourths": "3/4",
        "1 4th": "1/4",
        "four fifths": "4/5",
        "3 5ths": "3/5",
        "five sixths": "5/6",
        "5 6ths": "5/6",
        "3 eighths": "3/8",
        "3 8ths": "3/8",
        "7 tenths": "7/10",
        "7 10ths": "7/10",
        "one and a half million": "1.5 million",
        "forty-two": "42",
        "minus seven": "minus 7",
        "a dozen": "1 dozen",
    }.items(),
)
def test_words_are_digits(words, digits):
    assert in_digits(words) == digits


@pytest.mark.parametrize(
    ("text", "plain"),
    {
        "5 squared": "5^2",
        "2 cubed": "2^3",
        "10 to the power of 3": "10^3",
        "10 to the 6th power": "10^6",
        "2 raised to the minus 3 power": "2^-3",
        "3 times 10 to the power 4": "3\u00d710^4",
        "2 squared, 2 cubed and 2 to the power of 5": "2^2, 2^3 and 2^5",
        "$2\\frac{1}{2}\\text{ m}$": "2 1/2 m",
        "\\frac12": "1/2",
        "x -> 5": "x = 5",
        "0.1\\overline{6}": "0.1(6)",
        "0.\\bar3": "0.(3)",
    }.items(),
)
def test_notation_is_plain(text, plain):
    assert plain_number(text) == plain


@pytest.mark.parametrize("text", ["**5**", "*5*", "`5`", "_5_"])
def test_emphasis_of_any_kind_is_left_out(text):
    assert plain_text(text) == "5"


def test_full_width_signs_end_with_the_tilde():
    assert plain_text("\uff01 \uff5e \uff5f") == "!  ~ \uff5f"


@pytest.mark.parametrize(("text", "plain"), [("5~m", "5 m"), ("\\text{B}", "B"), ("5\\,m", "5 m")])
def test_fonts_and_spaces_are_left_out(text, plain):
    assert unwrapped(text) == plain


def test_three_fonts_within_one_another_are_left_out():
    assert unwrapped("\\textbf{\\text{\\mathrm{B}}}") == "B"
    assert unwrapped("\\textbf{\\text{\\mathrm{\\text{B}}}}") == "\\textbf{B}"


@pytest.mark.parametrize("dots", ["...", "\u2026", "\\dots", "\\ldots"])
def test_repeating_digits_get_a_line_above(dots):
    assert with_overlines(f"0.1666{dots}") == "0.1\\overline{6}"


def test_parts_have_their_size_in_words_and_digits():
    sizes = {"half": 2, "halves": 2, "third": 3, "3rds": 3, "quarters": 4, "fourth": 4, "4th": 4, "fifths": 5, "5th": 5}
    sizes |= {"sixth": 6, "6ths": 6, "eighths": 8, "8th": 8, "tenth": 10, "10ths": 10}
    assert {name: part_size(name) for name in sizes} == sizes
