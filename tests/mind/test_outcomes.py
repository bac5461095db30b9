"""The rows that an evaluation keeps of questions and replies, and what they count."""

from __future__ import annotations

import json

from mind.evaluation.outcomes import Reply, counts, outcome
from mind.files import write_json_rows
from mind.grading.grade import grade_file
from mind.intervals import wilson
from mind.records import Question


def rows_of(questions, texts, cut_off=()):
    return [
        outcome(Reply(text, i in cut_off), question)
        for i, (question, text) in enumerate(zip(questions, texts, strict=True))
    ]


def test_right_unparsed_and_cut_off_replies_are_counted():
    questions = [Question(str(i), "How many?", "3") for i in range(4)]
    rows = rows_of(questions, ["#### 3 pears", "2 + 2 = 4", "I do not know.", "So 3."], cut_off=(2, 3))
    assert counts(rows) == {
        "total": 4,
        "correct": 2,
        "unparsed": 1,
        "cut_off": 2,
        "accuracy": 0.5,
        "interval": wilson(2, 4),
    }
    assert rows[0] == {
        "id": "0",
        "question": "How many?",
        "response": "#### 3 pears",
        "extracted": "3 pears",
        "answer": "3",
        "correct": True,
        "parsed": True,
        "cut_off": False,
    }
    assert [row["correct"] for row in rows] == [True, False, False, True]
    assert [row["parsed"] for row in rows] == [True, True, False, True]
    assert [row["cut_off"] for row in rows] == [False, False, True, True]
    assert (counts([])["accuracy"], counts([])["interval"]) == (0, None)


def test_graded_again_a_reply_gets_the_same_verdict(tmp_path):
    questions = [
        Question("a", "How many?", "3"),
        Question("b", "Is 15 a prime number?", "no", {"yes": "yes", "no": "no"}),
        Question("c", "Which is a bird?", "B", {"A": "cow", "B": "owl"}),
        Question("d", "Which is a fish?", "A", {"A": "cod", "B": "owl"}),
    ]
    rows = rows_of(questions, ["So 3.", "15 is not a prime number, so no.", "(B) Owl", "The owl."])
    assert [row["correct"] for row in rows] == [True, True, True, False]
    write_json_rows(rows, tmp_path / "responses.jsonl")
    grade_file(tmp_path / "responses.jsonl", tmp_path / "graded.jsonl")
    assert [json.loads(line) for line in (tmp_path / "graded.jsonl").read_text().splitlines()] == rows
