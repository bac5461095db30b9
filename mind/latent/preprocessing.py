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


def centered(vectors: np.ndarray) -> np.ndarray:
    """The vectors (E, K, N, D) minus the mean over the K with the same seed and question; float64.

    This removes what all students of a seed share, even at the end of a prompt (V4), where all K have the same text.
    """
    vectors = vectors.astype(np.float64)
    return vectors - vectors.mean(1, keepdims=True)


def components_of(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The first `count` principal components (R, count) of the points (R, D), whose columns are scaled to variance 1
    before; fewer if there are fewer."""
    return _scaled_components(points, count, seed).fit_transform(points)


def components_apart(train: np.ndarray, test: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same for two sets of points, with the scales and components of the first set."""
    pipeline = _scaled_components(train, count, seed)
    return pipeline.fit_transform(train), pipeline.transform(test)


def _scaled_components(points: np.ndarray, count: int, seed: int) -> Any:
    return make_pipeline(StandardScaler(), PCA(min(count, len(points) - 1, points.shape[1]), random_state=seed))
