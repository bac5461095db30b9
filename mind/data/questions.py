"""Reads questions from files and checks them, writes them, and splits them."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import logging
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mind.answer_line import ANSWER_MARKER, without_suffix
from mind.data.fields import (
    OWN_COLUMNS,
    Answer,
    Columns,
    answer_of,
    field_of,
    folded,
    id_of,
    required_text,
    text_of,
    whole_text,
)
from mind.data.parquet import write_parquet_rows
from mind.data.problems import Problems
from mind.data.rows import Rows, file_rows
from mind.display import meant, number_of, readable
from mind.errors import MindError, require
from mind.files import write_json_rows
from mind.records import Question, Rationale, WrongRationale
from mind.typed_json import described, row_of

__all__ = [
    "Asked",
    "asked_in",
    "load_questions",
    "parse_answer",
    "question_row",
    "read_questions",
    "required_text",
    "same_text",
    "save_questions",
    "split_heldout",
]

logger = logging.getLogger(__name__)

_OPTIONAL = {"rationales", "wrong_rationales", "knowledge", "generated"}
_ALIKE = 0.8
"""Of two names, by difflib: "rationale" and "rationales" have 0.95, "options" has 0.43."""
TO_COMPARE = 2
"""Number of rationales per question that a method needs to compare them."""


def load_questions(
    path: str | os.PathLike[str],
    *,
    perspectives: Sequence[str] | None = None,
    require_rationales: bool = False,
    minimum_rationales: int = TO_COMPARE,
) -> list[Question]:
    """Reads a file with a row per question: {"id"?, "question", "answer", "choices"?, "rationales"?: [{"perspective",
    "text", "source"?}], "wrong_rationales"?: [{"perspective", "text", "answer", "source"?, "right"?}], "knowledge"?:
    [text], "generated"?: {name: text}}.

    mind/data/rows.py says which files are read, mind/data/fields.py which answers and choices. Other keys, blank lines
    and an answer line at the end of a rationale are dropped. `perspectives` are the names that rationales may have,
    None: any; with `require_rationales` each question needs `minimum_rationales` of them.

    Raises MindError for a missing or empty file, and FaultyRowsError with all that is wrong with single rows, each with
    its place and what was expected. Rationales without names are such a fault if rationales are required, and are
    ignored otherwise.
    """
    problems = Problems(path)
    questions = []
    for where, row, question in read_questions(path, problems):
        named = problems.attempt(
            where, named_rationales, where, row.get("rationales", []), perspectives, require_rationales
        )
        wrong = problems.attempt(where, wrong_rationales, where, row.get("wrong_rationales"), question.answer)
        rules = problems.attempt(where, knowledge, where, row.get("knowledge"))
        known = problems.attempt(where, generated, where, row.get("generated"))
        if named is None or wrong is None or rules is None or known is None:
            continue
        if require_rationales and len(named) < minimum_rationales:
            count = number_of(len(named), "rationale") if named else "no rationales"
            remedy = "" if named else "; `mind data generate` asks a teacher for them"
            problems.note(where, f"{count}: expected at least {minimum_rationales}{remedy}")
        else:
            told = {"rationales": named, "wrong_rationales": wrong, "knowledge": rules, "generated": known}
            questions.append(dataclasses.replace(question, **told))
    problems.check(questions)
    return questions


def save_questions(questions: Iterable[Question], path: str | os.PathLike[str]) -> None:
    """Writes a file that `load_questions` reads; an existing file is replaced in one step or, after an error, left as
    it was.

    Raises MindError if `path` ends in ".parquet" and a question holds a lone surrogate, which Parquet cannot store.
    """
    write = write_parquet_rows if Path(path).suffix == ".parquet" else write_json_rows
    write((question_row(question) for question in questions), path)


def split_heldout(questions: Sequence[Question], fraction: float, seed: int) -> tuple[list[Question], list[Question]]:
    """Training questions, and a random `fraction` of all questions that is held out; each in order and with at least
    one.

    The same questions and seed give the same split. Raises MindError for a fraction outside (0, 1) and for fewer than
    two questions.
    """
    if not 0 < fraction < 1:
        raise MindError(f"the held-out fraction is {fraction}: expected a number in (0, 1)")
    if len(questions) < 2:
        raise MindError(f"{number_of(len(questions), 'question')} cannot be split: expected at least 2")
    count = min(max(round(fraction * len(questions)), 1), len(questions) - 1)
    chosen = set(random.Random(seed).sample(range(len(questions)), count))
    train = [question for index, question in enumerate(questions) if index not in chosen]
    return train, [questions[index] for index in sorted(chosen)]


def read_questions(
    path: str | os.PathLike[str], problems: Problems, columns: Columns = OWN_COLUMNS, rows: Rows | None = None
) -> Iterator[tuple[str, Mapping[str, Any], Question]]:
    """Each row with its place and its question, without rationales.

    `rows` are those of the file at `path` unless they are given. Faults of a row, such as an id that an earlier row
    has, are recorded in `problems`. Warns of columns that nothing reads, but whose names are like those of fields.
    Raises MindError if there are no rows.
    """
    places: dict[str, str] = {}
    misspelt: dict[str, str] = {}
    number = -1
    for number, (where, row) in enumerate(file_rows(path, problems) if rows is None else rows):
        misspelt |= _misspelt(frozenset(row), columns)
        name = problems.attempt(where, id_of, where, row, columns, f"{Path(path).stem}-{number}")
        text = problems.attempt(where, field_of, where, row, columns.question)
        gold = problems.attempt(where, answer_of, where, row, columns)
        if name in places:
            first = places[name].rpartition(":")[2].strip()
            place = f"line {first}" if first.isdigit() else first
            problems.note(where, f"id {name} is also on {place}: give each question an id of its own")
        elif name is not None:
            places[name] = where
            if text is not None and gold is not None:
                yield where, row, Question(name, text, *gold)
    if number < 0:
        problems.check([])
        raise MindError(f"{path}: there are no rows: expected a question per row")
    for column, field in misspelt.items():
        logger.warning('%s: "%s" is not read; perhaps "%s" is meant', path, readable(column), field)


@functools.lru_cache(64)  # rows have the same columns, and comparing names takes time
def _misspelt(row: frozenset[str], columns: Columns) -> dict[str, str]:
    """Columns of a row that nothing reads, though their names are like that of a field that it lacks, with the
    field."""
    fields = _OPTIONAL | {columns.id or "id", columns.question, columns.answer, columns.choices or "choices"}
    found = {}
    for name in row - fields:
        for field in difflib.get_close_matches(name, fields - row, 1, _ALIKE):
            found[name] = field
    return found


def parse_answer(where: str, row: Mapping[str, Any]) -> Answer:
    """`mind.data.fields.answer_of` a row with "answer" and "choices"."""
    return answer_of(where, row, OWN_COLUMNS)


def same_text(text: str) -> str:
    """A normal form of a question's text: equal for texts that are equal up to white space and what
    `mind.data.fields.folded` removes."""
    return " ".join(folded(text).split())


class Asked:
    """What questions ask: two ask the same if their texts are equal by `same_text`, and not both have choices that
    differ, since "Which of these is true?" is another question with other choices. The order of choices, and their
    labels, are of no consequence."""

    def __init__(self, questions: Iterable[Question] = ()) -> None:
        self._choices: dict[str, set[frozenset[str] | None]] = {}
        for question in questions:
            self.add(question)

    def add(self, question: Question) -> None:
        self._choices.setdefault(same_text(question.question), set()).add(choice_texts(question))

    def again(self, question: Question) -> bool:
        """Whether an earlier one asks the same; adds it."""
        found = question in self
        self.add(question)
        return found

    def __contains__(self, question: Question) -> bool:
        known, choices = self._choices.get(same_text(question.question)), choice_texts(question)
        return bool(known) and (choices is None or None in known or choices in known)


def choice_texts(question: Question) -> frozenset[str] | None:
    """The texts of a question's choices, as `same_text` makes them; None without choices."""
    return None if question.choices is None else frozenset(map(same_text, question.choices.values()))


