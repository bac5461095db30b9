"""Which entries of a row's gradient are kept, and what a threshold costs and saves as measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from docs.figures.style import AMBER, BLUE, FOLDER, GRAY, GREEN, INK, plt, save

RESULTS = FOLDER.parents[1] / "bench" / "results" / "sparse_error.jsonl"
V, THRESHOLD = 49152, 2.0**-12


def row() -> np.ndarray:
    """A drawn example, not a measured one: the probabilities of a row that fall with the rank's power, target first."""
    others = np.arange(1, V) ** -1.6
    return np.concatenate([[0.6], 0.4 * others / others.sum()])


def draw(folder: Path = FOLDER) -> Path:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
    p = row()
    limit = THRESHOLD * (1 - p[0])
    kept = int((p > limit).sum())
    rank = np.unique(np.geomspace(1, V, 200).astype(int))
    left.loglog(rank, p[rank - 1], color=INK, lw=1)
    left.fill_between(rank[rank <= kept], p[rank[rank <= kept] - 1], 1e-8, color=BLUE, alpha=0.8, lw=0)
    left.fill_between(rank[rank > kept], p[rank[rank > kept] - 1], 1e-8, color=GRAY, alpha=0.4, lw=0)
    left.axhline(limit, color=AMBER, lw=1.4)
    left.text(V, limit * 1.4, "t (1 - p_y)", color=AMBER, ha="right", va="bottom")
    left.text(2, 3e-7, f"kept:\n{kept} entries", color="white", va="center")
    left.text(
        V,
        1.2e-5,
        f"replaced by D q:\n{100 * p[kept:].sum() / (1 - p[0]):.1f} % of 1 - p_y",
        ha="right",
        va="center",
        fontsize=9,
    )
    left.set(title="one row, probabilities by rank (drawn example)", xlabel="rank in the vocabulary", ylim=(1e-8, 1))
    left.title.set_fontsize(10)

    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    found = [line for line in lines if line.get("threshold", 1) <= 2.0**-11]
    steps = [-round(np.log2(line["threshold"])) for line in found]
    right.semilogy(steps, [line["d_hidden_error"] for line in found], "o-", color=BLUE, ms=4, label="error of dH")
    right.semilogy(steps, [line["d_weight_error"] for line in found], "s-", color=GREEN, ms=4, label="error of dW")
    right.set(title="measured: 2048 rows, one thread", xlabel="threshold 2^-n, n", ylabel="relative error")
    right.title.set_fontsize(10)
    time = right.twinx()
    time.spines["right"].set_visible(True)
    time.plot(steps, [line["of_eager"] for line in found], "^--", color=AMBER, ms=4, label="time")
    time.set(ylim=(0, 1), ylabel="time, share of eager's")
    handles = [*right.get_lines(), *time.get_lines()]
    right.legend(handles=handles, loc="upper right", frameon=False, fontsize=9)
    return save(figure, "sparse_gradient", folder)


if __name__ == "__main__":
    draw()
