"""Reads the rows of files: JSON lines, JSON, CSV and Parquet, each row with its place in the file.

We do not use `datasets` for this, because it guesses types: it turns texts into dates, and 1 into 1.0 if another row
has 1.5.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from mind.data.parquet import parquet_rows
from mind.data.problems import Problems
from mind.errors import MindError
from mind.files import check_is_text, parse_json, parse_object, read_text, require_file
from mind.progress import Progress
from mind.typed_json import record_of

T = TypeVar("T")

Rows = Iterator[tuple[str, Mapping[str, Any]]]
"""Each row as a JSON object, with its "path:line" or, in a format without lines, "path: row n", n from 0."""

_CSV_REMEDIES = {
    "unexpected end": ": the text lacks its closing quote",
    "expected after": ': write a quote within a text twice: ""',
}
"""What to do about a message of the csv module, which names no remedy."""
_MOST_OF_A_CELL = 2**30
"""Characters that a cell of CSV may have. The default of the csv module, 131,072, is less than some texts have."""


def file_rows(path: str | os.PathLike[str], problems: Problems) -> Rows:
    """The rows of a file, whose format follows from the ending of its name; unknown endings mean JSON lines.

    A row that cannot be read is recorded in `problems`. Raises MindError for faults of the file as a whole.
    """
    return READERS.get(Path(path).suffix.lower(), _json_rows)(path, problems)


def keyed_records(kind: type[T], path: str | os.PathLike[str]) -> Iterator[T]:
    """The records of class `kind` in a file, as `mind.typed_json.row_of` wrote them; each has a unique `key`.

    Raises MindError as `file_rows` and, at the end, FaultyRowsError with all rows that are not such records or repeat a
    key.
    """
    problems = Problems(path)
    places: dict[Any, str] = {}
    for where, row in file_rows(path, problems):
        record: Any = problems.attempt(where, record_of, kind, where, row)
        if record is None:
            continue
        if record.key in places:
            problems.note(where, f"{record.key} is also on line {places[record.key].rpartition(':')[2]}")
        else:
            places[record.key] = where
            yield record
    problems.check(list(places))


def _json_rows(path: str | os.PathLike[str], problems: Problems) -> Rows:
    """The objects of a JSON list, or of a file of JSON lines."""
    with require_file(path).open("rb") as file:
        begin = file.read(1024)
        check_is_text(str(path), begin)
        begin = begin.removeprefix(codecs.BOM_UTF8).lstrip()
        file.seek(0)
        yield from (_listed_rows if begin.startswith(b"[") else _lines)(path, file, problems)


def _listed_rows(path: str | os.PathLike[str], file: io.BufferedIOBase, problems: Problems) -> Rows:
    text = file.read()
    try:
        rows = parse_json(str(path), text)
    except MindError as error:
        raise MindError(_with_remedy(str(error), text)) from None
    for number, row in enumerate(rows):
        where = f"{path}: row {number}"
        if isinstance(row, dict):
            yield where, row
        else:
            problems.note(where, f"expected a JSON object, not {type(row).__name__}")


def _lines(path: str | os.PathLike[str], file: io.BufferedIOBase, problems: Problems) -> Rows:
    first, read, size = True, 0, os.fstat(file.fileno()).st_size
    # the bar covers the caller's work on each row, too
    with Progress(f"rows of {path}", _kilobytes(size), "kilobyte", late=True) if size else nullcontext() as bar:
        for number, line in enumerate(file, start=1):
            where, text = f"{path}:{number}", line.removeprefix(codecs.BOM_UTF8).strip()
            if first and text == b"{":
                raise MindError(
                    f"{where}: an object continues on the next line: write each object on a line of its own"
                )
            first = first and not text
            if text and (row := problems.attempt(where, _object, where, line)) is not None:
                yield where, row
            read += len(line)
            if bar is not None:
                bar.reach(_kilobytes(read))


def _kilobytes(size: int) -> int:
    """Rounded up, so that a small file is not "0 of 0"."""
    return -(-size // 1024)


def _object(where: str, line: bytes) -> dict[str, Any]:
    try:
        return parse_object(where, line)
    except MindError as error:
        raise MindError(_with_remedy(str(error), line)) from None


def _csv_rows(path: str | os.PathLike[str], problems: Problems) -> Rows:
    """An empty cell counts as a missing field, since CSV has no other way to say so."""
    text = read_text(path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise MindError(f"{path}:{line}: holds the character NUL, which no text has: take it out")
    first, _, _ = text.partition("\n")
    if "," not in first and (other := next((sign for sign in ";\t|" if sign in first), None)):
        raise MindError(f"{path}: its columns are separated by {json.dumps(other)}: expected commas")
    rows = _cells(path, text)
    _, header = next(rows, (0, []))
    header = [name.strip() for name in header]
    if len(set(header)) < len(header):
        raise MindError(f"{path}: two columns have the same name: {', '.join(header):.500}")
    line = 0
    for line, row in rows:
        where = f"{path}:{line}"
        if len(row) == len(header):
            yield where, {name: cell for name, cell in zip(header, row, strict=True) if cell}
        else:
            problems.note(where, f"{len(row)} values for the {len(header)} columns {', '.join(header):.500}")
    if any(header) and not line:
        raise MindError(f"{path}: no row follows the first, which names the columns: {', '.join(header):.500}")


def _cells(path: str | os.PathLike[str], text: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row that has any, with the line on which the row begins."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    while True:
        line = rows.line_num + 1
        limit = csv.field_size_limit(_MOST_OF_A_CELL)  # a setting of the whole process, which is not ours to keep
        try:
            row = next(rows, None)
        except csv.Error as error:
            remedy = next((remedy for what, remedy in _CSV_REMEDIES.items() if what in str(error)), "")
            raise MindError(f"{path}:{line}: not CSV: {error}{remedy}") from None
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        if row:
            yield line, row


def _parquet_rows(path: str | os.PathLike[str], problems: Problems) -> Rows:
    return parquet_rows(path)


READERS: dict[str, Callable[[str | os.PathLike[str], Problems], Rows]] = {
    ".jsonl": _json_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
"""Reader by the ending of a file's name."""

