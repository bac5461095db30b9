"""Describes a stage of training that comes before a method's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Stage:
    """A stage as `Method.stages` returns it: a run of its own in the folder RUN/stages/1-NAME, with a new optimizer."""

    method: str
    """The method or preset that trains in it."""
    name: str = ""
    """The name of its folder; empty: the name of its method."""
    settings: str = ""
    """The key of its settings in `MindConfig.stages`, which several stages may share; empty: `name`."""
    learning_rate: float | None = None
    """The default of its learning rate; None: the default of its method."""
    begins_with: Literal["former", "base"] = "former"
    """The student it starts with: that of the stage before it, or `student.model`. The first stage always starts with
    `student.model`."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Options of the run that this stage changes, nested as in config.json. They may not be evaluation options, which
    all stages share."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.method)
        object.__setattr__(self, "settings", self.settings or self.name)