def asked_in(questions: Iterable[Question], others: Iterable[Question]) -> list[Question]:
    """Those of `questions` that are also among `others`, as `Asked` says."""
    asked = Asked(others)
    return [question for question in questions if question in asked]


def _without_answer_line(where: str, name: str, text: str) -> str:
    """`text` without an answer line at its end: training appends its own."""
    if ANSWER_MARKER not in text:
        return text
    text = without_suffix(text)
    require(text != "", f'{where}: "{name}" is an answer line alone')
    return text


def question_row(question: Question) -> dict[str, Any]:
    """The JSON object that `load_questions` reads as `question`."""
    row: dict[str, Any] = {"id": question.id, "question": question.question, "answer": question.answer}
    if question.choices is not None:
        row["choices"] = dict(question.choices)
    if question.rationales:
        row["rationales"] = [row_of(rationale) for rationale in question.rationales]
    if question.wrong_rationales:
        row["wrong_rationales"] = [row_of(rationale) for rationale in question.wrong_rationales]
    if question.knowledge:
        row["knowledge"] = list(question.knowledge)
    if question.generated:
        row["generated"] = dict(question.generated)
    return row


def named_rationales(
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
        rationale = Rationale(*_perspective_and_text(where, f"rationales[{index}]", value), _source(where, value))
        perspective = rationale.perspective
        if perspectives is not None and perspective not in perspectives:
            raise MindError(
                f"{where}: unknown perspective {perspective}: expected one of {', '.join(perspectives)}"
                f"{meant(perspective, perspectives)}; --data.perspectives names those to train on"
            )
        if perspective in rationales:
            raise MindError(f"{where}: perspective {perspective} appears twice")
        rationales[perspective] = rationale
    return tuple(rationales.values())


def wrong_rationales(where: str, values: Any, gold: str) -> tuple[WrongRationale, ...]:
    """The wrong rationales of a row; raises a MindError that begins with `where` if they are not as `load_questions`
    says, or one states the `gold` answer."""
    if values is None:
        return ()
    expected = '{"perspective", "text", "answer"}'
    require(isinstance(values, list), f'{where}: "wrong_rationales" is not a list of {expected}')
    found = []
    for index, value in enumerate(values):
        name = f"wrong_rationales[{index}]"
        perspective, text = _perspective_and_text(where, name, value)
        require("answer" in value, f'{where}: {name} has no "answer", the wrong one that it states')
        answer = text_of(where, f"{name}.answer", value["answer"], or_number=True)
        require(answer.strip() != gold.strip(), f"{where}: {name} states {answer}, which is the right answer")
        right = None if value.get("right") is None else _rationale_text(where, f"{name}.right", value["right"])
        found.append(WrongRationale(perspective, text, answer, _source(where, value), right))
    return tuple(found)


def knowledge(where: str, values: Any) -> tuple[str, ...]:
    """The rules of a row; raises MindError that begins with `where` unless they are a list of texts."""
    if values is None:
        return ()
    if not isinstance(values, list):
        raise MindError(f'{where}: "knowledge" is {described(values)}: expected a list of texts, a rule each')
    names = [f"knowledge[{index}]" for index in range(len(values))]
    return tuple(
        whole_text(where, name, text_of(where, name, value)) for name, value in zip(names, values, strict=True)
    )


def generated(where: str, values: Any) -> dict[str, str]:
    """What the generator recorded about a row's question; raises a MindError that begins with `where` unless it is an
    object of texts."""
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise MindError(f'{where}: "generated" is {described(values)}: expected an object of texts')
    # Arrow adds the names of other rows
    told = {name: value for name, value in values.items() if value is not None}
    return {name: text_of(where, f"generated.{name}", value, or_number=True) for name, value in told.items()}


def _perspective_and_text(where: str, name: str, value: Any) -> tuple[str, str]:
    if not isinstance(value, dict) or not {"perspective", "text"} <= value.keys():
        raise MindError(f'{where}: {name} is not an object with "perspective" and "text"')
    perspective = text_of(where, f"{name}.perspective", value["perspective"])
    return perspective, _rationale_text(where, f"{name}.text", value["text"])


def _rationale_text(where: str, name: str, value: Any) -> str:
    return _without_answer_line(where, name, whole_text(where, name, text_of(where, name, value)))


def _source(where: str, value: Mapping[str, Any]) -> str | None:
    source = value.get("source")
    return None if source is None else text_of(where, "source", source)
