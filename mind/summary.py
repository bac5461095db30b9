"""The base class of what a command reports when it is done."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Summary:
    """Base class of counts that a command prints as a table and that `mind.typed_json.save_json` writes to a file."""

    def as_rows(self) -> list[dict[str, Any]]:
        """The rows of the table, whose keys are the columns; by default one row per field."""
        return counted({name.replace("_", " "): value for name, value in dataclasses.asdict(self).items()})


def counted(counts: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a table of names and numbers."""
    return [{"what": name, "count": count} for name, count in counts.items()]
