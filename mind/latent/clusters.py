"""Do the vectors fall into clusters by themselves, and are these the perspectives?

A Dirichlet-process mixture finds clusters and their number without labels. Labels then say how far they agree. With
covariance "diag" it finds 8 clusters on simulated data if there are 8 and 1 if they are too weak to be seen; "full"
splits into 11 to 24 and "tied" into up to 20.

Intervals come from halves of the questions, drawn without replacement, and not from a bootstrap: a question that is
drawn twice makes a cluster of its own, so that on noise alone, where the mixture finds 1 cluster and NMI 0, a bootstrap
says 2 to 15 clusters and NMI .16 to .24. The spread over halves is that of the whole (the delete-d jackknife with
d = N / 2: J. Shao and C. F. J. Wu, A general theory for jackknife variance estimation, Annals of Statistics 17, 1989).
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
"""Numbers of principal components that the clusters are told for, since they depend on it."""
SMALLEST = 0.01
"""A component of the mixture with a smaller share of the points is no cluster."""
_RANGES = ((1.0, np.inf), (0.0, 1.0), (-1.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0))
"""Of what `agreement` returns."""


@dataclass(frozen=True)
class Estimate:
    """A number with what is known of its uncertainty; None if that was not computed."""

    value: float
    low: float | None = None
    high: float | None = None
    """The 95 % interval."""
    chance: float | None = None
    """Its mean if the perspectives are permuted."""
    p: float | None = None
    """The share of permutations, the identity among them, that give at least as much."""


@dataclass(frozen=True)
class Clusters:
    """Means over the experts' seeds and the mixture's; intervals from halves of the questions; chance by perspectives
    that are permuted within each question."""

    count: Estimate
    """Clusters with at least 1 % of the points."""
    nmi: Estimate
    """Normalized mutual information of cluster and perspective, in [0, 1]."""
    ari: Estimate
    """Adjusted Rand index, at most 1, and 0 by chance."""
    homogeneity: Estimate
    completeness: Estimate
    v_measure: Estimate
    silhouette: Estimate
    """Of the perspectives as clusters, by cosine, in [-1, 1]."""
    by_width: dict[str, dict[str, float]]
    """Number of principal components -> "count" and "nmi"."""


def clusters_of(vectors: np.ndarray, config: LatentConfig) -> Clusters:
    """The clusters of a view's vectors (E, K, N, D), which need K N >= 3 K points per seed."""
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
    count = replace(count, chance=None, p=None)  # no labels are in it
    widths = {str(width): _by_width(points[width], labels, perspectives, config.seed) for width in WIDTHS}
    silhouette = _silhouette(own, labels, questions, config, rng)
    return Clusters(count, nmi, ari, homogeneity, completeness, v_measure, silhouette, widths)


def mixture_labels(points: np.ndarray, perspectives: int, seed: int, starts: int) -> np.ndarray:
    """The component (R,) of each of the points (R, D), by the mixture of the design with at most 3 K components."""
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
        warnings.simplefilter("ignore", ConvergenceWarning)  # after 1000 rounds it has all but
        return mixture.fit(points).predict(points)


def agreement(labels: np.ndarray, found: np.ndarray) -> list[float]:
    """Of the clusters `found` (R,) with the labels (R,): count, NMI, ARI, homogeneity, completeness and V-measure."""
    count = int((np.bincount(found) >= SMALLEST * len(found)).sum())
    scores = (normalized_mutual_info_score(labels, found), adjusted_rand_score(labels, found))
    return [count, *scores, *homogeneity_completeness_v_measure(labels, found)]


def permuted_within(perspectives: int, questions: int, rng: np.random.Generator) -> np.ndarray:
    """Labels (K, N): the K perspectives of each question in an order of their own."""
    return rng.permuted(np.tile(np.arange(perspectives), (questions, 1)), axis=1).T


def _of_a_half(points: np.ndarray, perspectives: int, draw: int, rng: np.random.Generator) -> list[float]:
    """`agreement` of a mixture of half the questions. Seeds of experts take turns, so that their spread is in the
    interval, too."""
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
    """It is a mean over questions, and so is what its interval is of."""
    distances = [cosine_distances(some) for some in points]
    for table in distances:
        np.fill_diagonal(table, 0)  # which they are but for rounding

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
    """The interval has the spread of the halves around the value: a mixture of fewer points finds less on average."""
    low, high = value + np.quantile(halves, (0.025, 0.975)) - halves.mean()
    low, high = max(min(low, value), lowest), min(max(high, value), highest)
    p = (1 + (chance >= value - 1e-12).sum()) / (1 + len(chance))
    return Estimate(float(value), float(low), float(high), float(chance.mean()), float(p))
