"""What the runs of a method scored on each question: the numbers that all statistics of a comparison start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Marks:
    """The runs of one method on one or several evaluation sets, which count alike, whatever their sizes."""

    sets: Sequence[np.ndarray]
    """Of each set (S, N): a row per run, a column per question, numbers from 0 (wrong) to 1 (right). Row s of all sets
    is the same run."""
    trained: bool = True
    """False for the student as it was before: it has no seed that could have been another."""

    @property
    def seeds(self) -> int:
        """How many runs there are."""
        return len(self.sets[0])

    @cached_property
    def by_seed(self) -> np.ndarray:  # (S,)
        """The accuracy of each run: the mean over the sets."""
        return np.mean([marks.mean(1) for marks in self.sets], axis=0)

    @cached_property
    def by_question(self) -> list[np.ndarray]:  # (N,) each
        """Of each set the share of the runs that answered each question rightly."""
        return [marks.mean(0) for marks in self.sets]

    @property
    def accuracy(self) -> float:
        """The mean over runs and sets."""
        return float(self.by_seed.mean())
