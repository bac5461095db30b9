"""What `mind filter` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from mind.curation.filter import FilterConfig
from mind.errors import require


@dataclass(frozen=True)
class FilterOptions:
    """Choose the rationales to train on from a judged data set."""

    folder: Annotated[str, tyro.conf.Positional]
    """What `mind generate` and `mind judge` wrote."""
    output: str
    """The records to train on, .jsonl or .parquet; it must not exist. Beside it and named after it: .report.html,
    .card.json, .card.md (a dataset card for the Hub) and .dropped.jsonl."""
    filter: tyro.conf.OmitArgPrefixes[FilterConfig] = field(default_factory=FilterConfig)
    student_grades: str | None = None
    """A file that `mind grade` wrote of a student's answers to the questions: its pass rates, in place of the
    teacher's, decide which are easy."""
    license: str | None = None
    """Of this data set, for its card."""
    source_licenses: str | None = None
    """Of the questions."""

    def __post_init__(self) -> None:
        require(
            Path(self.output).suffix in (".jsonl", ".parquet"),
            f"--output {self.output}: expected a name that ends in .jsonl or .parquet",
        )
