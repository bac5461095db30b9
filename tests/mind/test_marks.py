"""Where a response says that its answer is: limits, and what lies below a mark."""

from __future__ import annotations

import pytest

from mind.grading.answers import MAX_RESPONSE_CHARACTERS, extract_answer, is_correct, with_final_answer
from mind.grading.marks import MAX_MARKS, Marked, marks, without_chatter
from mind.records import Question

SEVEN = Question("n", "How many?", "7")


def test_the_last_boxes_count():
    found = [mark.statement for mark in marks(" ".join(rf"\boxed{{{n}}}" for n in range(20)))]
    assert MAX_MARKS == 16 and found == [str(n) for n in reversed(range(4, 20))]


def test_a_box_ends_with_its_brace():
    assert list(marks(r"\boxed{1} {x} y")) == [Marked("1", " {x} y", True)]


def test_a_sentence_for_the_reader_may_end_a_line():
    assert without_chatter("It is 5.\nLet me know if you have more!\n") == "It is 5."


def test_the_end_of_a_long_response_is_read():
    assert MAX_RESPONSE_CHARACTERS == 20_000
    for spaces, answer in ((19_998, "12"), (19_999, "2")):
        assert extract_answer("12" + " " * spaces, SEVEN) == answer


@pytest.mark.parametrize(
    "response",
    [
        "#### 3\nActually \\boxed{7}",
        "#### see below\n\n\\boxed{7}",
        "#### see below\n\nIt is 7 apples.",
        "\\boxed{\\text{see below}}\n\nThere are 7.",
    ],
)
def test_a_mark_may_refer_to_what_is_below_it(response):
    assert extract_answer(response, SEVEN) == "7"


def test_a_gold_answer_may_be_marked_in_three_ways():
    gold = Question("n", "How many?", "The answer is \\boxed{5}.\n#### 5")
    assert with_final_answer(gold).answer == "5"


def test_a_repeating_decimal_has_a_whole_part():
    question = Question("f", "Solve.", "\\frac{7}{3}")
    assert is_correct("\\boxed{2.\\overline{3}}", question) and not is_correct("\\boxed{.\\overline{3}}", question)
