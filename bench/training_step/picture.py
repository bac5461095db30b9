"""The picture of the results: what each change takes off the time and off the memory of the step, as two waterfalls."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.measure import read_results
from bench.training_step.variants import REFERENCE, VARIANTS

# Okabe and Ito's palette, told apart with any color vision; SAVED is a light tint of its sky blue.
NAIVE, OURS, SAVED, ADDED, PEER = "#D55E00", "#0072B2", "#BFE1F5", "#E69F00", "#999999"


def draw(results: Path) -> Path:
    """Draws <results>.svg from the JSON lines and returns its path."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = [row for row in read_results(results) if "median_ms" in row]
    if not rows:
        raise ValueError(f"{results} holds no measurement")
    first = rows[0]
    rows.sort(key=lambda row: VARIANTS[row["variant"]].peer is not None)  # stable: peers come last
    peaks = {row["variant"]: row["peak_extra_mib"] / 1024 for row in rows if "peak_extra_mib" in row}
    questions = f"{first['questions']} question{'s' * (first['questions'] > 1)}"
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "bench"}):
        figure = Figure(figsize=(1.7 * len(rows) + 1, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        waterfall(left, {row["variant"]: row["median_ms"] / 1000 for row in rows}, "s", "faster")
        left.set_title("time of an optimizer step, s")
        waterfall(right, peaks, "GiB", "less")
        right.set_title("peak memory beside weights and optimizer state, GiB")
        figure.suptitle(
            f"{first['model']}, {first['dtype']}: {questions} x {first['K']} rationales of "
            f"{first['inputs']}, {first['supervision_tokens']:,} labeled tokens\n"
            "light blue: what a change saves of the variant before it; orange: what it adds",
            fontsize=9,
        )
        path = results.with_suffix(".svg")
        figure.savefig(path, metadata={"Date": None})
    return path


def waterfall(axes: Any, values: Mapping[str, float], unit: str, better: str) -> None:
    """A bar a variant, and on it what its change saved of the one before or added to it; a peer's stands alone."""
    before = None
    for place, (name, value) in enumerate(values.items()):
        peer, top = VARIANTS[name].peer, value
        axes.bar(place, value, color=PEER if peer else NAIVE if name == REFERENCE else OURS)
        if before is not None and not peer:
            low, top = sorted((value, before))
            axes.bar(place, top - low, bottom=low, color=SAVED if value < before else ADDED)
            axes.plot([place - 0.6, place + 0.4], [before] * 2, color="black", linewidth=0.7)
        ratio = f"\n{values[REFERENCE] / value:.3g}x {better}" if REFERENCE in values and name != REFERENCE else ""
        axes.annotate(
            f"{value:.3g} {unit}{ratio}", (place, top), (0, 2), textcoords="offset points", ha="center", fontsize=8
        )
        before = before if peer else value
    axes.set_xticks(range(len(values)), [textwrap.fill(name, 10) for name in values])
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
