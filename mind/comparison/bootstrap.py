"""The hierarchical paired bootstrap of a difference, which is shown beside the primary analysis (difference.py).

A draw resamples the questions of each set with replacement, the same ones for both methods, and the seeds of each
method with replacement, the same ones in all sets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mind.comparison.marks import Marks

DRAWS = 10_000
CHUNK_NUMBERS = 1_000_000
"""Number of random numbers in memory at a time."""
ZERO = 1e-12
"""Smaller differences count as ties, which floating-point sums missed."""


@dataclass(frozen=True)
class Bootstrap:
    """Results for the difference ours minus theirs."""

    interval: tuple[float, float]
    """The percentiles 2.5 and 97.5 of the draws."""
    p_ours: float
    """One-sided: the share of the draws in which ours are not better, with 1 added to both counts so that it is never
    0."""
    p: float
    """Two-sided: twice the smaller of the two one-sided p-values."""


def bootstrap(ours: Marks, theirs: Marks, draws: int = DRAWS, seed: int = 0) -> Bootstrap | None:
    """The interval and p-values of the draws; None if no draw differs from another, which shows nothing.

    Args:
        ours: the marks of one method.
        theirs: the marks of another method on the same questions.
        draws: number of draws.
        seed: seed of numpy's default generator. Each draw gets from it the questions, set by set, our seeds and theirs.
    """
    found = _draws(ours, theirs, draws, seed)
    if np.ptp(found) <= ZERO:
        return None
    low, high = np.percentile(found, [2.5, 97.5])
    not_better, not_worse = ((1 + np.count_nonzero(side <= ZERO)) / (1 + draws) for side in (found, -found))
    return Bootstrap((float(low), float(high)), not_better, min(1.0, 2 * min(not_better, not_worse)))


def _draws(ours: Marks, theirs: Marks, draws: int, seed: int) -> np.ndarray:  # (draws,)
    sizes = [table.shape[1] for table in ours.sets] + [ours.seeds, theirs.seeds]
    ends, highs = np.cumsum(sizes), np.repeat(sizes, sizes)
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_NUMBERS // len(highs))
    found = []
    for start in range(0, draws, chunk):
        places = generator.integers(0, highs, (min(chunk, draws - start), len(highs)))
        *questions, our_seeds, their_seeds = map(_weights, np.split(places, ends[:-1], axis=1))
        differences = [
            (our_seeds * (weights @ one.T)).sum(1) - (their_seeds * (weights @ other.T)).sum(1)
            for weights, one, other in zip(questions, ours.sets, theirs.sets, strict=True)
        ]
        found.append(np.mean(differences, axis=0))
    return np.concatenate(found)


def _weights(places: np.ndarray) -> np.ndarray:  # (draws, n), rows that sum to 1
    """How often each of n places occurs in each row of `places` (draws, n), divided by n."""
    rows, size = places.shape
    flat = (places + size * np.arange(rows)[:, None]).ravel()
    return np.bincount(flat, minlength=rows * size).reshape(rows, size) / size
