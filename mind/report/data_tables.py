"""The numbers behind a picture as a table of texts, for those who cannot see it or want to read a value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mind.report.reading import bin_ends, binned
from mind.report.tables import NOTHING

ROWS = 12
"""Of a series, at most: means of equal runs of steps, as the picture of a long run draws them."""


@dataclass(frozen=True)
class DataTable:
    """Texts in rows; the first column names the row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]] = field(default_factory=list)


def series_table(
    steps: np.ndarray,
    lines: Sequence[tuple[str, np.ndarray]],
    epochs: np.ndarray | None = None,
    before: Sequence[tuple[str, np.ndarray]] = (),
) -> DataTable:
    """Series by step, each (name, value per step), below those of a warm-up, each (name, value per epoch)."""
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
    """Four digits, as in "0.01782"; a dash for nan."""
    return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else NOTHING
