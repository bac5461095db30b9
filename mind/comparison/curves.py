"""Computes training curves: numbers of a method's runs over the cost so far, and their mean."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mind.comparison.reading import Method, Run
from mind.report.reading import SAVINGS, Metrics, number_at

BACKWARD = 3.0
"""The cost of a token with a backward pass relative to one with only a forward pass."""
POINTS = 200


@dataclass(frozen=True)
class Curve:
    """The mean over those runs of a method that have the numbers."""

    label: str
    flops: np.ndarray  # (POINTS,) float64, rising
    values: np.ndarray  # (POINTS,) float64
    runs: int


def curves(methods: Sequence[Method], name: str, scale: float = 1.0) -> list[Curve]:
    """The mean of a number in metrics.jsonl, times `scale`, over the FLOPs so far, for each method that has it.

    Between its logged lines a run's number is interpolated; the mean covers the range that all of the runs cover.
    Raises MindError for a malformed line of metrics.jsonl.
    """
    found = []
    for method in methods:
        series = [pair for run in method.runs if len((pair := _series(run, name))[0])]
        if not series:
            continue
        low, high = max(x[0] for x, _ in series), min(x[-1] for x, _ in series)
        flops = np.linspace(low, max(low, high), POINTS)
        values = np.mean([np.interp(flops, x, y) for x, y in series], axis=0)
        found.append(Curve(method.label, flops, scale * values, len(series)))
    return found


def _series(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """FLOPs so far and the number, for the lines that have it, through all stages; empty if the run lacks either."""
    nothing = np.empty(0), np.empty(0)
    total = run.cost("flops")
    parts = [*run.folder.stages, run.folder]
    if not total or not all(os.path.lexists(part.metrics) for part in parts):
        return nothing
    earlier = [number_at(part.read_status(), "flops") for part in parts[:-1]]
    if None in earlier:
        return nothing
    costs = [cost for cost in earlier if cost is not None]
    costs.append(total - sum(costs))
    places, values, before = [], [], 0.0
    for part, cost in zip(parts, costs, strict=True):
        metrics = Metrics(part.metrics)
        shares = np.cumsum([_weight(record.get("work")) for _, record in metrics.train])
        if not shares[-1]:
            return nothing
        places.append(before + cost * shares / shares[-1])
        values.append(metrics.series(name))
        before += cost
    flops, numbers = np.concatenate(places), np.concatenate(values)
    known = ~np.isnan(numbers)
    return flops[known], numbers[known]


def _weight(work: object) -> float:
    """The cost of the tokens in a line of metrics, in forward passes of a token."""
    if not isinstance(work, Mapping):
        return 0.0
    counts = {kind: number_at(work, kind) or 0.0 for kind in work if kind not in SAVINGS}
    return sum(BACKWARD * count if kind == "trained" else count for kind, count in counts.items())
