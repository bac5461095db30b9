"""`grade_file`: what it adds to each row, what it counts, and each refusal."""

from __future__ import annotations

import json

import pytest

from mind.errors import MindError
from mind.grading.answers import judge_text
from mind.grading.grade import GradeCounts, grade_file
from mind.records import Question

RIGHT = {"id": "a", "answer": "12", "response": "5 + 7 = 12"}
CHOICES = {"A": "book store", "B": "bank"}


@pytest.fixture
def grade(tmp_path):
    """Grades rows, JSON objects or lines of text; the counts and the graded rows."""

    def grade(*rows):
        source, output = tmp_path / "rows.jsonl", tmp_path / "graded.jsonl"
        source.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        counts = grade_file(source, output)
        return counts, [json.loads(line) for line in output.read_text().splitlines()]

    return grade


def test_each_row_is_kept_and_graded(grade):
    rows = [
        {**RIGHT, "model": "m", "scores": [1, {"x": None}]},
        {**RIGHT, "response": "5 + 7 = 13"},
        {**RIGHT, "response": " \n"},
        {**RIGHT, "response": ""},
        {"id": "c", "answer": "B", "choices": CHOICES, "question": "Where?", "response": "#### (A)"},
        {"id": "d", "answer": 0.5, "response": "#### 1/2", "choices": None, "question": None},
        {"id": "e", "answer": "\\frac{\\pi}{2}", "response": "$\\boxed{\\dfrac\\pi2}$\ud800"},
    ]
    counts, graded = grade(*rows)
    assert counts == GradeCounts(total=7, correct=3, unparsed=2)
    assert counts.accuracy == 3 / 7
    findings = [
        (True, "12"),
        (False, "13"),
        (False, None),
        (False, None),
        (False, "(A)"),
        (True, "1/2"),
        (True, "\\dfrac\\pi2"),
    ]
    assert graded == [
        {**row, "correct": correct, "extracted": extracted}
        for row, (correct, extracted) in zip(rows, findings, strict=True)
    ]


def test_ids_and_answers_may_be_numbers_or_truth_values(grade):
    counts, graded = grade(
        {"id": 7, "answer": 1e-05, "response": "#### 0.00001"},
        {"id": 2**70, "answer": 1e16, "response": "#### 10^16"},
        {"id": "a", "answer": True, "response": "Yes, no doubt."},
        {"id": "b", "answer": False, "response": "The claim is not true."},
        {"id": "c", "answer": "She sold 24 + 48.\n#### 72", "response": "So 72."},
    )
    assert counts == GradeCounts(total=5, correct=5, unparsed=0)
    assert [row["id"] for row in graded] == [7, 2**70, "a", "b", "c"]


def test_the_question_tells_which_number_counts(grade):
    row = {"id": "a", "answer": "67", "response": "There are 67 cakes left after 144 were sold."}
    counts, _ = grade(row, {**row, "question": "Of 211 cakes 144 are sold. How many are left?"})
    assert (counts.correct, counts.total) == (1, 2)


def test_an_integer_beyond_every_float_is_an_answer(grade):
    counts, _ = grade({"id": "a", "answer": 10**400, "response": f"#### {10**400}"})
    assert counts.correct == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            '{"id"',
            "not JSON: Expecting ':' delimiter at column 6: it breaks off: write each object whole, on its own line",
        ),
        ("[1]", "expected a JSON object, not list"),
        ({"answer": "1", "response": "1"}, '"id" is missing'),
        ({"id": "a", "response": "1"}, '"answer" is missing'),
        ({"id": "a", "answer": "1"}, '"response" is missing'),
        ({**RIGHT, "id": [7]}, '"id" is [7]: expected a string or a number'),
        ({**RIGHT, "answer": [1]}, '"answer" is [1]: expected a string or a number'),
        ({**RIGHT, "answer": " "}, '"answer" is empty'),
        ({**RIGHT, "response": None}, '"response" is null: expected a string'),
        ({**RIGHT, "response": ["12"]}, '"response" is ["12"]: expected a string'),
        ({**RIGHT, "question": 3}, '"question" is 3: expected a string'),
        ({**RIGHT, "choices": ["A", "B"]}, '"answer" 12 is not one of the choices A, B'),
        ({**RIGHT, "choices": CHOICES}, '"answer" 12 is not one of the choices A, B'),
    ],
)
def test_a_faulty_row_is_named_and_nothing_is_written(grade, tmp_path, row, message):
    with pytest.raises(MindError) as error:
        grade(RIGHT, "", row)
    assert str(error.value) == f"{tmp_path / 'rows.jsonl'}:3: {message}"
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_empty_missing_and_existing_files_are_named(grade, tmp_path):
    with pytest.raises(MindError, match=r"rows.jsonl: the file is empty: expected one response per line"):
        grade()
    with pytest.raises(MindError, match=r"nowhere.jsonl: no such file"):
        grade_file(tmp_path / "nowhere.jsonl", tmp_path / "graded.jsonl")
    (tmp_path / "graded.jsonl").write_text("mine")
    with pytest.raises(MindError, match=r"graded.jsonl: exists already; name another --output"):
        grade(RIGHT)
    assert (tmp_path / "graded.jsonl").read_text() == "mine"


def test_a_judgement_says_why():
    question = Question("a", "", "12")
    assert judge_text("#### 12", question) == ("right", "12", "equal as numbers")
    assert judge_text("#### 13", question).verdict == "wrong"


def test_the_faults_of_all_rows_are_told_in_one_go(grade, tmp_path):
    with pytest.raises(MindError) as error:
        grade({**RIGHT, "response": None}, RIGHT, {"id": "a", "answer": []}, "[1]")
    path = tmp_path / "rows.jsonl"
    assert str(error.value).splitlines() == [
        f'{path}:1: "response" is null: expected a string',
        f'{path}:3: "answer" is []: expected a string or a number',
        f'{path}:3: "response" is missing',
        f"{path}:4: expected a JSON object, not list",
        f"4 problems in {path}; 1 row without one",
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
