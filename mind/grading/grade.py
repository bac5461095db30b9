"""`mind grade`: right or wrong for each response of a file, by rules, and the accuracy."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mind.data.questions import parse_answer, required_text
from mind.errors import MindError
from mind.files import json_objects, new_file, replacing
from mind.grading.answers import judge_text
from mind.records import Question


@dataclass(frozen=True)
class GradeCounts:
    """How many of `total` responses are `correct`, and how many of the others are `unparsed`.

    Unparsed are those without an answer and those whose answer cannot be compared.
    """

    total: int
    correct: int
    unparsed: int

    @property
    def accuracy(self) -> float:
        """The share of right answers, from 0 to 1; an unparsed one is not right."""
        return self.correct / self.total


def grade_file(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> GradeCounts:
    """Writes each {"id", "answer", "response", "choices"?, "question"?} of `source` with "correct" and "extracted".

    "extracted" is the answer that the response states, or null. An id may come several times, a numeric answer becomes
    its text for the comparison, and other keys are kept. Without its question a response is judged less well
    (`mind.grading.numeric.concluding_number`). One row is in memory at a time; `output` appears when all are written.

    Raises MindError with the line for a row that is not such an object, with an answer that is none of its choices or a
    response that is no string, and for a missing or empty `source` and an `output` that exists.
    """
    total = correct = unparsed = 0
    with replacing(new_file(output)) as file:
        for where, row in json_objects(source):
            question = _question(where, row)
            judgement = judge_text(_response(where, row), question)
            total += 1
            correct += judgement.verdict == "right"
            unparsed += judgement.verdict == "unparsed"
            file.write(
                json.dumps({**row, "correct": judgement.verdict == "right", "extracted": judgement.extracted}) + "\n"
            )
        if not total:
            raise MindError(f"{source}: the file is empty: expected one response a line")
    return GradeCounts(total, correct, unparsed)


def _question(where: str, row: Mapping[str, Any]) -> Question:
    """With the empty text where the row has no question."""
    text = row.get("question")
    question = "" if text is None else required_text(where, row, "question")
    return Question(required_text(where, row, "id"), question, *parse_answer(where, row))


def _response(where: str, row: Mapping[str, Any]) -> str:
    """A blank one is a response without an answer."""
    response = row.get("response")
    blank = isinstance(response, str) and not response.strip()
    return "" if blank else required_text(where, row, "response")
