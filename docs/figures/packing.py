"""A question's rationales as a padded batch, as a packed row and with a shared prompt, and what the shared row sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from docs.figures.style import AMBER, BLUE, FOLDER, GRAY, GREEN, PALE, blank, block, plt, save

PROMPT, RATIONALES = 6, (9, 4, 7)
COLORS = (BLUE, GREEN, GRAY)


def visible() -> np.ndarray:
    """(T, T): 1 + k where a token of the shared row sees one of branch k, 0 where it sees the prompt, else nan."""
    owner = np.concatenate([[-1] * PROMPT, *([k] * length for k, length in enumerate(RATIONALES))])
    causal = np.tri(len(owner), dtype=bool)
    same = (owner[:, None] == owner) | (owner == -1)
    return np.where(causal & same, owner[None, :] + 1.0, np.nan)


def draw(folder: Path = FOLDER) -> Path:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.9), layout="constrained", width_ratios=[1.75, 1])
    longest, total = PROMPT + max(RATIONALES), sum(RATIONALES)
    packed = PROMPT * len(RATIONALES) + total
    blank(left, packed + 0.5, 11)
    _title(left, 10.6, f"padded batch: {longest * len(RATIONALES)} tokens")
    for k, length in enumerate(RATIONALES):
        y = 9.2 - 1.15 * k
        block(left, 0, y, PROMPT, 1, AMBER, "prompt", fontsize=8)
        block(left, PROMPT, y, length, 1, COLORS[k], f"rationale {k + 1}", fontsize=8 if length > 5 else 6.5)
        block(
            left,
            PROMPT + length,
            y,
            longest - PROMPT - length,
            1,
            PALE,
            "pad" if length < max(RATIONALES) else "",
            fontsize=8,
        )
    _title(left, 5.5, f"packed: {packed} tokens, no padding")
    x = 0
    for k, length in enumerate(RATIONALES):
        block(left, x, 4.1, PROMPT, 1, AMBER, "prompt", fontsize=8)
        block(left, x + PROMPT, 4.1, length, 1, COLORS[k], str(k + 1), fontsize=8)
        x += PROMPT + length
    _title(left, 2.6, f"shared prompt: {PROMPT + total} tokens")
    block(left, 0, 1.2, PROMPT, 1, AMBER, "prompt", fontsize=8)
    x = PROMPT
    for k, length in enumerate(RATIONALES):
        block(left, x, 1.2, length, 1, COLORS[k], str(k + 1), fontsize=8)
        x += length

    seen = visible()
    for (row, column), owner in np.ndenumerate(seen):
        if not np.isnan(owner):
            color = AMBER if owner == 0 else COLORS[int(owner) - 1]
            block(right, column, len(seen) - 1 - row, 1, 1, color)
    blank(right, len(seen), len(seen))
    right.set_aspect("equal")
    right.set_title("what each token of the shared row sees", fontsize=10)
    return save(figure, "packing", folder)


def _title(axes, y: float, text: str) -> None:
    axes.text(0, y, text, va="center")


if __name__ == "__main__":
    draw()
