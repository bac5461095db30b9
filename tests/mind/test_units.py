"""How many of one unit another is, against the definitions of the units."""

from __future__ import annotations

from fractions import Fraction

import pytest

from mind.grading.units import conversion, is_unit, unit_at


@pytest.mark.parametrize(
    ("one", "other", "ratio"),
    [
        ("hours", "minutes", 60),
        ("min", "h", Fraction(1, 60)),
        ("km/h", "m/s", Fraction(5, 18)),
        ("miles per hour", "km/h", Fraction("1.609344")),
        ("square meters", "cm^2", 10_000),
        ("cubic ft", "in^3", 1728),
        ("pounds", "oz", 16),
        ("$", "cents", 100),
        ("years", "months", 12),
        ("m/s^2", "cm/s^2", 100),
        ("apples", "pears", 1),
        ("", "km", 1),
        ("km", "km/h", None),
        ("$", "euros", None),
        ("cm", "cm^2", None),
    ],
)
def test_units_are_converted_if_they_measure_the_same(one, other, ratio):
    assert conversion(one, other) == ratio


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        (" km/h on average", "km/h"),
        ("kg", "kg"),
        (" square feet of floor", "square feet"),
        (" miles an hour", "miles an hour"),
        (" meters squared", "meters squared"),
        (" mothers", ""),
        (" apples", ""),
        (" of them", ""),
    ],
)
def test_a_unit_is_found_behind_a_number(text, unit):
    assert unit_at(text, 0) == unit


@pytest.mark.parametrize(
    ("letters", "known"),
    [("kmh", True), ("mins", True), ("boxes", True), ("cups", True), ("sqrt", False), ("SQRT", False), ("xyz", False)],
)
def test_a_word_is_a_unit_and_a_root_is_not(letters, known):
    assert is_unit(letters, "How long is it?") == known
    assert is_unit("xyz", "How many xyz are there?")
