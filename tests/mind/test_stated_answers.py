"""What statements of a person would say are right, wrong or neither, type by type."""

from __future__ import annotations

import pytest

from mind.grading.answers import extract_answer, is_correct, judge_text
from mind.grading.ratio import Ratio
from mind.records import Question

NUMBERED = {"A": "2", "B": "5", "C": "2.5", "D": "8"}


def asked(answer, question="What is it?", choices=None):
    return Question("q", question, answer, choices)


CATS = asked("3:5", "What is the ratio of cats to dogs?")


@pytest.mark.parametrize(
    ("question", "right", "wrong", "unparsed"),
    [
        (
            CATS,
            ["3:5", "3 : 5", "6:10", "3 to 5", "3 is to 5", "three to five", "3/5", "0.6", "$3:5$", "cats to dogs 3:5"],
            ["5:3", "5 to 3", "3:5:7", "5/3", "3:6", "half"],
            ["dogs to cats 5:3", "3:5 or 5:3", "3:5, 5:3", "not 3:5", "from 3 to 5"],
        ),
        (asked("1:2:3"), ["2:4:6", "1 to 2 to 3", "0.5:1:1.5"], ["1:2", "3:2:1"], ["1/6"]),
        (asked("3 to 5"), ["3-5", "3 to 5", "3 \u2013 5"], ["5 to 3", "3 to 6"], ["between 3 and 5", "15"]),
    ],
    ids=["two terms", "three terms", "range"],
)
def test_a_ratio_has_an_order(question, right, wrong, unparsed):
    check(question, right, wrong, unparsed)


def test_a_ratio_is_found_in_a_sentence():
    for said in ("The ratio is 3:5.", "The answer is 3:5 (cats to dogs).", "It was 1:2. Then it is 3:5."):
        assert extract_answer(said, CATS) == "3:5", said
    assert extract_answer("The answer is about 0.6", CATS) == "about 0.6"
    for said in ("The ratio of dogs to cats is 5:3.", "It is 3:5 or 5:3.", "It is not 3:5."):
        assert extract_answer(said, CATS) is None, said


def test_a_ratio_of_things_in_both_orders_is_the_last_one():
    both = asked("5:3", "The ratio of cats to dogs is 3:5. What is the ratio of dogs to cats?")
    check(both, ["The ratio of dogs to cats is 5:3", "5 to 3"], ["3:5"], [])


def test_a_ratio_is_given_away_in_other_terms():
    for said in ("the ratio is 3:5", "it is 6 to 10"):
        assert Ratio().mentions_gold(said, CATS), said
    for said in ("the ratio is 13:5", "5:3", "3:50", "3 cats and 5 dogs"):
        assert not Ratio().mentions_gold(said, CATS), said


@pytest.mark.parametrize(
    ("gold", "right", "wrong", "unparsed"),
    [
        (
            "12",
            ["twelve!", "twelve", "12!!"],
            ["twelve squared", "13"],
            ["12 and 13", "twelve or thirteen", "12 if you count him, else 13", "12 is wrong"],
        ),
        ("144", ["twelve squared", "144", "12 squared"], ["twelve"], []),
        ("1000001", ["1 million and one", "one million one"], ["1 million", "1 million and two"], []),
        ("2500000", ["2 million five hundred thousand"], [], []),
        ("1000500", ["1 million 500", "1,000,500"], ["1 million", "1 Million"], []),
        ("1000000", ["1 Million", "one million", "a million", "one thousand thousand"], ["1 million 500"], []),
        ("2500000", ["2.5 million", "2 million 500 thousand", "two and a half million"], ["2.5"], []),
    ],
)
def test_a_number_in_words_is_the_number_in_digits(gold, right, wrong, unparsed):
    check(asked(gold), right, wrong, unparsed)


@pytest.mark.parametrize(
    ("gold", "right", "wrong", "unparsed"),
    [
        ("12 kN", ["12 kN", "12 kilonewtons", "12"], ["13 kN", "12 newtons", "12 N"], ["12 kg"]),
        ("90 degrees", ["90\u00b0", "90 deg", "90"], ["80\u00b0"], ["90 radians"]),
        ("20 \u00b0C", ["20 degrees Celsius", "20 C", "20 degrees"], ["21 \u00b0C"], ["20 \u00b0F", "20 K"]),
        ("5 mV", ["5 mV", "5"], ["6 mV"], ["5 V"]),
        ("2 kcal", ["2000 calories", "2 kilocalories"], ["2 calories"], ["2 kJ"]),
        ("3 hours", ["180 minutes", "3"], ["3 minutes"], ["3 miles", "3 pm"]),
    ],
)
def test_a_number_in_another_unit_is_converted_or_undecided(gold, right, wrong, unparsed):
    check(asked(gold), right, wrong, unparsed)


