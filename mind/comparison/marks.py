"""The scores of a method's runs on each question: the numbers that all statistics of a comparison start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Marks:
    """The runs of one method on one or several evaluation sets, which have equal weight whatever their sizes."""

    sets: Sequence[np.ndarray]
    """Per set (S, N): one row per run, one column per question, numbers from 0 (wrong) to 1 (right). Row s of all sets
    belongs to the same run."""
    trained: bool = True
    """False for the untrained student, which has no seed."""

    @property
    def seeds(self) -> int:
        """Number of runs."""
        return len(self.sets[0])

    @cached_property
    def by_seed(self) -> np.ndarray:  # (S,)
        """The accuracy of each run: the mean over the sets."""
        return np.mean([marks.mean(1) for marks in self.sets], axis=0)

    @cached_property
    def by_question(self) -> list[np.ndarray]:  # (N,) each
        """Per set, the share of the runs that answered each question correctly."""
        return [marks.mean(0) for marks in self.sets]

    @property
    def accuracy(self) -> float:
        """The mean over runs and sets."""
        return float(self.by_seed.mean())
