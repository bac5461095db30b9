"""Converts records to and from flat lists of values, which torch.library operators have as arguments and results.

A record is a NamedTuple or a dataclass whose fields are tensors, numbers, strings, or records themselves. The order of
the fields of a record is the order of an operator's schema, and is defined nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from torch import Tensor

R = TypeVar("R")

_SCHEMA_TYPES = {Tensor: "Tensor", int: "SymInt", float: "float", bool: "bool", str: "str"}


class Layout(Generic[R]):
    """Flattens and restores records of the type `kind`.

    The values of a nested record take its position in the list. If a field may hold one of several types of records
    (`teacher: HeadTeacher | ListTeacher`), each type has its own positions, and those of the other types hold None.

    Attributes:
        leaves: the path of each value in the flat list, such as "head.weight", with its type in an operator's schema.
    """

    def __init__(self, kind: type[R], path: str = "", optional: bool = False) -> None:
        self.kind = kind
        self.leaves: dict[str, str] = {}
        self.optional = optional
        # Name; position in the flat list of a plain value; for a record its possible layouts, with their positions.
        self._fields: list[tuple[str, int, list[tuple[Layout[Any], slice]]]] = []
        for name, hint in get_type_hints(kind).items():
            kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
            maybe = optional or len(kinds) > 1
            self._fields.append((name, len(self.leaves), layouts := []))
            for each in kinds:
                if each in _SCHEMA_TYPES:
                    self.leaves[path + name] = _SCHEMA_TYPES[each] + "?" * maybe
                elif each is not NoneType:
                    layout = Layout(each, f"{path}{name}.", maybe)
                    layouts.append((layout, slice(len(self.leaves), len(self.leaves) + len(layout.leaves))))
                    self.leaves |= layout.leaves

    def flatten(self, record: R) -> list[Any]:
        """The values of the record, in the order of `leaves`."""
        flat: list[Any] = []
        for name, _, layouts in self._fields:
            value = getattr(record, name)
            if not layouts:
                flat.append(value)
            for layout, _ in layouts:
                flat += layout.flatten(value) if isinstance(value, layout.kind) else [None] * len(layout.leaves)
        return flat

    def restore(self, flat: Sequence[Any]) -> R:
        """The record for which `flatten` returns these values; further values after them are ignored."""
        return self.kind(*[_record(flat, layouts) if layouts else flat[place] for _, place, layouts in self._fields])


def _record(flat: Sequence[Any], layouts: list[tuple[Layout[Any], slice]]) -> Any:
    """The record in one of these layouts; None if there is none."""
    for layout, places in layouts:
        values = flat[places]
        # The first value of an optional record is a required tensor, so None means that the record is absent.
        if not layout.optional or values[0] is not None:
            return layout.restore(values)
    return None
