"""Finds out whether the vectors form clusters by themselves, and whether these are the perspectives.

A Dirichlet-process mixture finds clusters and their number without labels; then labels measure the agreement. On
simulated data with covariance "diag" it finds 8 clusters if there are 8, and 1 if they are too weak to see; "full"
splits into 11 to 24 and "tied" into up to 20.

Intervals come from halves of the questions, drawn without replacement, and not from a bootstrap: a question that is
drawn twice forms a cluster of its own. On pure noise, where the mixture finds 1 cluster and NMI 0, a bootstrap gives 2
to 15 clusters and an NMI of .16 to .24. The spread over halves equals that of the whole (the delete-d jackknife with d
= N / 2: J. Shao and C. F. J. Wu, A general theory for jackknife variance estimation, Annals of Statistics 17, 1989).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import (
    adjusted_rand_score,
    homogeneity_completeness_v_measure,
    normalized_mutual_info_score,
    silhouette_samples,
)
from sklearn.metrics.pairwise import cosine_distances
from sklearn.mixture import BayesianGaussianMixture

from mind.latent.config import LatentConfig
from mind.latent.preprocessing import centered, components_of

WIDTHS = (8, 16, 32)
"""Numbers of principal components for which clusters are reported, since the result depends on it."""
SMALLEST = 0.01
"""A component of the mixture with a smaller share of the points does not count as a cluster."""
_RANGES = ((1.0, np.inf), (0.0, 1.0), (-1.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0))
"""Names of the numbers that `agreement` returns."""


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty; None for parts that were not computed."""

    value: float
    low: float | None = None
    high: float | None = None
    """The bounds of the 95 % interval."""
    chance: float | None = None
    """The mean of the number if the perspectives are permuted."""
    p: float | None = None
    """The share of permutations, including the identity, that give at least this number."""


@dataclass(frozen=True)
class Clusters:
    """Means over the seeds of the experts and of the mixture; intervals from halves of the questions; chance from
    perspectives permuted within each question."""

    count: Estimate
    """Number of clusters with at least 1 % of the points."""
    nmi: Estimate
    """Normalized mutual information of cluster and perspective, in [0, 1]."""
    ari: Estimate
    """Adjusted Rand index, at most 1, and 0 by chance."""
    homogeneity: Estimate
    completeness: Estimate
    v_measure: Estimate
    silhouette: Estimate
    """Silhouette of the perspectives as clusters, by cosine, in [-1, 1]."""
    by_width: dict[str, dict[str, float]]
    """Number of principal components -> "count" and "nmi"."""


def clusters_of(vectors: np.ndarray, config: LatentConfig) -> Clusters:
    """The clusters of a view's vectors (E, K, N, D), of which each seed needs K N >= 3 K points."""
    rng = np.random.default_rng(config.seed)
    seeds, perspectives, questions, _ = vectors.shape
    flat = centered(vectors).reshape(seeds, perspectives * questions, -1)
    points = {
        width: [components_of(some, width, config.seed) for some in flat] for width in {config.components, *WIDTHS}
    }
    own = points[config.components]
    labels = np.repeat(np.arange(perspectives), questions)
    found = [
        [mixture_labels(some, perspectives, config.seed + s, starts=5) for s in range(config.mixture_seeds)]
        for some in own
    ]
    measured = np.array([[agreement(labels, one) for one in some] for some in found]).mean((0, 1))
    drawn = np.array([_of_a_half(own[b % seeds], perspectives, b, rng) for b in range(config.draws)])
    by_chance = []
    for _ in range(config.permutations):
        permuted = permuted_within(perspectives, questions, rng).ravel()
        by_chance.append(np.mean([agreement(permuted, some[0]) for some in found], 0))
    tables = list(zip(measured, drawn.T, np.array(by_chance).T, strict=True))
    count, nmi, ari, homogeneity, completeness, v_measure = [
        _estimate(*some, *ends) for some, ends in zip(tables, _RANGES, strict=True)
    ]
    count = replace(count, chance=None, p=None)  # it uses no labels
    widths = {str(width): _by_width(points[width], labels, perspectives, config.seed) for width in WIDTHS}
    silhouette = _silhouette(own, labels, questions, config, rng)
    return Clusters(count, nmi, ari, homogeneity, completeness, v_measure, silhouette, widths)


