"""Can the perspective be read off a vector, linearly, and is it the perspective that is read, or the student?

Every student of another seed and perspective differs from every other one: training moves all its hidden states, and
so a probe tells the students of one seed apart, whatever they have learned. Two probes therefore:

    by question        trained and tested on the same students, on other questions. It is fooled by that.
    of a new student   tested on students of a seed, and on questions, that it has not been trained on. What it reads
                       is what students of one perspective share across seeds.

The design leaves out the seed alone; here the questions are left out, too. Where students of all seeds read the same
text (V2), a probe could else remember the texts, and a view without seeds (V3) could not be compared at all.

The answers of the second probe to the points of one student are right or wrong together, so that the number of
questions says little about its uncertainty: the intervals are over perspectives, by Student's t with K - 1 degrees of
freedom, and the permutations deal the perspectives out anew among the whole students of each seed.
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
"""Into which the questions are dealt, in turn."""


@dataclass(frozen=True)
class Probe:
    """A probe's accuracy, with what chance gives (1 / K, but for the spread of its draws)."""

    accuracy: Estimate
    by_perspective: list[float]
    """The K accuracies, each a mean over seeds and questions."""


@dataclass(frozen=True)
class Difference:
    """Of two accuracies, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def positive(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0


def probe_by_question(vectors: np.ndarray, config: LatentConfig) -> Probe:
    """The accuracy on held-out questions of the students (E, K, N, D) that a probe is trained on, each seed with a
    probe of its own. Its interval is a bootstrap over questions, chance permutes the perspectives in each question.

    Needs N >= FOLDS questions. For a view without seeds, E = 1, it is what the other probe would be.
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
    """The accuracy on students and questions that the probe is not trained on, of vectors (E, K, N, D).

    Needs E >= 2 seeds, each with the same perspectives in their order, and N >= FOLDS questions. Where the vectors tell
    the student and nothing else, it is 1 / K on average.
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
        probe, other: of the same K.
        paired: the k-th perspective is the same in both, as in two views; else they have nothing in common, as experts
            and null experts, and the interval is Welch's.
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
    """Points to train and to test on, as principal components, and their places in a table (E, K, N)."""

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
    """The perspectives (E, K) of students as those of their points (E, K, N)."""
    return np.repeat(names[:, :, None], questions, axis=2)


def _right(folds: Sequence[_Fold], labels: np.ndarray) -> np.ndarray:  # (E, K, N) bool
    """Whether probes that are trained with these labels (E, K, N) name each point's."""
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
