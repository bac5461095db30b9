"""Responses as models write them: wrong ones that were right, right ones that were wrong, before they were tried."""

from __future__ import annotations

import pytest
from test_stated_answers import asked, check

from mind.grading.answers import judge_text

PALMS = {"A": "dry palms", "B": "wet palms", "C": "oil", "D": "lotion"}
COUNTS = {"A": "12", "B": "24", "C": "36", "D": "48"}


def judged(question, right=(), neither=()):
    """Checks that responses are right, and that others are not."""
    found = {said: judge_text(said, question).verdict for said in (*right, *neither)}
    assert {said for said, verdict in found.items() if verdict == "right"} == set(right), found


@pytest.mark.parametrize(
    "response",
    [
        "The answer is 12 is the wrong answer.",
        "The answer is 12 would be wrong.",
        "The answer is 12 cannot be right.",
        "#### 12 is rejected",
        "#### 12 is impossible",
        "#### 12 is not an option",
        "#### 12 doesn't check out",
        "#### 12 is too many.",
        "An incorrect answer is 12",
        "#### 12 plus one",
        "#### one less than 12",
        "#### 12 apples and one more",
        "#### 12 (or maybe 13)",
        "The answer is 12? Actually 13.",
        "The answer is 12 is what most people say, but it is 13.",
        "The answer is at least 12.",
        "#### no more than 12",
        "\\boxed{12} thousand",
        "\\boxed{12}\\text{ thousand}",
        "If he gives 8, 12, else 20",
    ],
)
def test_another_number_than_12_is_not_right(response):
    judged(asked("12", "Jack had 20 apples and gave 8 away. How many has he?"), neither=[response])


@pytest.mark.parametrize(
    ("question", "right", "neither"),
    [
        (asked("12", "How many?"), ["12, since there are 3 rows of 4", "#### 12 (or 12.0)"], []),
        (asked("12", "At least how many?"), ["The answer is at least 12."], []),
        (asked("3/5"), ["#### 60%", "#### 0.6"], ["The answer is 3/5 of 10", "#### 0.6%"]),
        (asked("0.6", "By what percent?"), ["#### 0.6%"], []),
        (asked("7", "It has 5 thousand workers in offices of 700. How many offices?"), ["#### 7"], ["#### 7 thousand"]),
        (asked("7", "How many thousand workers?"), ["#### 7 thousand", "#### 7", "#### 7000"], ["#### 70"]),
        (asked("2", "How many dozen eggs?"), ["#### 24 eggs", "#### 2", "#### 2 dozen"], ["#### 25 eggs"]),
        (asked("1.2", "What is the population in millions?"), ["#### 1,200,000 people", "#### 1.2 million"], []),
        (asked("18", "How much in dollars?"), ["#### 1800 cents", "#### $18"], ["#### 18 cents"]),
        (asked("3/4", "What fraction?"), ["#### 3 quarters", "#### 3 fourths"], ["#### 3 fifths"]),
        (asked("3", "How many quarters?"), ["#### 3 quarters"], []),
        (asked("0", "How many are left?"), ["#### none", "#### 0"], ["#### one"]),
        (asked("1000001"), ["There are 1 million and one."], []),
        (asked("2500"), ["There are 2 thousand five hundred people."], []),
        (asked("250"), ["2 hundred and fifty"], []),
        (asked("300 K"), ["#### 300K", "#### 300 kelvin"], ["#### 300 kg"]),
        (asked("5 M"), ["#### 5M"], []),
    ],
    ids=lambda value: value.answer if hasattr(value, "answer") else "",
)
def test_scales_shares_and_units(question, right, neither):
    judged(question, right, neither)


@pytest.mark.parametrize(
    ("question", "right"),
    [
        (
            asked("2.5 hours", "How long?"),
            ["#### 2h 30m", "#### 2h30m", "#### 2h30min", "#### 2 hours & 30 minutes", "The answer is 2 hr. 30 min."],
        ),
        (
            asked("90", "How many minutes did she practice?"),
            [
                "#### 1 hour and thirty minutes",
                "#### an hour and 30 minutes",
                "#### one hour and 30 minutes",
                "#### 1h30m",
            ],
        ),
        (asked("6 feet 2 inches"), ["#### 6 ft. 2 in.", "#### 74 inches"]),
    ],
    ids=["hours", "minutes", "feet"],
)
def test_quantities_in_two_units(question, right):
    judged(question, right)


