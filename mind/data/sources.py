"""Questions from elsewhere: files, saved data sets and the Hub, their columns mapped to the fields of a question."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import functools
import io
import string
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mind.data.parquet import parquet_rows
from mind.data.questions import load_questions, text_of
from mind.errors import MindError, require
from mind.files import json_rows, parse_json, require_file
from mind.hub import is_local, require_on_hub
from mind.records import Question
from mind.typed_json import described

ReadGold = Callable[[Any], tuple[str, Mapping[str, str] | None] | None]
"""Reads a value of the answer column that is neither text nor number, such as `true`; None for other values."""

_text = functools.partial(text_of, or_number=True)


@dataclass(frozen=True)
class SourceConfig:
    """Where questions come from, and which columns hold what."""

    path: str
    """A .jsonl file in our own format or, with the columns below, any .jsonl, .json (a list or lines), .csv or
    .parquet file, a folder that the `datasets` library reads or has saved, or a name on the Hub ("openai/gsm8k")."""
    subset: str | None = None
    """The configuration of a folder or of a data set on the Hub ("main")."""
    split: str = "train"
    """The split of a folder or of a data set on the Hub."""
    id_column: str | None = None
    """By default "id" if there is such a column; without one, an id is the last part of the path and the row."""
    question_column: str = "question"
    answer_column: str = "answer"
    choices_column: str | None = None
    """By default "choices" if there is such a column: {"label": [...], "text": [...]}, label -> text, pairs of label
    and text, or texts alone, which are labeled A, B, ..."""
    answer_marker: str | None = None
    """The answer is what follows this in the answer column ("####" for GSM8K)."""
    limit: int | None = None
    """Take only the first so many questions."""

    def __post_init__(self) -> None:
        for name in (
            "path",
            "subset",
            "split",
            "id_column",
            "question_column",
            "answer_column",
            "choices_column",
            "answer_marker",
        ):
            value = getattr(self, name)
            require(value is None or bool(value.strip()), f"source.{name} is empty")
        columns = [c for c in (self.id_column, self.question_column, self.answer_column, self.choices_column) if c]
        require(len(set(columns)) == len(columns), f"source: two of the columns {', '.join(columns)} are the same")
        require(self.limit is None or self.limit >= 1, f"source.limit is {self.limit}: expected at least 1")

    @property
    def is_own_format(self) -> bool:
        """Whether this is a .jsonl file whose columns are left as they are by default."""
        mapping = (field for field in dataclasses.fields(self) if field.name not in ("path", "limit"))
        return Path(self.path).suffix == ".jsonl" and all(getattr(self, f.name) == f.default for f in mapping)


def load_source(config: SourceConfig, read_gold: ReadGold) -> list[Question]:
    """The questions of a source, with rationales only from a .jsonl file in our own format (`load_questions`).

    Numbers become text. `read_gold` (mind.grading.gold_answer) reads other values of the answer column, unless there
    are choices. An answer to choices is a label; if the choices are texts alone it may also be the index, from 0, or
    the text, as long as no two of these differ. Nothing is read from a network if `path` is a file or a folder.

    Raises MindError that names file, row (from 0; of a .jsonl file the line) and column for a missing column, a value
    that is empty or no text, an answer that is none of the choices or more than one, and an id that comes twice; for a
    missing or empty file; and with its reason for a data set that cannot be loaded, as one on a Hub out of reach.
    """
    if config.is_own_format:
        return load_questions(config.path)[: config.limit]
    questions: dict[str, Question] = {}
    places: dict[str, str] = {}
    for number, (where, row) in enumerate(islice(_rows(config), config.limit)):
        question = _question(config, read_gold, where, row, number)
        if question.id in questions:
            raise MindError(f"{where}: id {question.id} comes twice, first at {places[question.id]}")
        questions[question.id], places[question.id] = question, where
    if not questions:
        raise MindError(f"{config.path}: there are no rows")
    return list(questions.values())


def _rows(config: SourceConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row with its place. Files are read here, as `datasets` would guess types: it makes dates of texts, and
    1.0 of 1 if another row has 1.5."""
    readers = {".jsonl": json_rows, ".json": _json_rows, ".csv": _csv_rows, ".parquet": parquet_rows}
    path = Path(config.path)
    reader = readers.get(path.suffix.lower())
    if path.is_dir() or (reader is None and not path.is_file()):
        return _dataset_rows(config)
    if reader is None:
        raise MindError(f"{path}: expected a file whose name ends in {', '.join(readers)}")
    require(
        config.subset is None and config.split == SourceConfig.split,
        f"{config.path}: a file has no subset and no split but {SourceConfig.split}",
    )
    return reader(config.path)


