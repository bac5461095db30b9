"""Questions in JSON lines or Parquet: read and checked, written, and split."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mind.data.parquet import parquet_objects, save_parquet
from mind.errors import MindError
from mind.files import json_objects, replacing
from mind.records import Question, Rationale


def load_questions(
    path: str | os.PathLike[str],
    *,
    perspectives: Sequence[str] | None = None,
    require_rationales: bool = False,
    minimum_rationales: int = 2,
) -> list[Question]:
    """Reads a file of {"id", "question", "answer", "choices"?, "rationales"?: [{"perspective", "text"}]}, one a line.

    Other keys and blank lines are ignored; a numeric answer becomes its text. `perspectives` are the names that
    rationales may have, None for any; with `require_rationales` each question needs `minimum_rationales` of them. A
    file whose name ends in ".parquet" holds them one a row (mind/data/parquet.py); errors name the row, counted from 0.

    Raises MindError with the file, the line and what was expected for a missing or empty file, a line that is not such
    a record, an id that comes twice, an answer that is not a label of its choices, and faulty rationales. Rationales
    without names are such a fault where rationales are required and are ignored elsewhere.
    """
    questions = []
    for where, record, question in question_records(Path(path)):
        rationales = _named_rationales(where, record.get("rationales", []), perspectives, require_rationales)
        if require_rationales and len(rationales) < minimum_rationales:
            raise MindError(
                f"{where}: question {question.id} has {len(rationales)} rationales: "
                f"expected at least {minimum_rationales}"
            )
        questions.append(dataclasses.replace(question, rationales=rationales))
    return questions


def save_questions(questions: Iterable[Question], path: str | os.PathLike[str]) -> None:
    """Writes what `load_questions` reads; a file at `path` is replaced at once or, after an error, left as it was.

    Raises MindError where `path` ends in ".parquet" and a question holds a lone surrogate, which Parquet cannot.
    """
    records = (question_record(question) for question in questions)
    if Path(path).suffix == ".parquet":
        save_parquet(records, path)
        return
    with replacing(path) as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


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


def question_records(path: Path) -> Iterator[tuple[str, dict[str, Any], Question]]:
    """Each record of the file with its "path:line" or "path: row n" and its question, without rationales."""
    first: dict[str, str] = {}
    parquet = path.suffix == ".parquet"
    for where, record in parquet_objects(path) if parquet else json_objects(path):
        question = parse_question(where, record)
        if question.id in first:
            place = first[question.id].rpartition(":")[2].strip()
            raise MindError(f"{where}: id {question.id} is also on {'' if parquet else 'line '}{place}")
        first[question.id] = where
        yield where, record, question
    if not first:
        expected = "question a row" if parquet else "JSON object a line"
        raise MindError(f"{path}: the file is empty: expected one {expected}")


def parse_question(where: str, record: Mapping[str, Any]) -> Question:
    """The question of {"id", "question", "answer", "choices"?}, without rationales; raises MindError with `where`."""
    identifier = required_text(where, record, "id")
    question = required_text(where, record, "question")
    return Question(identifier, question, *parse_answer(where, record))


def parse_answer(where: str, record: Mapping[str, Any]) -> tuple[str, Mapping[str, str] | None]:
    """The answer and the choices of {"answer", "choices"?}, a numeric answer as text; raises MindError with `where`."""
    answer = record.get("answer")
    if type(answer) is int or (type(answer) is float and math.isfinite(answer)):
        record = {**record, "answer": str(answer)}
    answer = required_text(where, record, "answer")
    choices = record.get("choices")
    if choices is not None:
        if not isinstance(choices, dict) or len(choices) < 2:
            raise MindError(f'{where}: "choices" is not an object of at least 2 labels and their texts')
        for label, text in choices.items():
            _text(where, "choices", label)
            _text(where, f"choices.{label}", text)
        if answer not in choices:
            raise MindError(f"{where}: answer {answer} is not one of the choices {', '.join(choices)}")
    return answer, choices


def required_text(where: str, record: Mapping[str, Any], key: str) -> str:
    """The text of `key`; raises MindError that begins with `where` where it is missing, blank or no string."""
    if key not in record:
        raise MindError(f'{where}: the record has no "{key}"')
    return _text(where, key, record[key])


def _text(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise MindError(f'{where}: "{key}" is {json.dumps(value, default=str):.60}: expected a string')
    if not value.strip():
        raise MindError(f'{where}: "{key}" is empty')
    return value


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
        perspective = _text(where, f"rationales[{index}].perspective", value["perspective"])
        text = _text(where, f"rationales[{index}].text", value["text"])
        if perspectives is not None and perspective not in perspectives:
            raise MindError(f"{where}: unknown perspective {perspective}: expected one of {', '.join(perspectives)}")
        if perspective in rationales:
            raise MindError(f"{where}: perspective {perspective} comes twice")
        rationales[perspective] = Rationale(perspective, text)
    return tuple(rationales.values())


def question_record(question: Question) -> dict[str, Any]:
    """The JSON object that `load_questions` reads as `question`."""
    record: dict[str, Any] = {"id": question.id, "question": question.question, "answer": question.answer}
    if question.choices is not None:
        record["choices"] = dict(question.choices)
    if question.rationales:
        record["rationales"] = [dataclasses.asdict(rationale) for rationale in question.rationales]
    return record
