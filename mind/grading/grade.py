"""`mind grade`: grades each response of a file as right or wrong by rules, and prints the accuracy."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mind.data.problems import Problems
from mind.data.questions import parse_answer, required_text
from mind.data.rows import file_rows
from mind.display import percent
from mind.errors import require
from mind.files import new_file, write_json_rows
from mind.grading.answers import judge_text
from mind.records import Grade, Question


@dataclass(frozen=True)
class GradeCounts:
    """How many of `total` responses are `correct`, and how many of the others are `unparsed`.

    Responses without an answer, or with one that cannot be compared, are unparsed.
    """

    total: int
    correct: int
    unparsed: int

    @property
    def accuracy(self) -> float:
        """The fraction of right answers, from 0 to 1; an unparsed one is not right."""
        return self.correct / self.total

    def __str__(self) -> str:
        return f"{self.correct:,} of {self.total:,} right ({percent(self.accuracy)}), {self.unparsed:,} unparsed"


def grade_file(
    source: str | os.PathLike[str], output: str | os.PathLike[str], *, overwrite: bool = False
) -> GradeCounts:
    """Writes each {"id", "answer", "response", "choices"?, "question"?} of `source` with "correct" and "extracted".

    "extracted" is the answer that the response states, or null. An id may come several times, a numeric answer becomes
    its text for the comparison, and other keys are kept. Without its question a response is judged less reliably
    (`mind.grading.number_text.concluding_number`). One row is in memory at a time; `output` appears when all rows are
    written.

    Raises MindError with the lines of all rows that are not such an object, whose answer is not one of their choices or
    whose response is not a string; also for a missing or empty `source` and, unless `overwrite`, for an `output` that
    exists.
    """
    counts: Counter[Grade] = Counter()
    write_json_rows(_graded(source, counts), new_file(output, overwrite=overwrite))
    return GradeCounts(counts.total(), counts["right"], counts["unparsed"])


def _graded(source: str | os.PathLike[str], counts: Counter[Grade]) -> Iterator[dict[str, Any]]:
    """The rows to write; each is counted in `counts`."""
    problems = Problems(source)
    for where, row in file_rows(source, problems):
        question = problems.attempt(where, _question, where, row)
        response = problems.attempt(where, _response, where, row)
        kept = problems.attempt(where, _writable, where, row)
        if question is None or response is None or kept is None:
            continue
        judgement = judge_text(response, question)
        counts[judgement.verdict] += 1
        yield {**kept, "correct": judgement.verdict == "right", "extracted": judgement.extracted}
    problems.check(range(counts.total()))
    require(counts.total() > 0, f"{source}: the file is empty: expected one response per line")


def _question(where: str, row: Mapping[str, Any]) -> Question:
    """The question of a row, with an empty text if the row has none."""
    text = row.get("question")
    question = "" if text is None else required_text(where, row, "question")
    return Question(required_text(where, row, "id", or_number=True), question, *parse_answer(where, row))


def _writable(where: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """`row`; raises a MindError that begins with `where` for bytes in it, such as an image in a table."""
    for name, value in row.items():
        require(
            not _holds_bytes(value), f'{where}: "{name}" holds bytes, which JSON does not have: leave that column out'
        )
    return row


def _holds_bytes(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_holds_bytes, value.values() if isinstance(value, dict) else value))
    return isinstance(value, bytes)


def _response(where: str, row: Mapping[str, Any]) -> str:
    """The response of a row; a blank one counts as a response without an answer."""
    response = row.get("response")
    blank = isinstance(response, str) and not response.strip()
    return "" if blank else required_text(where, row, "response")
