"""Converts dataclasses to JSON and back, with errors that name the file, the line and the field.

A configuration or a summary is a file with one object, nested like its dataclasses. A record is a row of a file of JSON
lines and is flat: the fields of a NamedTuple field, such as a key, are placed among the others.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from types import UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from mind.errors import MindError, require
from mind.files import parse_json, replacing, require_file

T = TypeVar("T")

_JSON_TYPES = {
    str: "a string",
    float: "a number",
    int: "an integer",
    bool: "true or false",
    dict: "an object",
    tuple: "a list",
    type(None): "null",
}


def save_json(value: Any, path: str | os.PathLike[str]) -> None:
    """Writes `value`, a dataclass, as one indented object."""
    write_json(dataclasses.asdict(value), path)


def write_json(value: Any, path: str | os.PathLike[str]) -> None:
    """Replaces the file in one step by `value` as indented JSON; `value` is anything that json.dumps accepts."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=2) + "\n")


def load_json(path: str | os.PathLike[str], kind: type[T]) -> T:
    """Reads a dataclass of class `kind` that `save_json` wrote; fields with a default may be left out.

    Raises MindError as `read_json`, and for a field that is unknown, missing, or has another type or a value that the
    dataclass refuses.
    """
    return build(kind, read_json(path), str(path))


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file; raises MindError for a path that is not a file, and as `mind.files.parse_json`."""
    return parse_json(str(path), require_file(path).read_bytes())


def overlaid(values: Any, others: Any) -> Any:
    """`values` overridden by `others`; objects are merged field by field."""
    if not isinstance(values, dict) or not isinstance(others, dict):
        return others
    return values | {name: overlaid(values.get(name), value) for name, value in others.items()}


def build(kind: type[T], values: Any, where: str, section: str = "") -> T:
    """A dataclass of class `kind` made from JSON `values`; raises a MindError that begins with `where`, as
    `load_json`. `section` names the part of `where` that the values are."""
    place = f"{where}: {section}" if section else where
    require(isinstance(values, dict), f"{place}: expected a JSON object, found {described(values)}")
    fields = _fields(kind)
    names = [field.json_name for field in fields]
    unknown = sorted(values.keys() - names)
    require(not unknown, f"{place}: unknown field {', '.join(unknown)}: the fields are {', '.join(names)}")
    built = {}
    for field in fields:
        if not field.is_in(values, place):
            continue
        value, inner = values[field.json_name], f"{section}: {field.name}" if section else field.name
        if field.part is not None:
            built[field.name] = build(field.part, value, where, inner)
        elif field.parts is not None and isinstance(value, dict):
            built[field.name] = {
                name: build(field.parts, item, where, f"{inner}.{name}") for name, item in value.items()
            }
        else:
            built[field.name] = field.checked(value, place)
    try:
        return kind(**built)
    except MindError as error:  # which names the section itself
        raise MindError(f"{where}: {error}") from None


def row_of(record: Any) -> dict[str, Any]:
    """The flat JSON object of `record`, a dataclass or NamedTuple; fields at their defaults are left out."""
    row = {}
    for field in _fields(type(record)):
        value = getattr(record, field.name)
        if field.part is not None:
            row |= row_of(value)
        elif field.required or value != field.default:
            row[field.json_name] = value
    return row


def record_of(kind: type[T], where: str, row: Mapping[str, Any]) -> T:
    """The dataclass or NamedTuple of class `kind` in the flat JSON object `row`; other names in it are ignored.

    Raises a MindError that begins with `where` ("path:line") for a field that is missing or has another type.
    """
    values = {}
    for field in _fields(kind):
        value = row.get(field.json_name, MISSING)
        if type(value) in field.plain:  # true for most values, and a journal has many rows
            values[field.name] = value
        elif field.part is not None:
            values[field.name] = record_of(field.part, where, row)
        elif field.is_in(row, where):
            values[field.name] = field.checked(value, where)
    return kind(**values)


def described(value: Any) -> str:
    """`value` as an error shows it: as JSON, shortened; with its type if JSON has no such value."""
    return f"{json.dumps(value, default=lambda other: f'{type(other).__name__} {other}'):.60}"


def check_fields(section: str, record: Any) -> None:
    """Checks a dataclass in its `__post_init__`; its lists become tuples, and its paths become texts.

    Raises MindError for a value of another type than its field's or outside its Literal, for a number that is nan or
    infinite, for an integer of more than 64 bits, and for a blank text: "SECTION.FIELD is VALUE: expected ...".
    """
    for field in _fields(type(record)):
        value = _frozen(getattr(record, field.name))
        name = f"{section}.{field.name}" if section else field.name
        if field.part is not None:
            require(isinstance(value, field.part), f"{name} is {value!r:.60}: expected a {field.part.__name__}")
            continue
        fault = _fault(field.hint, value) or next(filter(None, map(_unusable, _leaves(value))), None)
        if fault is not None:
            verb = "is" if fault.value is value else "holds"
            raise MindError(f"{name} {verb} {fault.value!r:.60}: expected {fault.expected}")
        object.__setattr__(record, field.name, value)


BOUNDS: dict[str, Callable[[Any], bool]] = {
    "a number >= 0": lambda value: value >= 0,
    "a positive number": lambda value: value > 0,
    "a number in [0, 1]": lambda value: 0 <= value <= 1,
    "a number in [0, 1)": lambda value: 0 <= value < 1,
    "a number in (0, 1]": lambda value: 0 < value <= 1,
    "a number in (0, 1)": lambda value: 0 < value < 1,
    "a probability in [0, 1]": lambda value: 0 <= value <= 1,
    "at least 0": lambda value: value >= 0,
    "at least 1": lambda value: value >= 1,
    "at least 2": lambda value: value >= 2,
    "1 to 10,000": lambda value: 1 <= value <= 10_000,
    "1 to 1,000,000": lambda value: 1 <= value <= 1_000_000,
    "2 to 1,000,000": lambda value: 2 <= value <= 1_000_000,
    "0 to 1,000,000": lambda value: 0 <= value <= 1_000_000,
    "None or at least 1": lambda value: value >= 1,
    "None or a probability in (0, 1)": lambda value: 0 < value < 1,
    "a positive number, or null": lambda value: value > 0,
}
"""Bounds of numbers, named as errors name them. Whether None is allowed follows from the field's type."""