_WORDS = {"True": "true", "False": "false", "None": "null"}
_NUMBER = re.compile(r"[-+]?\.?[0-9]")


def _with_remedy(message: str, text: bytes) -> str:
    """`message`, which says why `text` is not JSON, with what to write instead if that is known."""
    try:
        json.loads(text.decode("utf-8-sig").rstrip())
    except json.JSONDecodeError as error:
        remedy = _remedy(error)
        return f"{message}: {remedy}" if remedy else message
    except (ValueError, RecursionError):
        pass  # not a fault of notation; the message says everything
    return message


def _remedy(error: json.JSONDecodeError) -> str | None:
    before, rest = error.doc[: error.pos].rstrip(), error.doc[error.pos :].strip()
    if "escape" in error.msg:
        word = "".join(rest[1:8].split()[:1])
        return f"write each backslash within a text twice, as in {json.dumps(rest[:1] + word)[1:-1]}"
    if error.msg == "Extra data":
        return "take out the comma at the end" if rest == "," else "write one object per line"
    if error.msg.startswith("Unterminated string"):
        return "the text lacks its closing quote, or has a line break that is not written as \\n"
    if error.msg.startswith("Invalid control character"):
        return "write a tab within a text as \\t, a line break as \\n"
    if rest[:1] in ("'", "\u2018", "\u201c", "\u201d"):
        return 'write straight double quotes: "'
    if before.endswith(",") and rest[:1] in ("}", "]"):
        return f"take out the comma before the {rest[0]}"
    if word := next((word for word in _WORDS if rest.startswith(word)), None):
        return f"write {_WORDS[word]} for {word}"
    if error.msg == "Expecting ',' delimiter":
        if _NUMBER.match(rest) or before[-1:].isdigit():
            return "write a number as 1234.5, or as a text in quotes"
        return 'a comma is missing, or a quote within a text is not written as \\"'
    if rest.startswith(("//", "#")):
        return "JSON has no comments: take it out"
    if error.msg.startswith("Expecting value") and _NUMBER.match(rest):
        return "write a number as 0.5, or as a text in quotes"
    if rest[:1] == "}":
        return "it ends an object that begins above: write each object whole, on its own line"
    if not rest:
        return "it breaks off: write each object whole, on its own line"
    return None
