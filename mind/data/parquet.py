"""Reads and writes questions as rows of Parquet files, through pyarrow."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import chain, islice
from types import ModuleType
from typing import Any

from mind.errors import MindError, MissingError, require
from mind.files import replacing_file, require_file

BATCH_ROWS = 4096
"""Number of rows in memory at a time."""
_NOT_IN_JSON = re.compile(r"\b(?:date|time|timestamp|duration|decimal|month)")
"""The names of Arrow's types, within a schema, whose values JSON does not have."""


def parquet_rows(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a Parquet file as the equivalent JSON object, with its "path: row n", n from 0.

    Dates, times and decimals become texts, such as "2024-01-05". Bytes, which have no equivalent, stay as they are.
    Raises MindError for a missing file, for a file that is not Parquet, and without pyarrow.
    """
    pyarrow = _pyarrow(path)
    try:
        with pyarrow.parquet.ParquetFile(require_file(path)) as file:
            names = file.schema_arrow.names
            require(len(set(names)) == len(names), f"{path}: two columns have the same name: {', '.join(names)}")
            batches = map(_with_short_numbers, file.iter_batches(batch_size=BATCH_ROWS))
            rows = chain.from_iterable(batch.to_pylist(maps_as_pydicts="strict") for batch in batches)
            equivalent = _in_json if _NOT_IN_JSON.search(str(file.schema_arrow)) else dict
            for number, row in enumerate(rows):
                yield f"{path}: row {number}", equivalent(row)
    except (pyarrow.ArrowException, ValueError, KeyError, OverflowError, OSError) as error:
        raise MindError(f"{path}: cannot be read as Parquet: {error}") from None


def write_parquet_rows(rows: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Writes the rows of questions (`mind.data.questions.question_row`); `path` is replaced in one step.

    The columns are id, question, answer, choices (pairs of label and text, or null), rationales, wrong_rationales and
    knowledge (lists of what `load_questions` says), and generated (a map). Raises MindError for a lone surrogate, which
    Parquet cannot hold, and without pyarrow.
    """
    pyarrow = _pyarrow(path)
    text = pyarrow.string()
    lists = {
        "choices": ("label", "text"),
        "rationales": ("perspective", "text", "source"),
        "wrong_rationales": ("perspective", "text", "answer", "source", "right"),
    }
    structs = {name: pyarrow.list_(pyarrow.struct(dict.fromkeys(fields, text))) for name, fields in lists.items()}
    others = {"knowledge": pyarrow.list_(text), "generated": pyarrow.map_(text, text)}
    schema = pyarrow.schema({"id": text, "question": text, "answer": text, **structs, **others})
    parquet = map(_parquet_row, rows)
    with replacing_file(path) as partial, pyarrow.parquet.ParquetWriter(partial, schema) as writer:
        while batch := list(islice(parquet, BATCH_ROWS)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema))


def _in_json(value: Any) -> Any:
    """`value` with texts in place of dates, times and decimals."""
    if isinstance(value, dict):
        return {name: _in_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_in_json(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat(" ")
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value) if isinstance(value, timedelta | Decimal) else value


def _with_short_numbers(batch: Any) -> Any:
    """`batch` in which 32-bit numbers become the ones that were written: 0.1 instead of 0.10000000149011612."""
    import pyarrow

    for index, field in enumerate(batch.schema):
        if pyarrow.types.is_float32(field.type):
            numbers = batch.column(index).cast(pyarrow.string()).cast(pyarrow.float64())
            batch = batch.set_column(index, field.name, numbers)
    return batch


def _parquet_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with every column, and with choices as pairs."""
    row = {"choices": None, "rationales": [], "wrong_rationales": [], "knowledge": [], "generated": {}, **row}
    row["generated"] = list(row["generated"].items())
    if row["choices"] is not None:
        row["choices"] = [{"label": label, "text": text} for label, text in row["choices"].items()]
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise MindError(
            f"question {row['id']!a} has a lone surrogate, which Parquet cannot hold: write it as .jsonl"
        ) from None
    return row


def _pyarrow(path: str | os.PathLike[str]) -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingError(f"{path}: Parquet needs the package pyarrow: pip install 'mind-kernels[data]'") from error
    return pyarrow