def mixture_labels(points: np.ndarray, perspectives: int, seed: int, starts: int) -> np.ndarray:
    """The component (R,) of each of the points (R, D), by a mixture with at most 3 K components."""
    mixture = BayesianGaussianMixture(
        n_components=min(3 * perspectives, len(points)),
        covariance_type="diag",
        weight_concentration_prior_type="dirichlet_process",
        weight_concentration_prior=1.0,
        max_iter=1000,
        n_init=starts,
        init_params="k-means++",
        reg_covar=1e-4,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # after 1000 rounds it has nearly converged
        return mixture.fit(points).predict(points)


def agreement(labels: np.ndarray, found: np.ndarray) -> list[float]:
    """Agreement of the clusters `found` (R,) with the labels (R,): count, NMI, ARI, homogeneity, completeness and
    V-measure."""
    count = int((np.bincount(found) >= SMALLEST * len(found)).sum())
    scores = (normalized_mutual_info_score(labels, found), adjusted_rand_score(labels, found))
    return [count, *scores, *homogeneity_completeness_v_measure(labels, found)]


def permuted_within(perspectives: int, questions: int, rng: np.random.Generator) -> np.ndarray:
    """Labels (K, N): the K perspectives in a random order for each question."""
    return rng.permuted(np.tile(np.arange(perspectives), (questions, 1)), axis=1).T


def _of_a_half(points: np.ndarray, perspectives: int, draw: int, rng: np.random.Generator) -> list[float]:
    """`agreement` of a mixture of half the questions. Draws use the experts' seeds in turn, so that the interval
    includes their spread."""
    table = points.reshape(perspectives, -1, points.shape[1])
    half = rng.permutation(table.shape[1])[: (table.shape[1] + 1) // 2]
    found = mixture_labels(table[:, half].reshape(-1, points.shape[1]), perspectives, draw, starts=1)
    return agreement(np.repeat(np.arange(perspectives), len(half)), found)


def _by_width(points: Sequence[np.ndarray], labels: np.ndarray, perspectives: int, seed: int) -> dict[str, float]:
    measured = [agreement(labels, mixture_labels(some, perspectives, seed, starts=5)) for some in points]
    count, nmi, *_ = np.mean(measured, 0)
    return {"count": float(count), "nmi": float(nmi)}


def _silhouette(
    points: Sequence[np.ndarray], labels: np.ndarray, questions: int, config: LatentConfig, rng: np.random.Generator
) -> Estimate:
    """The silhouette is a mean over questions, and so its interval is that of a mean."""
    distances = [cosine_distances(some) for some in points]
    for table in distances:
        np.fill_diagonal(table, 0)  # zero apart from rounding

    def by_question(labels: np.ndarray) -> np.ndarray:
        each = [silhouette_samples(table, labels, metric="precomputed") for table in distances]
        return np.mean(each, 0).reshape(-1, questions).mean(0)

    perspectives, each = len(labels) // questions, by_question(labels)
    halves = [each[rng.permutation(questions)[: (questions + 1) // 2]].mean() for _ in range(config.draws)]
    chance = [
        by_question(permuted_within(perspectives, questions, rng).ravel()).mean() for _ in range(config.permutations)
    ]
    return _estimate(each.mean(), np.array(halves), np.array(chance), -1.0, 1.0)


def _estimate(value: float, halves: np.ndarray, chance: np.ndarray, lowest: float, highest: float) -> Estimate:
    """The interval has the spread of the halves, but around the value: a mixture of fewer points finds less on
    average."""
    low, high = value + np.quantile(halves, (0.025, 0.975)) - halves.mean()
    low, high = max(min(low, value), lowest), min(max(high, value), highest)
    p = (1 + (chance >= value - 1e-12).sum()) / (1 + len(chance))
    return Estimate(float(value), float(low), float(high), float(chance.mean()), float(p))