def check_bounds(section: str, record: Any, expected: Mapping[str, str]) -> None:
    """Raises MindError for a field of `record`, a dataclass, that violates its bound; `expected` maps names of fields
    to keys of BOUNDS."""
    for name, bound in expected.items():
        value = getattr(record, name)
        place = f"{section}.{name}" if section else name
        require(value is None or BOUNDS[bound](value), f"{place} is {value}: expected {bound}")


class _Fault(NamedTuple):
    """A value, or an item of it, that a field cannot hold."""

    value: Any
    expected: str


@dataclass(frozen=True)
class _Field:
    """A field of a dataclass or a NamedTuple, and the JSON values that it accepts."""

    name: str
    json_name: str
    default: Any
    """MISSING if there is none, or if each object gets a new default."""
    required: bool
    hint: Any
    part: type | None
    """The class of the field if it is a dataclass or a NamedTuple."""
    parts: type | None
    """The class of the values if the field is a dictionary of them."""
    plain: frozenset[type]
    """Python types of JSON values that need no further check."""

    def is_in(self, values: Mapping[str, Any], where: str) -> bool:
        """Whether `values` has the field; raises MindError if it is missing and required."""
        if self.json_name in values:
            return True
        require(not self.required, f'{where}: "{self.json_name}" is missing')
        return False

    def checked(self, value: Any, where: str) -> Any:
        """`value`, with tuples for lists; raises MindError if the field cannot hold it."""
        if fault := _fault(self.hint, value):
            verb = "is" if fault.value is value else "holds"
            raise MindError(f'{where}: "{self.json_name}" {verb} {described(fault.value)}: expected {fault.expected}')
        return _frozen(value)


@functools.cache
def _fields(kind: type) -> tuple[_Field, ...]:
    hints, json_names = get_type_hints(kind), getattr(kind, "JSON_NAMES", {})
    fields = []
    for name, default, required in _defaults(kind):
        hint = hints[name]
        part, parts = (kind if isinstance(kind, type) and _has_fields(kind) else None for kind in (hint, _item(hint)))
        alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        plain = frozenset(kind for kind in alternatives if kind in (str, int, float, bool, type(None)))
        fields.append(_Field(name, json_names.get(name, name), default, required, hint, part, parts, plain))
    return tuple(fields)


def _item(hint: Any) -> Any:
    """The type of the values if `hint` is a dictionary type; None for other types."""
    return get_args(hint)[1] if get_origin(hint) is dict else None


def _has_fields(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")


def _defaults(kind: Any) -> list[tuple[str, Any, bool]]:
    """For each field its name, its default (MISSING without one), and whether it must be given."""
    if dataclasses.is_dataclass(kind):
        return [
            (field.name, field.default, field.default is field.default_factory is MISSING)
            for field in dataclasses.fields(kind)
        ]
    return [(name, kind._field_defaults.get(name, MISSING), name not in kind._field_defaults) for name in kind._fields]


def _fault(hint: Any, value: Any) -> _Fault | None:
    """The part of a JSON value that is not of type `hint`: the value or an item of it; None if there is none."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        faults = [_fault(alternative, value) for alternative in arguments]
        if None in faults:
            return None
        within = (fault for fault in faults if fault is not None and fault.value is not value)
        return next(within, _Fault(value, " or ".join(fault.expected for fault in faults if fault is not None)))
    if kind is Literal:
        matches = any(value == allowed and type(value) is type(allowed) for allowed in arguments)
        return None if matches else _Fault(value, f"one of {', '.join(map(str, arguments))}")
    if kind is float and type(value) is int:  # 1.0 may be written as 1
        return None if abs(value) <= sys.float_info.max else _Fault(value, f"a number below {sys.float_info.max:.2g}")
    if kind is dict and isinstance(value, dict):
        items = [(arguments[1], item) for item in value.values()] if arguments else []
    elif kind is tuple and isinstance(value, list | tuple):
        if ... not in arguments and len(value) != len(arguments):
            return _Fault(value, f"a list of {len(arguments)}")
        items = [(arguments[0] if ... in arguments else arguments[n], item) for n, item in enumerate(value)]
    elif not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return _Fault(value, _JSON_TYPES.get(kind) or f"a {kind.__name__}")
    else:
        return None
    return next(filter(None, (_fault(item_hint, item) for item_hint, item in items)), None)


def _leaves(value: Any) -> Iterator[Any]:
    """The texts and numbers in nested lists and objects."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _unusable(value: Any) -> _Fault | None:
    if isinstance(value, float) and not math.isfinite(value):
        return _Fault(value, "a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # compiled code accepts no larger one
        return _Fault(value, "an integer of at most 64 bits")
    return _Fault(value, "a text that is not blank") if isinstance(value, str) and not value.strip() else None


def _frozen(value: Any) -> Any:
    """Converts lists to tuples, and paths to texts."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
