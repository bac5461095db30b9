"""Files that are whole or not there, and JSON lines with errors that name the line."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import IO, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mind.errors import MindError

T = TypeVar("T")


def cache_folder() -> Path:
    """Where converted models and encoder features are kept: $MIND_CACHE, else ~/.cache/mind-kernels."""
    return Path(os.environ.get("MIND_CACHE") or Path.home() / ".cache" / "mind-kernels")


@contextmanager
def replacing_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to; what stood at `path` is replaced by it at once when the block ends, not after an error."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    """`replacing_file`, opened as UTF-8 text."""
    # Lone surrogates, which json.dumps escapes and HTML cannot hold, become character references.
    with replacing_file(path) as partial, partial.open("w", encoding="utf-8", errors="xmlcharrefreplace") as file:
        yield file


def new_file(name: str | os.PathLike[str]) -> Path:
    """The path of a file that is to be written; raises MindError where it exists or its folder does not."""
    file = Path(name)
    if file.exists():
        raise MindError(f"{file}: exists already; name another --output")
    if not file.parent.is_dir():
        raise MindError(f"{file.parent}: no such folder")
    return file


def json_objects(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each JSON object of a file of them, one a line, with its "path:line"; blank lines are left out.

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


def parse_object(where: str, text: bytes) -> dict[str, Any]:
    """The JSON object that `text` is; raises MindError that begins with `where`."""
    try:
        record = json.loads(text.decode("utf-8").rstrip())
    except UnicodeDecodeError:
        raise MindError(f"{where}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise MindError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets nested as deep
        raise MindError(f"{where}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise MindError(f"{where}: expected a JSON object, not {type(record).__name__}")
    return record


def record_of(kind: type[T], where: str, record: Mapping[str, Any]) -> T:
    """The dataclass `kind` with the fields of `record`; other keys are left out.

    Raises MindError that begins with `where` for a missing field, one of another type, and one that is none of the
    values of its Literal.
    """
    values = {}
    for name, types, allowed, required in _fields(kind):
        if name in record:
            values[name] = value = checked(where, name, record[name], types)
            if allowed and value not in allowed:
                raise MindError(f'{where}: "{name}" is {json.dumps(value):.60}: expected one of {", ".join(allowed)}')
        elif required:
            raise MindError(f'{where}: the record has no "{name}"')
    return kind(**values)


def checked(where: str, name: str, value: Any, types: tuple[type, ...]) -> Any:
    """`value`; raises MindError where it is none of `types`."""
    if isinstance(value, types) and (not isinstance(value, bool) or bool in types):
        return value
    expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
    raise MindError(f'{where}: "{name}" is {json.dumps(value):.60}: expected {expected}')


def json_types(hint: Any) -> tuple[type, ...]:
    """The Python types of the JSON values that a field of type `hint` takes."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(dict.fromkeys(kind for part in get_args(hint) for kind in json_types(part)))
    if get_origin(hint) is Literal:
        return tuple({type(value) for value in get_args(hint)})
    kind = get_origin(hint) or hint
    return {float: (float, int), tuple: (list,)}.get(kind, (kind,))  # 1.0 may stand as 1


@functools.cache
def _fields(kind: type) -> list[tuple[str, tuple[type, ...], tuple[str, ...], bool]]:
    """Name, types of the JSON value, the texts that a Literal allows, and whether it must be there."""
    hints = get_type_hints(kind)
    return [
        (
            item.name,
            json_types(hints[item.name]),
            get_args(hints[item.name]) if get_origin(hints[item.name]) is Literal else (),
            is_required(item),
        )
        for item in dataclasses.fields(kind)
    ]


def is_required(item: dataclasses.Field) -> bool:
    """Whether a field of a dataclass has no default."""
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
