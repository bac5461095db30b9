"""Reads the metrics of a run as series and numbers; errors name the line of the file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mind.display import number_of
from mind.errors import MindError
from mind.run_folder import RunFolder, metric_rows

FORWARD_SHARE = 1 / 3  # of the cost of a token with a backward pass, which costs as much as two forward passes
SAVINGS = ("padded", "packed", "shared")
"""The counts of tokens (mind/run/work.py) that a step without some savings would have computed."""


@dataclass(frozen=True)
class Work:
    """Tokens of the trunk that a run computed, and that it would have computed without some savings: sums of
    step_work."""

    padded: int
    packed: int
    shared: int
    trained: int
    observed: int

    def of_naive(self, trained: int, observed: int = 0) -> float:
        """The cost of `trained` tokens with a backward pass and `observed` ones without, as a share of the naive
        run's."""
        return (trained + FORWARD_SHARE * observed) / self.padded


class Metrics:
    """metrics.jsonl as series. A missing or null number is nan; so is one that is not finite, with a note about it."""

    def __init__(self, path: Path, earlier: Sequence[Metrics] = ()):
        """`earlier` are the metrics of the stages before, which count only in `total` and `work`."""
        self.path, self.earlier = path, earlier
        self.notes: dict[str, str] = {}  # one note per topic
        self.warmup: list[tuple[int, dict]] = []  # (line number, record)
        by_step: dict[float, tuple[int, dict]] = {}
        repeated = 0
        for line, record in metric_rows(path):
            if record is None:
                self.notes["last"] = f"{path.name}, line {line}: last line incomplete, left out"
                continue
            if record["phase"] == "warmup":
                self.warmup.append((line, record))
                continue
            step = float(record["step"])
            repeated += step in by_step
            by_step[step] = (line, record)
        if not by_step:
            raise MindError(f"{path}: no train lines, so there is nothing to report")
        if repeated:
            self.notes["repeated"] = (
                f"{path.name}: {number_of(repeated, 'repeated step')} (a resumed run), of which the later counts"
            )
        self.train = [by_step[step] for step in sorted(by_step)]
        self.steps = self.series("step")

    @classmethod
    def of(cls, folder: RunFolder) -> Metrics:
        """The metrics of a run, with those of its earlier stages."""
        return cls(folder.metrics, [cls(stage.metrics) for stage in folder.stages])

    def _number(self, line: int, name: str, value: object) -> float:
        if value is None:
            return math.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise MindError(f"{self.path}, line {line}: {name} is {value!r}, expected a number")
        if not math.isfinite(value):
            self.notes.setdefault(name, f"{self.path.name}, line {line}: {name} is not finite, and left out")
            return math.nan
        return float(value)

    def _mapping(self, line: int, record: dict, name: str, by: str = "perspective") -> dict:
        value = record.get(name) or {}
        if not isinstance(value, dict):
            raise MindError(f"{self.path}, line {line}: {name} is {value!r}, expected an object by {by}")
        return value

    def series(self, name: str, phase: str = "train") -> np.ndarray:
        """The number `name` of each line of a phase, "train" or "warmup", in the order of its steps; float64."""
        # A line of the warm-up without an epoch tells its work alone.
        records = self.train if phase == "train" else [(line, row) for line, row in self.warmup if "epoch" in row]
        return np.array([self._number(line, name, record.get(name)) for line, record in records])

    def by_perspective(self, name: str, perspectives: list[str]) -> list[np.ndarray]:
        """The object `name` of the training steps: one series per perspective, in the form of `series`."""
        rows = [(line, self._mapping(line, record, name)) for line, record in self.train]
        return [np.array([self._number(line, name, row.get(key)) for line, row in rows]) for key in perspectives]

    def total(self, name: str) -> float:
        """The sum of the number `name` over the steps of all stages."""
        return float(self.series(name).sum()) + sum(stage.total(name) for stage in self.earlier)

    def work(self) -> Work | None:
        """The sums over the steps of all stages; None if no step has any, as in runs of older versions."""
        works = [self._own_work(), *(stage.work() for stage in self.earlier)]
        known = [astuple(work) for work in works if work is not None]
        return Work(*map(sum, zip(*known, strict=True))) if known else None

    def _own_work(self) -> Work | None:
        """The sums over the steps that have all of them; None if no step has."""
        rows = [(line, self._mapping(line, record, "work", by="kind of token")) for line, record in self.train]
        kinds = [field.name for field in fields(Work)]
        counts = np.array([[self._number(line, f"work.{kind}", row.get(kind)) for kind in kinds] for line, row in rows])
        known = counts[(counts[:, 0] > 0) & ~np.isnan(counts).any(1)]
        if not len(known):
            return None
        if len(known) < len(counts):
            self.notes["work"] = (
                f"{self.path.name}: {number_of(len(counts) - len(known), 'line')} without work left out"
            )
        return Work(*(int(total) for total in known.sum(0)))

    def counted(self) -> dict[str, int]:
        """Tokens of all stages by kind (mind/run/work.py), including those before the first steps."""
        totals = sum((Counter(stage.counted()) for stage in self.earlier), Counter[str]())
        for line, record in (*self.warmup, *self.train):
            for kind, value in self._mapping(line, record, "work", by="kind of token").items():
                tokens = self._number(line, f"work.{kind}", value)
                totals[kind] += 0 if math.isnan(tokens) else int(tokens)
        return dict(totals)

    def perspectives(self, names: Sequence[str]) -> list[str]:
        """The keys of the objects with these names, in order of appearance."""
        return list(dict.fromkeys(k for line, r in self.train for n in names for k in self._mapping(line, r, n)))


def value_at(tree: object, *keys: str) -> Any:
    """tree[keys[0]][keys[1]]...; None if a key is missing, or a value on the way is not an object."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def number_at(tree: object, *keys: str) -> float | None:
    """`value_at`, if it is a finite number; else None."""
    value = value_at(tree, *keys)
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values at each place, without nan (nan if there are none)."""
    sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(values))])
    counts = np.concatenate([[0], np.cumsum(~np.isnan(values))])
    start = np.maximum(np.arange(len(values)) + 1 - window, 0)
    count = counts[1:] - counts[start]
    return np.where(count > 0, (sums[1:] - sums[start]) / np.maximum(count, 1), np.nan)


def binned(values: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` means of equal consecutive bins, without nan."""
    size = math.ceil(len(values) / limit)
    return np.array([running_mean(values[max(0, end - size) : end], size)[-1] for end in bin_ends(len(values), limit)])


def bin_ends(count: int, limit: int) -> list[int]:
    """The ends of at most `limit` equal consecutive bins; the last bin may be shorter."""
    size = math.ceil(count / limit)
    return [*range(size, count, size), count]
