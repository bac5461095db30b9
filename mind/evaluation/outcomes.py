"""What became of each question that a student was asked: the rows that an evaluation keeps, and what they count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mind.grading.answers import judge_text
from mind.intervals import wilson
from mind.records import Question


class Reply(NamedTuple):
    """What a student answered."""

    text: str
    cut_off: bool = False
    """Whether it was still going on at the most tokens that it might have."""


def outcome(reply: Reply, question: Question) -> dict[str, Any]:
    """The row of a question and its reply.

    It has "id", "question", "choices" (if the question has any) and "answer" of the question, and of the reply

    - "response": its text, and "extracted": the answer that this states, None if it states none;
    - "correct": whether that is the answer of the question, also if what follows it was cut off;
    - "parsed": whether it states an answer that can be compared, and "cut_off", as `Reply` has it.

    `mind grade` gives the row the same verdict.
    """
    judgement = judge_text(reply.text, question)
    return {
        "id": question.id,
        "question": question.question,
        **({} if question.choices is None else {"choices": dict(question.choices)}),
        "response": reply.text,
        "extracted": judgement.extracted,
        "answer": question.answer,
        "correct": judgement.verdict == "right",
        "parsed": judgement.verdict != "unparsed",
        "cut_off": reply.cut_off,
    }


def counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the rows of `outcome` come to.

    "total" questions; how many replies are "correct", how many "unparsed", and how many "cut_off", whatever they state;
    the "accuracy", the share of correct ones from 0 to 1, 0 without rows; and its "interval", Wilson's of 95 %, None
    without rows.
    """
    total, correct = len(rows), sum(row["correct"] for row in rows)
    return {
        "total": total,
        "correct": correct,
        "unparsed": sum(not row["parsed"] for row in rows),
        "cut_off": sum(row["cut_off"] for row in rows),
        "accuracy": correct / total if total else 0.0,
        "interval": wilson(correct, total) if total else None,
    }
