"""A stage of training that comes before a method's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Stage:
    """What `Method.stages` returns: a run of its own in the folder RUN/stages/1-NAME, with a new optimizer."""

    method: str
    """The method or preset that trains in it."""
    name: str = ""
    """The name of its folder; by default that of its method."""
    settings: str = ""
    """Its entry in `MindConfig.stages`, by default `name`; several stages may have one in common."""
    learning_rate: float | None = None
    """The default of its learning rate; None: that of its method."""
    begins_with: Literal["former", "base"] = "former"
    """The student of the stage before it, or `student.model`. The first stage begins with `student.model`."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Options of the run that are others in this stage, nested as in config.json."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.method)
        object.__setattr__(self, "settings", self.settings or self.name)
