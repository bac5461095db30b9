"""`mind compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mind.cli.terminal import note, print_table, say
from mind.errors import require

MOST_DRAWS = 1_000_000
LONG = ("bootstrap", "p")
"""Columns that are too wide for a terminal."""


@dataclass(frozen=True)
class Compare:
    """Say which methods of an experiment are better, how certain that is, and what may be claimed.

    Reads the folder of `mind experiment`, finished or not, and writes comparison.json, comparison.md and
    comparison.html into it.
    """

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the experiment."""
    reference: str | None = None
    """Label of the method that the claims are about. None: the plan's, else mind."""
    baselines: tuple[str, ...] | None = None
    """Labels of the methods that it should beat. None: the plan's."""
    draws: int = 10_000
    """Number of resamples of the bootstrap."""
    seed: int = 0
    """Seed of the bootstrap."""

    def __post_init__(self) -> None:
        require(100 <= self.draws <= MOST_DRAWS, f"draws is {self.draws}: expected 100 to {MOST_DRAWS:,}")
        require(self.seed >= 0, f"seed is {self.seed}: expected at least 0")


def compare_command(options: Compare) -> None:
    from mind.cli.folders import check_kind

    check_kind(options.folder, "an experiment")
    note("loading NumPy and matplotlib")
    from mind.comparison.tables import accuracy_table, difference_tables
    from mind.comparison.wording import notes, sentences
    from mind.comparison.write import NAME, write_comparison

    folder = Path(options.folder)
    comparison = write_comparison(folder, options.reference, options.baselines, draws=options.draws, seed=options.seed)
    for table in (accuracy_table(comparison), next(difference_tables(comparison))):
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        print_table(table.title, [{name: row[name] for name in row if name not in LONG} for row in rows])
    for text in (*notes(comparison), *sentences(comparison)):
        say(text)
    say(f"{folder / NAME}.html, .md, .json: the comparison")
