"""Responses of many kinds against the verdict of a careful reader, written down before the rules that find it."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from mind.data.fields import YES_NO
from mind.grading import latex_equality
from mind.grading.answers import is_correct, judge_text
from mind.records import Question

FILE = Path(__file__).with_name("graded_responses.jsonl")
ROWS = [json.loads(line) for line in FILE.read_text("utf-8").rstrip("\n").split("\n")]
"""Each {"kind", "question", "choices", "answer", "response", "expected"}: any verdict of "expected" is right."""

KINDS = {kind: list(rows) for kind, rows in groupby(sorted(ROWS, key=lambda row: row["kind"]), lambda row: row["kind"])}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit for LaTeX that a busy machine does not reach."""
    monkeypatch.setattr(latex_equality._worker, "timeout_seconds", 60)


def question_of(row: dict[str, Any]) -> Question:
    answer, choices = row["answer"], row["choices"]
    if isinstance(answer, bool):
        answer, choices = ("yes" if answer else "no"), YES_NO
    return Question("q", row["question"], str(answer), choices)


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_is_judged_as_a_careful_reader_does(kind):
    judged = [(row, judge_text(row["response"], question_of(row))) for row in KINDS[kind]]
    differing = [
        f"gold {row['answer']!r}, {row['response']!r}: {tuple(judgement)}, expected {row['expected']}"
        for row, judgement in judged
        if judgement.verdict not in row["expected"]
    ]
    assert not differing


def test_the_extracted_answer_alone_gets_the_same_verdict():
    for row in ROWS:
        question = question_of(row)
        judgement = judge_text(row["response"], question)
        assert is_correct(judgement.extracted, question) == (judgement.verdict == "right"), (row, judgement)


def test_there_are_responses_of_each_verdict_and_many_kinds():
    assert len(ROWS) >= 1000 and len(KINDS) >= 30
    for verdict in ("right", "wrong"):
        assert sum(row["expected"] == [verdict] for row in ROWS) >= 100
    assert sum("right" not in row["expected"] for row in ROWS) >= 200