@pytest.mark.parametrize(
    ("gold", "right", "neither"),
    [
        ("12\\pi", ["The answer is $12\\pi \\approx 37.7$."], ["#### $13\\pi \\approx 40.8$"]),
        ("37.7", ["#### 12\\pi \\approx 37.7"], []),
        ("\\frac{1}{6}", ["$\\boxed{\\frac{1}{6} \\approx 0.167}$", "#### 1 in 6"], ["#### 1 in 7"]),
        ("\\sqrt{2}", ["#### \\sqrt{2} \\approx 1.414"], []),
        (
            "1/6",
            ["The probability is 1/6 \u2248 0.167.", "#### 1/6 or about 0.167", "1/6, since there are 6 faces"],
            [],
        ),
        ("0.33", ["#### 1/3 \u2248 0.33"], ["#### 1/4 \u2248 0.25"]),
    ],
)
def test_an_exact_value_beside_a_rounded_one(gold, right, neither):
    judged(asked(gold), right, neither)


@pytest.mark.parametrize(
    ("gold", "right", "neither"),
    [
        ("NO2", ["#### NO_2", "#### NO\u2082", "The answer is NO2."], ["The answer is N2O.", "#### no2"]),
        ("Co", ["#### Co"], ["The answer is CO."]),
        ("B2", ["The answer is B2."], ["The answer is 2B."]),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", ["#### (1, 2)"], ["#### (2, 1)"]),
        ("5 remainder 2", ["#### 5 R 2", "#### 5 R2", "#### 5 remainder 2"], ["#### 5 R 3"]),
    ],
)
def test_letters_that_are_no_product(gold, right, neither):
    judged(asked(gold), right, neither)


@pytest.mark.parametrize(
    ("gold", "right", "neither"),
    [
        (
            "Paris",
            ["The capital is Paris.", "The answer is Paris.", "Let me think. The capital of France is Paris."],
            ["The answer is Berlin; the Louvre is in Paris", "Berlin. The Eiffel tower is in Paris."],
        ),
        (
            "even",
            ["So the function is even."],
            [
                "Odd. The derivative is even.",
                "The answer is: it is unclear whether it is even.",
                "It fails to be even.",
            ],
        ),
        ("St. Louis", ["The answer is St. Louis.", "#### St Louis"], ["The answer is St. Paul."]),
        ("John F. Kennedy", ["The answer is John F. Kennedy. He was president."], ["The answer is John Q. Adams."]),
        ("Washington, D.C.", ["#### Washington DC", "The answer is Washington, D.C."], []),
        ("impossible", ["It is impossible.", "#### impossible"], ["It is not impossible."]),
    ],
)
def test_names_and_sentences(gold, right, neither):
    judged(asked(gold), right, neither)


def test_a_bound_is_no_time():
    check(asked("2024-01-05"), ["on 2024-01-05"], [], ["before 2024-01-05"])
    check(asked("3:20 pm"), ["at 3:20 pm"], [], ["no later than 3:20 pm", "before 3:20 pm"])
    check(asked("noon"), ["at noon", "noon"], ["midnight"], [])
    judged(asked("2024-01-05"), ["The answer is 2024-01-05."], ["The answer is before 2024-01-05"])


@pytest.mark.parametrize(
    ("choices", "label", "response"),
    [
        (PALMS, "A", "A) dry palms\n\nExplanation: wet palms reduce friction."),
        (PALMS, "A", "A) dry palms. Wet palms reduce friction."),
        (PALMS, "A", "**A) dry palms**\n\nWet palms have less friction."),
        (PALMS, "A", "A) dry palms (wet palms slip)"),
        (PALMS, "A", "Wet palms slip. Dry palms produce the most heat."),
        (PALMS, "B", "A) dry palms slip. So B) wet palms is right."),
        (COUNTS, "C", "C) 36\nEach box has 12 pens."),
        (COUNTS, "C", "36. A box has 12 pens and there are 3 boxes."),
        (COUNTS, "C", "C) 36 pens (3 boxes of 12)"),
        ({"A": "3", "B": "4", "C": "5", "D": "6"}, "B", "C = 5 is too big, so B."),
    ],
)
def test_a_choice_with_its_text_comes_first(choices, label, response):
    for answer in choices:
        assert judge_text(response, asked(answer, choices=choices)).verdict == ("right" if answer == label else "wrong")
