"""Dates in digits with the year first or last, and dates with a time of day."""

from __future__ import annotations

import pytest

from mind.grading.answers import judge_text
from mind.records import Question


@pytest.mark.parametrize(
    ("gold", "response", "verdict"),
    [
        ("2024-12-25", "#### 25.12.2024", "right"),
        ("2024-12-25", "#### 12/25/2024", "right"),
        ("25/12/2024", "It ended on 2024-12-25.", "right"),
        ("2024-05-05", "#### 05/05/2024", "right"),
        ("2024-05-03", "#### 2024/05/03", "right"),
        ("2024-05-03", "#### 03.05.2024", "unparsed"),  # of which order is not known
        ("2024-05-03", "#### 05/03/2024", "unparsed"),
        ("03/05/2024", "#### 2024-05-03", "unparsed"),
        ("2024-05-03", "#### 04.06.2024", "wrong"),
        ("2024-05-03", "#### 2024-03-05", "wrong"),
        ("03/05/2024", "#### 05/03/2024", "wrong"),
        ("03/05/2024", "#### 03.05.2024", "right"),  # in whatever order
        ("2024-12-31", "#### 31.12.2024", "right"),
        ("2024-99-99", "#### 99.99.2024", "wrong"),  # no dates
    ],
)
def test_a_date_may_have_its_year_first_or_last(gold, response, verdict):
    assert judge_text(response, Question("q", "When?", gold)).verdict == verdict


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("#### 2024-05-23 14:30:00", "right"),
        ("#### 2024-05-23 14:30", "right"),
        ("#### 2024-05-23T14:30:00Z", "right"),
        ("#### 23.05.2024, 14:30", "right"),
        ("It began at 14:30 on 2024-05-23.", "right"),
        ("#### 2024-05-23 14:31:00", "wrong"),
        ("#### 2024-05-24 14:30:00", "wrong"),
        ("#### 2024-05-23", "unparsed"),
        ("#### 14:30", "unparsed"),
        ("#### 2024-05-23 2:30 pm", "unparsed"),
        ("It was 2024-05-23 at 14:30 or 15:30.", "unparsed"),
        ("It was 2024-05-23 or 2024-05-24 at 14:30.", "unparsed"),
    ],
)
@pytest.mark.parametrize("gold", ["2024-05-23 14:30:00", "2024-05-23T14:30:00Z", "2024-05-23 14:30:00+00:00"])
def test_a_date_with_a_time_of_day_is_compared_by_both(gold, response, verdict):
    assert judge_text(response, Question("q", "When?", gold)).verdict == verdict


def test_a_date_is_enough_for_the_midnight_that_tables_add():
    gold = Question("q", "When?", "2024-05-23 00:00:00")
    assert judge_text("#### 2024-05-23", gold).verdict == judge_text("#### 23.05.2024", gold).verdict == "right"
    assert judge_text("#### 2024-05-24", gold).verdict == "wrong"
    assert judge_text("#### 2024-05-23 12:00", gold).verdict == "wrong"