@pytest.mark.parametrize(
    ("question", "right", "unparsed"),
    [
        ("How many hours a week did she practice?", ["5", "5 hours", "5 hours a week"], []),
        ("It needs many gallons. How many gallons is not our question. How much does it cost?", ["$5", "5"], []),
        ("They count how many gallons they need. How much does it cost?", ["$5", "5 dollars"], []),
        ("How many gallons do they need?", ["5 gallons", "20 quarts"], ["$5"]),
    ],
)
def test_the_unit_is_that_of_the_last_question(question, right, unparsed):
    check(asked("5", question), right, [], unparsed)


@pytest.mark.parametrize(
    ("gold", "right", "wrong", "unparsed"),
    [
        ("12/25/2024", ["25.12.2024", "25/12/2024", "2024-12-25"], ["12/24/2024", "24.12.2024"], ["12/25/24"]),
        ("03/04/2024", ["3/4/2024"], ["03/05/2024"], ["April 3, 2024", "2024-04-03"]),
        ("3:00 pm", ["3 pm", "15:00", "at 3:00 pm"], ["3 am", "4 pm"], ["half past 3 pm", "before 3 pm", "10 to 3 pm"]),
    ],
)
def test_dates_and_times_in_other_notations(gold, right, wrong, unparsed):
    check(asked(gold), right, wrong, unparsed)


def test_nothing_has_many_names():
    for gold in ("no solution", "\\emptyset"):
        right = ["No solution exists", "The equation has no roots", "\\{\\}", "There are no solutions"]
        check(asked(gold), right, ["5", "x = 5"], ["none", "impossible", "no real roots"])


def test_a_choice_that_is_a_number_counts_by_its_value():
    for label, statement in {"A": "2", "B": "5.0", "C": "The answer is 2.5.", "D": "5 + 3 = 8"}.items():
        assert is_correct(statement, asked(label, choices=NUMBERED)), statement
    for statement in ("2.5", "2.", "5 + 3 = 8", "5%", "B) 8"):
        assert not is_correct(statement, asked("B", choices=NUMBERED)), statement


def test_a_label_beside_another_choice_is_undecided():
    for label, statement in (("A", "A) No"), ("B", "(B) Yes"), ("A", "A. no"), ("A", "B. yes")):
        question = asked(label, choices={"A": "Yes", "B": "No"})
        assert judge_text(f"#### {statement}", question).verdict == "unparsed", statement
    towns = asked("A", choices={"A": "Paris", "B": "Rome"})
    check(towns, ["A) Paris", "A", "Paris", "A: Paris, not Rome"], ["B) Rome"], ["A) Rome", "A: Rome", "A (Rome)"])


@pytest.mark.parametrize(
    ("gold", "right", "wrong", "unparsed"),
    [
        ("third", ["3rd", "third", "the third"], ["fourth", "2nd"], ["not the third"]),
        ("3rd", ["third", "3rd"], ["4th", "second"], []),
        ("twenty-first", ["21st", "the twenty-first"], ["22nd"], []),
        ("red, green", ["red and green", "red; green", "Red, green"], ["red", "red, blue"], ["green, red"]),
        ("red, green, and blue", ["red, green, blue", "red, green and blue"], ["red and blue"], ["blue, green, red"]),
        ("Paris", ["Paris", "Paris, France"], ["London"], ["Paris and London", "London and Paris", "Paris or London"]),
    ],
)
def test_words_may_be_ordinals_and_lists(gold, right, wrong, unparsed):
    check(asked(gold), right, wrong, unparsed)


@pytest.mark.parametrize(
    ("gold", "right", "wrong", "unparsed"),
    [
        ("H2O", ["H_2O", "$H_2O$", "\\mathrm{H_2O}", "H2O."], ["H3O", "CO2", "water"], []),
        ("Ca(OH)2", ["Ca(OH)_2", "$\\mathrm{Ca(OH)_2}$"], ["Ca(OH)"], []),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", ["[[1, 2], [3, 4]]", "((1,2),(3,4))"], ["[[1, 3], [2, 4]]"], []),
    ],
)
def test_formulas_of_substances_and_matrices(gold, right, wrong, unparsed):
    check(asked(gold), right, wrong, unparsed)


@pytest.mark.parametrize("response", ["12 is wrong", "12 (incorrect)", "not 12", "12? No."])
def test_an_answer_that_is_denied_is_undecided(response):
    for gold in ("12", "13"):
        assert judge_text(f"#### {response}", asked(gold)).verdict == "unparsed"


def check(question, right, wrong, unparsed):
    found = {said: judge_text(f"#### {said}", question).verdict for said in (*right, *wrong, *unparsed)}
    expected = {**dict.fromkeys(right, "right"), **dict.fromkeys(wrong, "wrong"), **dict.fromkeys(unparsed, "unparsed")}
    assert found == expected
