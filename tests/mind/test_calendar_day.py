"""Dates in digits with the year first or last, dates with the name of a month, and dates with a time of day."""

from __future__ import annotations

import pytest

from mind.grading import answer_type
from mind.grading.answers import judge_text
from mind.grading.date import Date
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


@pytest.mark.parametrize(
    ("gold", "responses", "verdict"),
    [
        ("July 4", ["4 July", "July 4th", "the 4th of July", "Jul 4", "Jul. 4", "04 Jul", "July fourth"], "right"),
        ("July 4", ["It falls on July 4.", "July 4, because it is", "Tuesday, July 4", "4. July"], "right"),
        ("July 4", ["July 5", "August 4", "the 5th of July", "on 4 June"], "wrong"),
        ("July 4", ["July 4, 1776", "7/4", "4", "July", "Independence Day"], "unparsed"),
        ("July 4", ["July 4 or 5", "July 4-6", "July 4, 5 and 6", "July 4 or July 5", "3 and 4 July"], "unparsed"),
        ("July 4", ["not July 4", "the day before July 4", "July 4, no wait, the 5th", "July 4%"], "unparsed"),
        ("July 4, 1776", ["4 July 1776", "1776-07-04", "4-Jul-1776", "1776 July 4", "July 4th of 1776"], "right"),
        ("July 4, 1776", ["Thursday, July 4, 1776", "the Fourth of July 1776", "1776/7/4"], "right"),
        ("July 4, 1776", ["July 4", "07/04/1776", "04.07.1776", "1776"], "unparsed"),
        ("July 4, 1776", ["July 5", "July 4, 1777", "07/05/1776", "13.07.1776", "1776-04-07"], "wrong"),
        ("the twenty-first of May", ["21 May", "May 21st"], "right"),
        ("May 2", ["2 May", "It is 2 May.", "the second of May"], "right"),
        ("May 2", ["you may 2", "You may choose 2", "He may win 2 May cups."], "unparsed"),
        ("Thursday, July 4", ["July 4", "Thu, 4 Jul"], "right"),
        ("Thursday, July 4", ["Friday, July 4"], "unparsed"),
        ("Sept 5", ["September 5", "5 Sep"], "right"),
        ("1776-07-04", ["4 July 1776", "It was on July 4, 1776.", "1776-07-04 (July 4, 1776)", "Jul 4 1776"], "right"),
        ("1776-07-04", ["5 July 1776", "July 5"], "wrong"),
        ("1776-07-04", ["July 4", "4 July 1776 or 5 July 1776", "not July 4, 1776"], "unparsed"),
        ("2020-01-02", ["January 2, 2020"], "right"),
        ("03/05/2024", ["May 3, 2024", "March 5, 2024"], "unparsed"),
        ("03/05/2024", ["May 5, 2024"], "wrong"),
        ("2024-05-23 14:30:00", ["May 23, 2024, 14:30", "14:30 on 23 May 2024"], "right"),
        ("2024-05-23 14:30:00", ["May 24, 2024, 14:30", "May 23, 2024, 14:31"], "wrong"),
        ("2024-05-23 14:30:00", ["May 23, 2024"], "unparsed"),
    ],
)  # fmt: skip
def test_a_date_may_name_its_month(gold, responses, verdict):
    question = Question("q", "When?", gold)
    for response in responses:
        assert judge_text(f"#### {response}", question).verdict == verdict, response


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("So the party is on the 4th of July.", "right"),
        ("It began in June. It ended on July 4.", "right"),
        ("It ended on July 5.", "unparsed"),  # perhaps something else ended
        ("It ended after July 4.", "unparsed"),
    ],
)
def test_a_date_without_a_mark_counts_only_if_it_is_right(response, verdict):
    assert judge_text(response, Question("q", "When?", "July 4")).verdict == verdict


def test_a_date_is_given_away_in_any_notation():
    question = Question("q", "When?", "July 4, 2024")
    for said in ("it is the 4th of July 2024", "from 2024-07-01 to 2024-07-04", "on 4 July 2024, not on July 5, 2024"):
        assert Date().mentions_gold(said, question), said
    for said in ("it is July 5, 2024", "in July 2024", "on 4 June 2024"):
        assert not Date().mentions_gold(said, question), said
    assert not Date().mentions_gold("on July 4", Question("q", "When?", "soon"))


def test_two_dates_are_undecided():
    for said in ("July 4 or July 5", "July 5 is July 4", "The date July 4 is July 5"):
        verdict = judge_text(f"#### {said}", Question("q", "When?", "July 4"))
        assert (verdict.verdict, verdict.reason) == ("unparsed", "several dates"), said


@pytest.mark.parametrize(
    ("gold", "right", "wrong", "unparsed"),
    [
        ("Tuesday", ["Tue", "Tues", "Tues.", "on Tuesday", "Tue, July 4"], ["Wed", "Monday", "Thu"], []),
        ("Thu", ["Thursday", "Thurs", "thu."], ["Tue"], []),
        ("Sunday", ["Sun", "sun."], ["Sat", "Mon"], []),
        ("Sun", ["the Sun"], ["Monday", "Moon"], ["Sunday"]),  # perhaps the star
        ("July", ["Jul", "Jul."], ["Jun", "August"], ["July 4"]),
        ("May", ["may"], ["Mar"], ["May 5"]),
    ],
)
def test_months_and_days_of_the_week_may_be_abbreviated(gold, right, wrong, unparsed):
    question = Question("q", "Which?", gold)
    for verdict, responses in (("right", right), ("wrong", wrong), ("unparsed", unparsed)):
        for response in responses:
            assert judge_text(f"#### {response}", question).verdict == verdict, response


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("July 4", "date"), ("4 July", "date"), ("4 Mar", "date"), ("the 4th of July, 1776", "date"),
        ("\\text{July 4}", "date"), ("Feb 29", "date"), ("Feb 30", "words"), ("May", "words"), ("May 2020", "words"),
        ("July 4 or 5", "words"), ("after July 4", "words"), ("4 marbles", "number"), ("12 sec", "number"),
        ("2020-01-02", "digit group"),
    ],
)  # fmt: skip
def test_only_a_day_beside_the_name_of_a_month_is_a_date(answer, name):
    assert answer_type(Question("q", "?", answer)).name == name