def _json_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON list, or of a file of JSON lines."""
    text = require_file(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    if not text.lstrip().startswith(b"["):
        yield from json_rows(path)
        return
    for number, row in enumerate(parse_json(path, text)):
        where = f"{path}: row {number}"
        if not isinstance(row, dict):
            raise MindError(f"{where}: expected a JSON object, not {type(row).__name__}")
        yield where, row


def _csv_rows(path: str) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        text = require_file(path).read_bytes().decode("utf-8-sig")
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(rows, [])
        if len(set(header)) < len(header):
            raise MindError(f"{path}: two columns have the same name: {', '.join(header)}")
        for number, row in enumerate(row for row in rows if row):
            where = f"{path}: row {number}"
            if len(row) != len(header):
                raise MindError(f"{where}: {len(row)} values for the {len(header)} columns {', '.join(header)}")
            yield where, dict(zip(header, row, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise MindError(f"{path}: not CSV in UTF-8: {error}") from None


def _dataset_rows(config: SourceConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    dataset = _dataset(config)
    _check_columns(config.path, dataset.column_names, config)
    # Other columns are not touched: decoding an image or a sound takes time and packages.
    used = {config.id_column or "id", config.question_column, config.answer_column, config.choices_column or "choices"}
    for number, row in enumerate(dataset.select_columns([name for name in dataset.column_names if name in used])):
        yield f"{config.path}: row {number}", row


def _dataset(config: SourceConfig) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MindError(f"{config.path}: this needs the package datasets: pip install 'mind-kernels[data]'") from error
    try:
        if any((Path(config.path) / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return _saved_dataset(config)
        if not is_local("questions.path", config.path):
            require_on_hub("questions.path", config.path, "dataset")
        return datasets.load_dataset(config.path, config.subset, split=config.split)
    except MindError:
        raise
    except Exception as error:  # of any kind: by a file's reader, the network or the Hub
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())  # some say no more than that it failed
        raise MindError(f"{config.path}: cannot be loaded: {type(error).__name__}: {reason:.500}") from error


def _saved_dataset(config: SourceConfig) -> Any:
    """The split in a folder that `save_to_disk` wrote."""
    import datasets

    require(config.subset is None, f"{config.path}: a saved data set has no subset {config.subset}")
    saved = datasets.load_from_disk(config.path)
    splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or SourceConfig.split): saved}
    require(config.split in splits, f"{config.path}: no split {config.split}: there are {', '.join(map(str, splits))}")
    return splits[config.split]


def _check_columns(where: str, columns: Collection[str], config: SourceConfig) -> None:
    for column in (config.id_column, config.question_column, config.answer_column, config.choices_column):
        if column is not None and column not in columns:
            raise MindError(f"{where}: no column {column}: there are {', '.join(columns):.500}")


def _question(config: SourceConfig, read_gold: ReadGold, where: str, row: Mapping[str, Any], number: int) -> Question:
    """The question of the row with this number."""
    _check_columns(where, row, config)
    id_column = config.id_column or ("id" if "id" in row else None)
    identifier = f"{Path(config.path).stem}-{number}" if id_column is None else _text(where, id_column, row[id_column])
    question = _text(where, config.question_column, row[config.question_column])
    answer = row[config.answer_column]
    if config.answer_marker is not None:
        answer = _marked_answer(where, config.answer_column, answer, config.answer_marker)
    choices_column = config.choices_column or "choices"
    given = row.get(choices_column)
    if given is not None:
        choices = _choices(where, choices_column, given)
        return Question(identifier, question, _label(config, where, answer, choices, _are_texts(given)), choices)
    gold = read_gold(answer) or (_text(where, config.answer_column, answer), None)
    return Question(identifier, question, *gold)


def _marked_answer(where: str, column: str, answer: Any, marker: str) -> str:
    _, found, marked = _text(where, column, answer).rpartition(marker)
    require(found != "", f'{where}: "{column}" has no {marker} before the answer')
    return marked.strip()


def _label(config: SourceConfig, where: str, answer: Any, choices: Mapping[str, str], are_texts: bool) -> str:
    """The label of the choice that `answer` names; choices that `are_texts` can be named by index and by text too."""
    text = _text(where, config.answer_column, answer)
    meant = {text} & choices.keys()
    if are_texts:
        meant |= {label for label, choice in choices.items() if choice == text}
        if isinstance(answer, int) and 0 <= answer < len(choices):
            meant.add(list(choices)[answer])
    if len(meant) != 1:
        which = "may be any of" if meant else "is not one of"
        raise MindError(
            f'{where}: "{config.answer_column}" {text:.60} {which} the choices ' + ", ".join(sorted(meant or choices))
        )
    return meant.pop()


def _choices(where: str, column: str, value: Any) -> dict[str, str]:
    """Label -> text, from any of the forms of `SourceConfig.choices_column`."""
    if _are_texts(value):
        require(len(value) <= len(string.ascii_uppercase), f'{where}: "{column}" has {len(value)} texts without labels')
        pairs = list(zip(string.ascii_uppercase, value, strict=False))
    elif isinstance(value, list):
        pairs = [(choice.get("label"), choice.get("text")) for choice in value]
    elif isinstance(value, dict) and value.keys() == {"label", "text"} and isinstance(value["label"], list):
        require(
            isinstance(value["text"], list) and len(value["text"]) == len(value["label"]),
            f'{where}: "{column}" has not as many texts as labels',
        )
        pairs = list(zip(value["label"], value["text"], strict=True))
    elif isinstance(value, dict):
        pairs = [(label, text) for label, text in value.items() if text is not None]  # Arrow adds labels of other rows
    else:
        raise MindError(f'{where}: "{column}" is {described(value)}: expected choices')
    labels = [_text(where, f"{column}.label", label) for label, _ in pairs]
    require(len(labels) >= 2, f'{where}: "{column}" has {len(labels)} choices: expected at least 2')
    require(len(set(labels)) == len(labels), f'{where}: "{column}" has a label twice: {", ".join(labels)}')
    return {label: _text(where, f"{column}.{label}", text) for label, (_, text) in zip(labels, pairs, strict=True)}


def _are_texts(choices: Any) -> bool:
    """Whether these choices are texts without labels."""
    return isinstance(choices, list) and not all(isinstance(choice, dict) for choice in choices)
