"""Makes a table of the numbers behind a picture, for readers who cannot see it or want a value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mind.report.reading import bin_ends, binned
from mind.report.tables import NOTHING

ROWS = 12
"""Largest number of rows per series: means over equal runs of steps, as in the picture of a long run."""


@dataclass(frozen=True)
class DataTable:
    """A table of texts; the first column names the row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]] = field(default_factory=list)


def series_table(
    steps: np.ndarray,
    lines: Sequence[tuple[str, np.ndarray]],
    epochs: np.ndarray | None = None,
    before: Sequence[tuple[str, np.ndarray]] = (),
) -> DataTable:
    """A table of series by step, each (name, value per step), after the series of a warm-up, each (name, value per
    epoch)."""
    rows = [
        [f"warm-up epoch {epoch:g}", *(number(values[place]) for _, values in before), *[NOTHING] * len(lines)]
        for place, epoch in enumerate(() if epochs is None else epochs)
    ]
    means = [binned(values, ROWS) for _, values in lines]
    start = 0
    for place, end in enumerate(bin_ends(len(steps), ROWS)):
        first, last = steps[start], steps[end - 1]
        name = f"{first:g}" if first == last else f"{first:g} to {last:g}"
        rows.append([name, *[NOTHING] * len(before), *(number(mean[place]) for mean in means)])
        start = end
    return DataTable(["step", *(name for name, _ in (*before, *lines))], rows)


def number(value: float) -> str:
    """The number with four digits, such as "0.01782"; a dash for nan."""
    return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else NOTHING
