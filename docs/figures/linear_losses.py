"""The logits of all rows beside the logits of one chunk, at the sizes of SmolLM2-135M."""

from __future__ import annotations

from pathlib import Path

from docs.figures.style import AMBER, BLUE, FOLDER, GREEN, PALE, blank, block, plt, save

N, V, D, CHUNK = 4096, 49152, 576, 192
MIB = 2**20 / 4  # float32 numbers


def draw(folder: Path = FOLDER) -> Path:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.5), layout="constrained")
    for axes, title in ((left, "eager: all logits"), (right, "linear loss: a chunk at a time")):
        blank(axes, 10, 7.4)
        axes.set_title(title, fontsize=11)
        block(axes, 0.2, 0.4, 1.0, 4.6, BLUE)
        axes.text(0.7, 5.15, f"H\nN x D, {N * D / MIB:.0f} MiB", ha="center", va="bottom", fontsize=9)
        block(axes, 2.4, 5.9, 7.2, 0.8, GREEN, f"W: V x D, {V * D / MIB:.0f} MiB", fontsize=9)
    block(left, 2.4, 0.4, 7.2, 4.6, AMBER, f"logits and their gradient\nN x V, {N * V / MIB:.0f} MiB each")
    block(right, 2.4, 0.4, 7.2, 4.6, PALE)
    block(right, 2.4, 3.3, 7.2, 0.5, AMBER)
    right.text(
        6, 3.0, f"one chunk of {CHUNK} rows: {CHUNK * V / MIB:.0f} MiB, becomes dZ", ha="center", va="top", fontsize=9
    )
    right.text(
        6,
        1.9,
        "dH of these rows and a share of dW\nare taken from it; the next chunk reuses it",
        ha="center",
        va="top",
        fontsize=9,
    )
    block(right, 0.2, 3.3, 1.0, 0.5, AMBER)
    return save(figure, "linear_losses", folder)


if __name__ == "__main__":
    draw()
