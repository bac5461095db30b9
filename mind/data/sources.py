"""Reads questions from files, saved data sets and the Hub, and maps their columns to the fields of a question."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mind.data.fields import Columns
from mind.data.problems import Problems
from mind.data.questions import read_questions
from mind.data.rows import READERS, Rows, file_rows
from mind.display import listed
from mind.errors import MindError, MissingError, require
from mind.hub import is_local, out_of_reach, require_on_hub, warn_of_copy
from mind.records import Question
from mind.typed_json import check_fields


@dataclass(frozen=True)
class SourceConfig:
    """The source of questions, and which columns hold which fields."""

    path: str
    """A .jsonl, .json (a list or lines), .csv or .parquet file, a folder that the `datasets` library can read or has
    saved, or a name on the Hub ("openai/gsm8k")."""
    subset: str | None = None
    """The configuration of a folder or of a data set on the Hub ("main")."""
    split: str = "train"
    """The split of a folder or of a data set on the Hub."""
    id_column: str | None = None
    """Column of the id. None: "id". Without such a column, ids are made of the file's name and the row."""
    question_column: str = "question"
    """Column of the question."""
    answer_column: str = "answer"
    """Column of the gold answer."""
    choices_column: str | None = None
    """Column of the choices. None: "choices". A row without it is a question without choices. Choices may be {"label":
    [...], "text": [...]}, {label: text}, pairs of label and text, or texts, which get the labels A, B, ..."""
    answer_marker: str | None = None
    """The answer is the text after this mark in the answer column. None: "####" if it is there, as in GSM8K."""
    limit: int | None = None
    """Number of questions to read, from the first; None: all."""

    def __post_init__(self) -> None:
        check_fields("questions", self)
        columns = [c for c in (self.id_column, self.question_column, self.answer_column, self.choices_column) if c]
        require(len(set(columns)) == len(columns), f"questions: two of the columns {', '.join(columns)} are the same")
        require(self.limit is None or self.limit >= 1, f"questions.limit is {self.limit}: expected at least 1")

    @property
    def columns(self) -> Columns:
        return Columns(
            self.id_column, self.question_column, self.answer_column, self.choices_column, self.answer_marker
        )


def load_source(config: SourceConfig) -> list[Question]:
    """The questions of a source, without rationales.

    mind/data/fields.py says what answers and choices may be. Files and folders are read without a network. Raises
    MindError for a missing or empty file and, with the reason, for a data set that cannot be loaded, for example if the
    Hub cannot be reached; FaultyRowsError with all faults of single rows, each with its place.
    """
    problems = Problems(config.path)
    questions = [question for _, _, question in read_source(config, problems)]
    problems.check(questions)
    return questions


def read_source(config: SourceConfig, problems: Problems) -> Iterator[tuple[str, Mapping[str, Any], Question]]:
    """Each row of a source as `load_source` reads it; faults of a row are recorded in `problems`."""
    has_choices = config.choices_column is None
    columns: dict[str, None] = {}
    rows = islice(_rows(config, problems), config.limit)
    for where, row, question in read_questions(config.path, problems, config.columns, rows):
        has_choices = has_choices or config.choices_column in row
        columns |= dict.fromkeys(row)
        yield where, row, question
    if columns and not has_choices:
        names = f"{', '.join(columns):.500}"
        problems.note(config.path, f"no row has the column {config.choices_column}: there are {names}")


def _rows(config: SourceConfig, problems: Problems) -> Rows:
    path = Path(config.path)
    known = path.suffix.lower() in READERS
    if os.path.isdir(path) or not (known or os.path.exists(path)):
        return _dataset_rows(config)
    require(known, f"{path}: expected a file whose name ends in {', '.join(READERS)}")
    require(
        config.subset is None and config.split == SourceConfig.split,
        f"{config.path}: a file has no subset, and no split other than {SourceConfig.split}",
    )
    return file_rows(path, problems)


def _dataset_rows(config: SourceConfig) -> Rows:
    dataset = _dataset(config)
    for column in (config.id_column, config.question_column, config.answer_column, config.choices_column):
        if column is not None and column not in dataset.column_names:
            raise MindError(f"{config.path}: no column {column}: there are {', '.join(dataset.column_names):.500}")
    # Other columns are not touched: decoding an image or a sound takes time and packages.
    used = {config.id_column or "id", config.question_column, config.answer_column, config.choices_column or "choices"}
    for number, row in enumerate(dataset.select_columns([name for name in dataset.column_names if name in used])):
        yield f"{config.path}: row {number}", row


def _dataset(config: SourceConfig) -> Any:
    folder = Path(config.path)
    if os.path.isdir(folder) and not any(file.is_file() for file in folder.rglob("*")):
        raise MindError(f"{config.path}: is a folder without files: expected one of questions")
    try:
        import datasets
    except ImportError as error:
        raise MissingError(
            f"{config.path}: this needs the package datasets: pip install 'mind-kernels[data]'"
        ) from error
    try:
        if any(os.path.isfile(folder / name) for name in ("state.json", "dataset_dict.json")):
            return _saved_dataset(config)
        if not is_local("the questions", config.path):
            return _hub_dataset(config)
        return datasets.load_dataset(config.path, config.subset, split=config.split)
    except MindError:
        raise
    except Exception as error:  # a file's reader, the network or the Hub may raise many kinds
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())  # some errors say only that something failed
        remedy = _file_meant(folder)
        shown = f"{reason:.{200 if remedy else 500}}"
        raise MindError(f"{config.path}: cannot be loaded: {type(error).__name__}: {shown}{remedy}") from error


def _file_meant(folder: Path) -> str:
    """The end of a message about a folder that is no data set: the files in it that could be meant."""
    files = sorted(file.name for file in folder.glob("*") if file.is_file() and file.suffix.lower() in READERS)
    return f"; if a file in it is meant, name that: {listed(files, 10)}" if files else ""


def _hub_dataset(config: SourceConfig) -> Any:
    """The data set of this name on the Hub, or its copy in the cache if the Hub does not answer. The Hub is asked once:
    `datasets` would try for half a minute."""
    import datasets
    from datasets import config as settings

    away = require_on_hub("the questions", config.path, "dataset")
    before, settings.HF_HUB_OFFLINE = settings.HF_HUB_OFFLINE, away is not None or settings.HF_HUB_OFFLINE
    try:
        found = datasets.load_dataset(config.path, config.subset, split=config.split)
    except ConnectionError:
        if away is None:
            raise
        raise out_of_reach("the questions", config.path, away) from away
    finally:
        settings.HF_HUB_OFFLINE = before
    if away is not None:
        warn_of_copy("the questions", config.path, away)
    return found


def _saved_dataset(config: SourceConfig) -> Any:
    """The split in a folder that `save_to_disk` wrote."""
    import datasets

    require(config.subset is None, f"{config.path}: a saved data set has no subset {config.subset}")
    saved = datasets.load_from_disk(config.path)
    splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or SourceConfig.split): saved}
    require(config.split in splits, f"{config.path}: no split {config.split}: there are {', '.join(map(str, splits))}")
    return splits[config.split]
