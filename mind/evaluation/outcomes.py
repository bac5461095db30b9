"""Makes the rows that an evaluation keeps, one per question asked, and counts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mind.errors import MindError
from mind.evaluation.samples import majority, pass_at
from mind.files import json_rows
from mind.grading.answers import judge_text
from mind.intervals import wilson
from mind.records import Question


class Reply(NamedTuple):
    """A student's answer to a question."""

    text: str
    cut_off: bool = False
    """Whether it reached the token limit before its end."""


def outcome(reply: Reply, question: Question) -> dict[str, Any]:
    """The row of a question and its reply.

    It has "id", "question", "choices" (if there are any) and "answer" of the question, and from the reply

    - "response": its text, and "extracted": the answer that this states, None if it states none;
    - "correct": whether that is the answer of the question, also if what follows it was cut off;
    - "parsed": whether it states an answer that can be compared, and "cut_off", as `Reply` has it.

    `mind grade` gives the row the same verdict.
    """
    return _of(question) | _judged(reply, question)


def sampled_outcome(replies: Sequence[Reply], question: Question) -> dict[str, Any]:
    """The row of a question and several replies: as in `outcome`, but the entries about the reply are in "samples", a
    list with one object per reply."""
    return _of(question) | {"samples": [_judged(reply, question) for reply in replies]}


def is_responses(file: Path) -> bool:
    """Whether a file has the ending and, unless it is empty, the first row of one that an evaluation wrote."""
    try:
        _, row = next(json_rows(file), ("", None)) if file.suffix == ".jsonl" else ("", {})
    except MindError:
        return False
    return row is None or (row.keys() >= {"id", "question", "answer"} and bool(row.keys() & {"response", "samples"}))


def _of(question: Question) -> dict[str, Any]:
    choices = {} if question.choices is None else {"choices": dict(question.choices)}
    return {"id": question.id, "question": question.question, **choices, "answer": question.answer}


def _judged(reply: Reply, question: Question) -> dict[str, Any]:
    judgement = judge_text(reply.text, question)
    return {
        "response": reply.text,
        "extracted": judgement.extracted,
        "correct": judgement.verdict == "right",
        "parsed": judgement.verdict != "unparsed",
        "cut_off": reply.cut_off,
    }


def counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of rows made by `outcome`.

    "total" questions; how many replies are "correct", how many "unparsed", and how many "cut_off", whatever they state;
    the "accuracy", the share of correct ones from 0 to 1, 0 without rows; and its "interval", Wilson's 95 % interval,
    None without rows.
    """
    total, replies = len(rows), _counted(rows)
    return {"total": total, **replies, **_accuracy(replies["correct"], total)}


def sampled_counts(rows: Sequence[Mapping[str, Any]], questions: Sequence[Question]) -> dict[str, Any]:
    """The counts of rows made by `sampled_outcome`, which have the same number of samples for each of the questions.

    "total" questions and "samples" of each; how many of all samples are "correct", "unparsed" and "cut_off"; and

    - "accuracy": the mean over questions and samples, and its "interval": Wilson's for as many single answers as there
      are questions. That is wide enough, as the share of right samples varies no more from question to question than
      one answer, which is right or wrong;
    - "majority": "correct", "accuracy" and "interval" of the answers that most samples of a question state
      (`mind.evaluation.samples.majority`), and "unparsed", the questions none of whose samples states one, which count
      as wrong;
    - "pass_at": for k = 1 to the number of samples the mean of `pass_at` over the questions, a list.
    """
    total = len(rows)
    samples = len(rows[0]["samples"]) if rows else 0
    replies = _counted([sample for row in rows for sample in row["samples"]])
    votes = [majority(row["samples"], question) for row, question in zip(rows, questions, strict=True)]
    voted = sum(vote is not None and row["samples"][vote]["correct"] for vote, row in zip(votes, rows, strict=True))
    right = [sum(sample["correct"] for sample in row["samples"]) for row in rows]
    return {
        "total": total,
        "samples": samples,
        **replies,
        **_accuracy(replies["correct"] / max(samples, 1), total),
        "majority": {"correct": voted, "unparsed": votes.count(None), **_accuracy(voted, total)},
        "pass_at": [sum(pass_at(k, samples, one) for one in right) / total for k in range(1, samples + 1)],
    }


def _counted(replies: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {
        "correct": sum(reply["correct"] for reply in replies),
        "unparsed": sum(not reply["parsed"] for reply in replies),
        "cut_off": sum(reply["cut_off"] for reply in replies),
    }


def _accuracy(correct: float, total: int) -> dict[str, Any]:
    return {
        "accuracy": correct / total if total else 0.0,
        "interval": wilson(correct, total) if total else None,
    }
