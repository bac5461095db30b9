"""What clusters and probes are given of the vectors: the question's mean taken off, columns scaled, few components.

Vectors of a view are (E, K, N, D): E seeds of the experts (1 for a view that has none), K perspectives, N questions, D
numbers. Without the first step questions dominate whatever perspectives add (tests/mind/test_latent_statistics.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def centered(vectors: np.ndarray) -> np.ndarray:
    """The vectors (E, K, N, D) without the mean over the K of the same seed and question; float64.

    With it goes what all students of a seed share, also at the end of a prompt (V4), where the K have one text.
    """
    vectors = vectors.astype(np.float64)
    return vectors - vectors.mean(1, keepdims=True)


def components_of(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The first `count` principal components (R, count) of the points (R, D), each column scaled to variance 1 before;
    fewer if there are fewer."""
    return _scaled_components(points, count, seed).fit_transform(points)


def components_apart(train: np.ndarray, test: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of two sets of points, by scales and components of the first alone."""
    pipeline = _scaled_components(train, count, seed)
    return pipeline.fit_transform(train), pipeline.transform(test)


def _scaled_components(points: np.ndarray, count: int, seed: int) -> Any:
    return make_pipeline(StandardScaler(), PCA(min(count, len(points) - 1, points.shape[1]), random_state=seed))
