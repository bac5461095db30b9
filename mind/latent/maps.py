"""Draws vectors in two dimensions by t-SNE, to look at, not to measure by.

Neither distances nor the number of clusters can be read off them; two seeds side by side show that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.manifold import TSNE

from mind.latent.config import LatentConfig
from mind.latent.preprocessing import are_equal, centered, components_of

SHOWN = {"experts": ("V1", "V3 own", "V4"), "null": ("V4",)}
"""Group -> its views that are drawn."""
SEEDS = 2
MOST_QUESTIONS = 50
"""Number of questions whose points are kept and drawn; all points take part in making the map."""


@dataclass(frozen=True)
class Map:
    """One map of the students of one seed."""

    view: str
    group: str
    """"experts" or "null"."""
    seed: int
    """The seed of the map."""
    points: list[list[tuple[float, float]]]
    """By perspective (K), one point for each of the first questions."""


def maps_of(experts: Mapping[str, np.ndarray], null: Mapping[str, np.ndarray], config: LatentConfig) -> list[Map]:
    """The maps of the students of the first seed, from vectors (E, K, N, D) by view."""
    groups = {"experts": experts, "null": null}
    return [
        Map(view, group, seed, _points(groups[group][view], seed, config))
        for group, views in SHOWN.items()
        for view in views
        if view in groups[group] and groups[group][view].shape[2] > 1
        for seed in range(config.seed, config.seed + SEEDS)
    ]


def _points(vectors: np.ndarray, seed: int, config: LatentConfig) -> list[list[tuple[float, float]]]:
    _, perspectives, questions, width = vectors.shape
    table = components_of(centered(vectors[:1]).reshape(-1, width), config.components, config.seed)
    if are_equal(table):
        return [[(0.0, 0.0)] * min(questions, MOST_QUESTIONS) for _ in range(perspectives)]
    perplexity = min(30.0, (len(table) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    places = tsne.fit_transform(table).reshape(perspectives, questions, 2)[:, :MOST_QUESTIONS]
    return [[(round(float(x), 2), round(float(y), 2)) for x, y in row] for row in places]
