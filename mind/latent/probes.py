"""Tests whether a linear probe can read the perspective off a vector, and whether it reads the perspective or the
student.

Each student, of one seed and perspective, differs from every other one: training moves all of its hidden states, so a
probe can tell the students of one seed apart whatever they have learned. Therefore there are two probes:

    by question        trained and tested on the same students, on different questions; this effect can fool it.
    of a new student   tested on students of a seed, and on questions, on which it was not trained. It can only read
                       what the students of a perspective share across seeds.

It would be enough to leave out the seed; the questions are left out too. Otherwise a probe could remember the texts if
students of all seeds read the same ones (V2), and a view without seeds (V3) could not be compared at all.

The second probe's answers to the points of one student are right or wrong together, so the number of questions says
little about its uncertainty: the intervals are over perspectives, by Student's t with K - 1 degrees of freedom, and
permutations exchange the perspectives of whole students within each seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t
from sklearn.linear_model import LogisticRegression

from mind.latent.clusters import Estimate, permuted_within
from mind.latent.config import LatentConfig
from mind.latent.preprocessing import centered, components_apart

FOLDS = 5
"""Number of folds over which the questions are distributed in turn."""


@dataclass(frozen=True)
class Probe:
    """A probe's accuracy, and its accuracy by chance (about 1 / K, with the spread of its draws)."""

    accuracy: Estimate
    by_perspective: list[float]
    """The K accuracies, each a mean over seeds and questions."""


@dataclass(frozen=True)
class Difference:
    """The difference of two accuracies, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def positive(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0


def probe_by_question(vectors: np.ndarray, config: LatentConfig) -> Probe:
    """The accuracy on held-out questions of the same students (E, K, N, D) on which the probe is trained, with one
    probe per seed. The interval is a bootstrap over questions; chance permutes the perspectives of each question.

    Needs N >= FOLDS questions. For a view without seeds, E = 1, it equals the other probe.
    """
    seeds, perspectives, questions, _ = vectors.shape
    rng = np.random.default_rng(config.seed)
    folds = list(_folds(centered(vectors), config, new_students=False))
    labels = _by_point(np.tile(np.arange(perspectives), (seeds, 1)), questions)
    right = _right(folds, labels)
    draws = right.mean((0, 1))[rng.integers(questions, size=(config.draws, questions))].mean(1)
    chance = []
    for _ in range(config.permutations):
        permuted = np.stack([permuted_within(perspectives, questions, rng) for _ in range(seeds)])
        chance.append(_right(folds, permuted).mean())
    return _probe(right, np.quantile(draws, (0.025, 0.975)).tolist(), chance)


def probe_new_students(vectors: np.ndarray, config: LatentConfig) -> Probe:
    """The accuracy on students and questions on which the probe is not trained, for vectors (E, K, N, D).

    Needs E >= 2 seeds, each with the same perspectives in the same order, and N >= FOLDS questions. If the vectors only
    identify the student, it is 1 / K on average.
    """
    seeds, perspectives, questions, _ = vectors.shape
    rng = np.random.default_rng(config.seed)
    folds = list(_folds(centered(vectors), config, new_students=True))
    names = np.tile(np.arange(perspectives), (seeds, 1))
    right = _right(folds, _by_point(names, questions))
    each = right.mean((0, 2))
    chance = [
        _right(folds, _by_point(rng.permuted(names, axis=1), questions)).mean() for _ in range(config.permutations)
    ]
    return _probe(right, _interval(each), chance)


def compared(probe: Probe, other: Probe, *, paired: bool) -> Difference:
    """The accuracy of one probe minus that of the other, with a t interval over perspectives.

    Args:
        probe, other: two probes of the same K.
        paired: whether the k-th perspective is the same in both, as in two views. If not, as with experts and null
            experts, the interval is Welch's.
    """
    one, two = np.array(probe.by_perspective), np.array(other.by_perspective)
    count = len(one)
    if paired:
        return Difference(float((one - two).mean()), *_interval(one - two))
    difference, parts = float(one.mean() - two.mean()), (one.var(ddof=1) / count, two.var(ddof=1) / count)
    total = sum(parts)
    if total == 0:
        return Difference(difference, difference, difference)
    freedom = total**2 * (count - 1) / sum(part**2 for part in parts)
    half = float(student_t.ppf(0.975, freedom)) * math.sqrt(total)
    return Difference(difference, difference - half, difference + half)


@dataclass(frozen=True)
class _Fold:
    """Training and test points as principal components, and their places in a table (E, K, N)."""

    train: np.ndarray
    test: np.ndarray
    train_places: np.ndarray
    test_places: np.ndarray


def _folds(vectors: np.ndarray, config: LatentConfig, *, new_students: bool) -> Iterator[_Fold]:
    seeds, perspectives, questions, width = vectors.shape
    flat = vectors.reshape(-1, width)
    seed, _, question = np.indices((seeds, perspectives, questions)).reshape(3, -1)
    for tested in range(seeds):
        for fold in range(FOLDS):
            seen = (seed != tested) if new_students else (seed == tested)
            train = np.flatnonzero(seen & (question % FOLDS != fold))
            test = np.flatnonzero((seed == tested) & (question % FOLDS == fold))
            points = components_apart(flat[train], flat[test], config.components, config.seed)
            yield _Fold(*points, train, test)


def _by_point(names: np.ndarray, questions: int) -> np.ndarray:
    """The perspectives (E, K) of students, repeated for their points (E, K, N)."""
    return np.repeat(names[:, :, None], questions, axis=2)


def _right(folds: Sequence[_Fold], labels: np.ndarray) -> np.ndarray:  # (E, K, N) bool
    """Whether probes that are trained with these labels (E, K, N) predict the label of each point."""
    flat = labels.ravel()
    right = np.zeros(len(flat), dtype=bool)
    for fold in folds:
        probe = LogisticRegression(max_iter=2000).fit(fold.train, flat[fold.train_places])
        right[fold.test_places] = probe.predict(fold.test) == flat[fold.test_places]
    return right.reshape(labels.shape)


def _probe(right: np.ndarray, interval: Sequence[float], chance: Sequence[float]) -> Probe:
    accuracy = float(right.mean())
    p = (1 + sum(one >= accuracy - 1e-12 for one in chance)) / (1 + len(chance))
    low, high = interval
    low, high = max(min(float(low), accuracy), 0.0), min(max(float(high), accuracy), 1.0)  # also of few draws
    estimate = Estimate(accuracy, low, high, float(np.mean(chance)), float(p))
    return Probe(estimate, [float(one) for one in right.mean((0, 2))])


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Student's t interval of 95 % for the mean of values (K,), K >= 2."""
    half = float(student_t.ppf(0.975, len(values) - 1)) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)
