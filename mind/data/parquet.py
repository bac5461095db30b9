"""Reads and writes questions as rows of Parquet files, through pyarrow."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import chain, islice
from types import ModuleType
from typing import Any

import numpy

from mind.errors import MindError, MissingError, require
from mind.files import replacing_file, require_file

_LISTS = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
BATCH_ROWS = 4096
"""Number of rows in memory at a time."""
Convert = Callable[[Any], Any]
"""Makes a value of Arrow a value of JSON."""


def parquet_rows(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a Parquet file as the equivalent JSON object, with its "path: row n", n from 0.

    Dates, times and decimals become texts, such as "2024-01-05", and durations "7200 seconds". Bytes, which have no
    equivalent, stay as they are.
    Raises MindError for a missing file, for a file that is not Parquet, and without pyarrow.
    """
    pyarrow = _pyarrow(path)
    try:
        with pyarrow.parquet.ParquetFile(require_file(path)) as file:
            names = file.schema_arrow.names
            require(len(set(names)) == len(names), f"{path}: two columns have the same name: {', '.join(names)}")
            fields = {field.name: convert for field in file.schema_arrow if (convert := _to_json(field.type))}
            batches = file.iter_batches(batch_size=BATCH_ROWS)
            rows = chain.from_iterable(batch.to_pylist(maps_as_pydicts="strict") for batch in batches)
            for number, row in enumerate(rows):
                yield f"{path}: row {number}", _each_field(fields, row)
    except (pyarrow.ArrowException, ValueError, KeyError, OverflowError, OSError) as error:
        raise MindError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}") from None


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


def _to_json(kind: Any) -> Convert | None:
    """What makes values of this Arrow type JSON values; None if they are."""
    from pyarrow import types

    if types.is_float16(kind) or types.is_float32(kind):
        return functools.partial(_shortest, numpy.float16 if types.is_float16(kind) else numpy.float32)
    if types.is_duration(kind):
        return _seconds
    if types.is_temporal(kind) or types.is_decimal(kind):
        return _text
    if types.is_dictionary(kind):
        return _to_json(kind.value_type)
    if types.is_struct(kind):
        fields = {field.name: convert for field in kind if (convert := _to_json(field.type))}
        return functools.partial(_each_field, fields) if fields else None
    if types.is_map(kind):
        key, item = _to_json(kind.key_type), _to_json(kind.item_type)
        return functools.partial(_each_item, key or _same, item or _same) if key or item else None
    is_list = any(getattr(types, f"is_{name}")(kind) for name in _LISTS)
    convert = _to_json(kind.value_type) if is_list else None
    return convert and functools.partial(_each_value, convert)


def _same(value: Any) -> Any:
    return value


def _each_field(fields: Mapping[str, Convert], row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fields[name](value) if name in fields and value is not None else value for name, value in row.items()}


def _each_item(key: Convert, item: Convert, values: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key(name): value if value is None else item(value) for name, value in values.items()}


def _each_value(convert: Convert, values: Sequence[Any]) -> list[Any]:
    return [value if value is None else convert(value) for value in values]


def _shortest(kind: Callable[[float], Any], value: float) -> float:
    """The number that was written as `kind`, of fewer bits: 0.1 for 0.10000000149011612; whole numbers as they are."""
    return value if float(value).is_integer() else float(str(kind(value)))


def _text(value: Any) -> str:
    """A date, a time or a decimal as people write it: 2024-01-05 14:30:00, 0.0000001."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, datetime):
        return value.isoformat(" ")
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _seconds(value: timedelta) -> str:
    """With its unit, since 2:00:00 would be a time of day."""
    seconds = Decimal(value // timedelta(microseconds=1)) / 10**6
    return f"{seconds.normalize():f} seconds"


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
