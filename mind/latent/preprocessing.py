"""Prepares vectors for clusters and probes: subtracts each question's mean, scales the columns, keeps few components.

Vectors of a view are (E, K, N, D): E seeds of the experts (1 for a view without experts), K perspectives, N questions,
D numbers. Without the first step, the questions hide the effect of the perspectives
(tests/mind/test_latent_statistics.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

_ROUNDING = 1e-12
"""Smaller shares of a number are rounding of float64: the vectors come from float32, whose steps are 6e-8."""


def centered(vectors: np.ndarray) -> np.ndarray:
    """The vectors (E, K, N, D) minus the mean over the K with the same seed and question; float64.

    This removes what all students of a seed share, even at the end of a prompt (V4), where all K have the same text.
    """
    vectors = vectors.astype(np.float64)
    apart = vectors - vectors.mean(1, keepdims=True)
    # The mean of equal numbers is rounded, and columns are scaled to variance 1 later: rounding would be the signal.
    apart[np.abs(apart) <= _ROUNDING * np.abs(vectors).max(1, keepdims=True)] = 0
    return apart


def components_of(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The first `count` principal components (R, count) of the points (R, D), whose columns are scaled to variance 1
    before; fewer if there are fewer. Those of points that are all equal are 0."""
    if are_equal(points):
        return np.zeros((len(points), _most(points, count)))
    return _scaled_components(points, count, seed).fit_transform(points)


def components_apart(train: np.ndarray, test: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same for two sets of points, with the scales and components of the first set."""
    if are_equal(train):
        width = _most(train, count)
        return np.zeros((len(train), width)), np.zeros((len(test), width))
    pipeline = _scaled_components(train, count, seed)
    return pipeline.fit_transform(train), pipeline.transform(test)


def are_equal(points: np.ndarray) -> bool:
    """Whether all points (R, D) are the same, as if all students wrote the same answers: principal components divide by
    their variance then, and t-SNE reads memory that is not its own."""
    return not np.ptp(points, axis=0).any()


def _most(points: np.ndarray, count: int) -> int:
    """The number of components to take."""
    return min(count, len(points) - 1, points.shape[1])


def _scaled_components(points: np.ndarray, count: int, seed: int) -> Any:
    return make_pipeline(StandardScaler(), PCA(_most(points, count), random_state=seed))
