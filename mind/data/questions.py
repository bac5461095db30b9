"""Questions in JSON lines or Parquet: read and checked, written, and split."""

from __future__ import annotations

import dataclasses
import math
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from mind.data.parquet import parquet_rows, write_parquet_rows
from mind.errors import MindError, require
from mind.files import json_rows, write_json_rows
from mind.records import Question, Rationale
from mind.typed_json import described


def load_questions(
    path: str | os.PathLike[str],
    *,
    perspectives: Sequence[str] | None = None,
    require_rationales: bool = False,
    minimum_rationales: int = 2,
) -> list[Question]:
    """Reads a file with a {"id", "question", "answer", "choices"?, "rationales"?: [{"perspective", "text"}]} per line.

    Other keys and blank lines are ignored; a numeric answer becomes its text. `perspectives` are the names that
    rationales may have, None for any; with `require_rationales` each question needs `minimum_rationales` of them. A
    file whose name ends in ".parquet" has such a record per row (mind/data/parquet.py); errors name the row, counted
    from 0.

    Raises MindError with the file, the line and what was expected for a missing or empty file, a line that is not such
    a record, an id that comes twice, an answer that is not a label of its choices, and faulty rationales. Rationales
    without names are such a fault if rationales are required, and are ignored otherwise.
    """
    questions = []
    for where, row, question in read_questions(Path(path)):
        rationales = _named_rationales(where, row.get("rationales", []), perspectives, require_rationales)
        if require_rationales and len(rationales) < minimum_rationales:
            raise MindError(
                f"{where}: question {question.id} has {len(rationales)} rationales: "
                f"expected at least {minimum_rationales}"
            )
        questions.append(dataclasses.replace(question, rationales=rationales))
    return questions


def save_questions(questions: Iterable[Question], path: str | os.PathLike[str]) -> None:
    """Writes what `load_questions` reads; a file at `path` is replaced at once or, after an error, left as it was.

    Raises MindError if `path` ends in ".parquet" and a question holds a lone surrogate, which Parquet cannot.
    """
    write = write_parquet_rows if Path(path).suffix == ".parquet" else write_json_rows
    write((question_row(question) for question in questions), path)


def split_heldout(questions: Sequence[Question], fraction: float, seed: int) -> tuple[list[Question], list[Question]]:
    """Questions to train on and a random `fraction` of all that is held out, each in order and with at least one.

    The same questions and seed give the same split. Raises MindError for a fraction outside (0, 1) and for fewer than
    two questions.
    """
    if not 0 < fraction < 1:
        raise MindError(f"the held-out fraction is {fraction}: expected a number in (0, 1)")
    if len(questions) < 2:
        raise MindError(f"{len(questions)} questions cannot be split: expected at least 2")
    count = min(max(round(fraction * len(questions)), 1), len(questions) - 1)
    chosen = set(random.Random(seed).sample(range(len(questions)), count))
    train = [question for index, question in enumerate(questions) if index not in chosen]
    return train, [questions[index] for index in sorted(chosen)]


def read_questions(path: Path) -> Iterator[tuple[str, dict[str, Any], Question]]:
    """Each row of a file with its "path:line" or "path: row n", and the question in it, without rationales."""
    first: dict[str, str] = {}
    parquet = path.suffix == ".parquet"
    for where, row in parquet_rows(path) if parquet else json_rows(path):
        question = parse_question(where, row)
        if question.id in first:
            place = first[question.id].rpartition(":")[2].strip()
            raise MindError(f"{where}: id {question.id} is also on {'' if parquet else 'line '}{place}")
        first[question.id] = where
        yield where, row, question
    expected = "question per row" if parquet else "JSON object per line"
    require(bool(first), f"{path}: the file is empty: expected one {expected}")


def parse_question(where: str, row: Mapping[str, Any]) -> Question:
    """The question of {"id", "question", "answer", "choices"?}, without rationales; raises MindError with `where`."""
    identifier = required_text(where, row, "id")
    question = required_text(where, row, "question")
    return Question(identifier, question, *parse_answer(where, row))


def parse_answer(where: str, row: Mapping[str, Any]) -> tuple[str, Mapping[str, str] | None]:
    """The answer and the choices of {"answer", "choices"?}, a numeric answer as text; raises MindError with `where`."""
    answer = required_text(where, row, "answer", or_number=True)
    choices = row.get("choices")
    if choices is not None:
        if not isinstance(choices, dict) or len(choices) < 2:
            raise MindError(f'{where}: "choices" is not an object of at least 2 labels and their texts')
        for label, text in choices.items():
            text_of(where, "choices", label)
            text_of(where, f"choices.{label}", text)
        if answer not in choices:
            raise MindError(f"{where}: answer {answer} is not one of the choices {', '.join(choices)}")
    return answer, choices


def required_text(where: str, row: Mapping[str, Any], name: str, *, or_number: bool = False) -> str:
    """`text_of` the value of `name`; raises MindError that begins with `where` if it is missing, too."""
    require(name in row, f'{where}: "{name}" is missing')
    return text_of(where, name, row[name], or_number=or_number)


def text_of(where: str, name: str, value: Any, *, or_number: bool = False) -> str:
    """`value`, a text, or the text of a finite number if it may be one, too.

    Raises MindError that begins with `where` for other values and for a blank text.
    """
    if or_number and _is_finite_number(value):
        return str(value)
    if not isinstance(value, str):
        expected = "a string or a number" if or_number else "a string"
        raise MindError(f'{where}: "{name}" is {described(value)}: expected {expected}')
    require(value.strip() != "", f'{where}: "{name}" is empty')
    return value


def _is_finite_number(value: Any) -> bool:
    if isinstance(value, int):  # of any size, beyond that of a float too
        return not isinstance(value, bool)
    return isinstance(value, (float, Decimal)) and math.isfinite(value)


def question_row(question: Question) -> dict[str, Any]:
    """The JSON object that `load_questions` reads as `question`."""
    row: dict[str, Any] = {"id": question.id, "question": question.question, "answer": question.answer}
    if question.choices is not None:
        row["choices"] = dict(question.choices)
    if question.rationales:
        row["rationales"] = [dataclasses.asdict(rationale) for rationale in question.rationales]
    return row


def _named_rationales(
    where: str, values: Any, perspectives: Sequence[str] | None, required: bool
) -> tuple[Rationale, ...]:
    if values is None:
        return ()
    if not isinstance(values, list):
        raise MindError(f'{where}: "rationales" is not a list of {{"perspective", "text"}}')
    if values and all(isinstance(value, str) for value in values):
        if required:
            raise MindError(f"{where}: the rationales have no perspectives: run `mind data import` on the file first")
        return ()
    rationales: dict[str, Rationale] = {}
    for index, value in enumerate(values):
        if not isinstance(value, dict) or not {"perspective", "text"} <= value.keys():
            raise MindError(f'{where}: rationales[{index}] is not an object with "perspective" and "text"')
        perspective = text_of(where, f"rationales[{index}].perspective", value["perspective"])
        text = text_of(where, f"rationales[{index}].text", value["text"])
        if perspectives is not None and perspective not in perspectives:
            raise MindError(f"{where}: unknown perspective {perspective}: expected one of {', '.join(perspectives)}")
        if perspective in rationales:
            raise MindError(f"{where}: perspective {perspective} comes twice")
        rationales[perspective] = Rationale(perspective, text)
    return tuple(rationales.values())
