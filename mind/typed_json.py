"""Dataclasses as JSON, and back, with errors that name the file, the line and the field.

A configuration or a summary is a file with one object, nested as its dataclasses are. A record is a row of a file of
JSON lines and flat: a field that is a NamedTuple, such as its key, has its own fields beside the others.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mind.errors import MindError, require
from mind.files import replacing

T = TypeVar("T")

_JSON_TYPES = {
    str: "a string",
    float: "a number",
    int: "an integer",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    type(None): "null",
}


def save_json(value: Any, path: str | os.PathLike[str]) -> None:
    """Writes `value`, a dataclass, as one indented object."""
    write_json(dataclasses.asdict(value), path)


def write_json(value: Any, path: str | os.PathLike[str]) -> None:
    """Replaces the file at once by `value`, indented; `value` is what json.dumps takes."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=2) + "\n")


def load_json(path: str | os.PathLike[str], kind: type[T]) -> T:
    """Reads a dataclass of class `kind` that `save_json` wrote; fields with a default may be left out.

    Raises MindError as `read_json`, and for a field that is unknown, missing or of another type.
    """
    return build(kind, read_json(path), str(path))


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value that a JSON file holds; raises MindError for a missing file and for what is not JSON."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise MindError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise MindError(f"{path}: is a folder, not a file") from None
    except json.JSONDecodeError as error:
        raise MindError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise MindError(f"{path}: not JSON: {error}") from None


def overlaid(values: Any, others: Any) -> Any:
    """`values` with those of `others` in their places, objects within objects field by field."""
    if not isinstance(values, dict) or not isinstance(others, dict):
        return others
    return values | {name: overlaid(values.get(name), value) for name, value in others.items()}


def build(kind: type[T], values: Any, where: str) -> T:
    """The dataclass of class `kind` from JSON's `values`; raises MindError that begins with `where`, as `load_json`."""
    require(isinstance(values, dict), f"{where}: expected an object with the fields of {kind.__name__}")
    fields = _fields(kind)
    unknown = sorted(values.keys() - {field.json_name for field in fields})
    require(not unknown, f"{where}: unknown field {', '.join(unknown)}")
    built = {}
    for field in fields:
        if not field.is_in(values, where):
            continue
        value = values[field.json_name]
        if field.part is None:
            built[field.name] = field.checked(value, where)
        else:
            built[field.name] = build(field.part, value, f"{where}: {field.name}")
    return kind(**built)


def row_of(record: Any) -> dict[str, Any]:
    """The flat JSON object of `record`, a dataclass or NamedTuple; a field that has its default is left out."""
    row = {}
    for field in _fields(type(record)):
        value = getattr(record, field.name)
        if field.part is not None:
            row |= row_of(value)
        elif field.required or value != field.default:
            row[field.json_name] = value
    return row


def record_of(kind: type[T], where: str, row: Mapping[str, Any]) -> T:
    """The dataclass or NamedTuple of class `kind` whose flat JSON object `row` is; other names in it are ignored.

    Raises MindError that begins with `where` ("path:line") for a field that is missing or of another type.
    """
    values = {}
    for field in _fields(kind):
        value = row.get(field.json_name, MISSING)
        if type(value) in field.plain:  # most are: a journal has many rows
            values[field.name] = value
        elif field.part is not None:
            values[field.name] = record_of(field.part, where, row)
        elif field.is_in(row, where):
            values[field.name] = field.checked(value, where)
    return kind(**values)


def described(value: Any) -> str:
    """`value` as an error shows it: as JSON, and not long."""
    return f"{json.dumps(value, default=str):.60}"


@dataclass(frozen=True)
class _Field:
    """One field of a dataclass or a NamedTuple, and what its JSON value may be."""

    name: str
    json_name: str
    default: Any
    """MISSING without one, and if each object gets a new one."""
    required: bool
    types: tuple[type, ...]
    """Python's types of its JSON value."""
    allowed: tuple[Any, ...]
    """The values of a Literal, else empty."""
    part: type | None
    """The class of the field if that is a dataclass or a NamedTuple."""
    plain: frozenset[type]
    """Python's types of JSON values that need no check but this."""

    def is_in(self, values: Mapping[str, Any], where: str) -> bool:
        """Whether `values` has the field; raises MindError if it has not and needs it."""
        if self.json_name in values:
            return True
        require(not self.required, f'{where}: "{self.json_name}" is missing')
        return False

    def checked(self, value: Any, where: str) -> Any:
        """`value`, with tuples for lists; raises MindError if the field cannot hold it."""
        if not isinstance(value, self.types) or (isinstance(value, bool) and bool not in self.types):
            types = [kind for kind in self.types if kind is not int or float not in self.types]
            expected = " or ".join(_JSON_TYPES[kind] for kind in types)
            raise MindError(f'{where}: "{self.json_name}" is {described(value)}: expected {expected}')
        if self.allowed and value not in self.allowed:
            expected = ", ".join(map(str, self.allowed))
            raise MindError(f'{where}: "{self.json_name}" is {described(value)}: expected one of {expected}')
        return _frozen(value)


@functools.cache
def _fields(kind: type) -> tuple[_Field, ...]:
    hints, json_names = get_type_hints(kind), getattr(kind, "JSON_NAMES", {})
    fields = []
    for name, default, required in _defaults(kind):
        hint = hints[name]
        types, allowed = _json_types(hint), get_args(hint) if get_origin(hint) is Literal else ()
        fields.append(
            _Field(
                name,
                json_names.get(name, name),
                default,
                required,
                types,
                allowed,
                plain=frozenset() if allowed else frozenset(types) - {dict, list},
                part=hint if isinstance(hint, type) and _has_fields(hint) else None,
            )
        )
    return tuple(fields)


def _has_fields(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")


def _defaults(kind: Any) -> list[tuple[str, Any, bool]]:
    """Of each field the name, the default (MISSING without one), and whether it must be given."""
    if dataclasses.is_dataclass(kind):
        return [
            (field.name, field.default, field.default is field.default_factory is MISSING)
            for field in dataclasses.fields(kind)
        ]
    return [(name, kind._field_defaults.get(name, MISSING), name not in kind._field_defaults) for name in kind._fields]


def _json_types(hint: Any) -> tuple[type, ...]:
    """Python's types of the JSON values that a field of type `hint` takes."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(dict.fromkeys(kind for part in get_args(hint) for kind in _json_types(part)))
    if get_origin(hint) is Literal:
        return tuple({type(value) for value in get_args(hint)})
    kind = get_origin(hint) or hint
    return {float: (float, int), tuple: (list,)}.get(kind, (kind,))  # 1.0 may be written as 1


def _frozen(value: Any) -> Any:
    """JSON's lists as tuples."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
