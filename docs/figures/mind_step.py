"""A step of MIND as a flow, with the scores and weights that the code gives for one drawn question."""

from __future__ import annotations

from pathlib import Path

import torch

from docs.figures.style import AMBER, BLUE, FOLDER, GREEN, PALE, arrow, blank, box, plt, save
from mind.config import ObjectiveConfig
from mind.methods.mind.objective import anchored, select

SCORES = (0.62, 0.41, 0.70, 0.55, 0.35, 0.48, 0.58, 0.30)


def draw(folder: Path = FOLDER) -> Path:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 4.2), layout="constrained", width_ratios=[1.6, 1])
    blank(left, 10, 8)
    box(left, 0.1, 5.9, 3.1, 1.7, "question x,\nrationales r_1 ... r_K")
    box(left, 4.3, 5.9, 2.2, 1.7, "MetaNet\nscores s_k", GREEN)
    box(left, 7.6, 5.9, 2.3, 1.7, "selection\nI_dyn, alpha", AMBER)
    box(left, 4.3, 3.0, 5.6, 1.6, "L_total = sum alpha_k CE_k\n+ lambda sum alpha_i alpha_j JSD_ij", BLUE)
    box(left, 0.1, 3.0, 3.1, 1.6, "student", BLUE)
    box(left, 0.1, 0.3, 3.1, 1.5, "L_real,k: CE of every\nrationale, unweighted")
    box(left, 4.3, 0.3, 5.6, 1.5, "L_meta = KL(softmax(s / tau),\nsoftmax(-L_real / tau))", GREEN)
    arrow(left, (3.2, 6.75), (4.3, 6.75))
    arrow(left, (6.5, 6.75), (7.6, 6.75))
    arrow(left, (8.75, 5.9), (8.75, 4.6))
    arrow(left, (1.65, 5.9), (1.65, 4.6))
    arrow(left, (3.2, 4.0), (4.3, 4.0))
    arrow(left, (4.3, 3.5), (3.2, 3.5), BLUE)
    left.text(3.75, 3.15, "gradient", ha="center", va="top", fontsize=8, color=BLUE)
    arrow(left, (1.65, 3.0), (1.65, 1.8))
    arrow(left, (3.2, 1.05), (4.3, 1.05))
    left.annotate(
        "", xy=(5.4, 5.9), xytext=(5.4, 1.8), arrowprops={"arrowstyle": "-|>", "color": GREEN, "lw": 1.4}, zorder=0
    )
    left.text(5.5, 5.25, "gradient, every 4 steps", fontsize=8, color=GREEN, va="center")

    config = ObjectiveConfig()
    scores = torch.tensor([SCORES], dtype=torch.float64)
    present = torch.ones_like(scores, dtype=torch.bool)
    shifted = anchored(scores, present)
    selected, alpha = select(shifted, present, config.beta, config.tau_student)
    places = range(1, len(SCORES) + 1)
    colors = [AMBER if chosen else PALE for chosen in selected[0].tolist()]
    right.bar(places, shifted[0].tolist(), color=colors)
    right.axhline(config.beta, color=AMBER, lw=1.4)
    right.text(5.5, config.beta + 0.02, "beta max s", color=AMBER, fontsize=9, ha="center")
    for place, weight in zip(places, alpha[0].tolist(), strict=True):
        if weight:
            right.text(place, 0.1, f"alpha {weight:.2f}", ha="center", va="bottom", fontsize=8, rotation=90)
    right.set(title="a drawn question, default settings", xlabel="perspective k", xticks=list(places), ylim=(0, 1.1))
    right.set_ylabel("score, shifted so that the largest is 1")
    right.title.set_fontsize(10)
    return save(figure, "mind_step", folder)


if __name__ == "__main__":
    draw()
