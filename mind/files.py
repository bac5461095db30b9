"""Files that are whole or not there, and JSON lines with errors that name the line.

A row is the JSON object of one line.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mind.errors import MindError


def cache_folder() -> Path:
    """Where converted models and encoder features are kept: $MIND_CACHE, else ~/.cache/mind-kernels."""
    return Path(os.environ.get("MIND_CACHE") or Path.home() / ".cache" / "mind-kernels")


@contextmanager
def naming(path: str | os.PathLike[str], *others: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, what the system says of a file without its name, or of one of the `others`, it says of `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None or error.filename in {str(other) for other in others}:
            error.filename = os.fspath(path)
        raise


@contextmanager
def replacing_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to. The file at `path` is replaced by it in one step when the block ends without an error."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with naming(path, partial):
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """`replacing_file` for a folder: an empty one, which takes the place of `path` when the block ends."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with naming(path, partial):
        partial.mkdir()
        try:
            yield partial
            shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    """`replacing_file`, opened as UTF-8 text."""
    # Lone surrogates, which json.dumps escapes and HTML cannot hold, become character references.
    with replacing_file(path) as partial, partial.open("w", encoding="utf-8", errors="xmlcharrefreplace") as file:
        yield file


def require_name(path: str | os.PathLike[str]) -> None:
    """Raises MindError for a path that no file can have: with a zero byte, or with a lone surrogate."""
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise MindError(f"{os.fspath(path)!r}: no file can have this name")


def new_file(name: str | os.PathLike[str]) -> Path:
    """The path of a file that is to be written; raises MindError if it exists or its folder does not."""
    require_name(name)
    file = Path(name)
    if file.exists():
        raise MindError(f"{file}: exists already; name another --output")
    if not file.parent.is_dir():
        raise MindError(f"{file.parent}: no such folder")
    return file


def json_rows(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a file of JSON lines with its "path:line"; blank lines are skipped.

    Raises MindError for a missing file and, with the line, for what is not UTF-8, not JSON or not an object.
    """
    path = Path(path)
    if not path.is_file():
        raise MindError(f"{path}: no such file")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}:{number}"
                yield where, parse_object(where, line)


def write_json_rows(rows: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Writes `rows` as JSON lines; a file at `path` is replaced in one step or, after an error, left as it was."""
    with replacing(path) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def parse_object(where: str, text: bytes) -> dict[str, Any]:
    """The JSON object that `text` is; raises MindError that begins with `where`."""
    try:
        value = json.loads(text.decode("utf-8").rstrip())
    except UnicodeDecodeError:
        raise MindError(f"{where}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise MindError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets nested as deep
        raise MindError(f"{where}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise MindError(f"{where}: expected a JSON object, not {type(value).__name__}")
    return value
