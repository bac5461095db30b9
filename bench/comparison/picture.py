"""The picture of a results file: bars of time and of peak memory, for its first case."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bench.measure import read_results

# Okabe and Ito's palette, told apart with any color vision.
COLORS = {"mind_kernels": "#0072B2", "peer": "#999999", "eager": "#D55E00"}
SIZES = ("N", "P", "K", "V", "D")


def draw(results: Path) -> Path:
    """Draws <results>.svg from the JSON lines of a loss benchmark and returns its path.

    Time is relative to eager on a CPU and to the roof, three products at the measured rate, on a GPU.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = [row for row in read_results(results) if "median_ms" in row]
    if not rows:
        raise ValueError(f"{results} holds no measurement")
    first = rows[0]
    measured = [row for row in rows if all(row.get(key) == first.get(key) for key in ("model", *SIZES, "dtype"))]
    time = "time_of_eager" if first["kind"] == "cpu" else "times_roof"
    measured.sort(key=lambda row: row["median_ms"], reverse=True)  # the fastest on top

    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "bench"}):
        width = max(8, 4 + 0.12 * max(len(row["provider"]) for row in measured))  # long names leave the bars their room
        figure = Figure(figsize=(width, 1.6 + 0.26 * len(measured)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _bars(left, measured, time, "time / eager" if time == "time_of_eager" else "time / roof")
        _bars(right, measured, "peak_extra_mib", "peak extra memory, MiB, gradients included")
        base = "eager's time" if time == "time_of_eager" else "the roof"
        line = left.axvline(1, color="black", linewidth=0.8, linestyle=":", zorder=0, label=f"dotted: {base}")
        shown = {"mind_kernels": "mind_kernels", "eager": "plain PyTorch", "peer": "others"}
        drawn = {_kind(row["provider"]) for row in measured}
        patches = [Patch(color=COLORS[kind], label=name) for kind, name in shown.items() if kind in drawn]
        figure.legend(handles=[*patches, line], loc="outside lower center", ncols=4, frameon=False)
        shape = ", ".join(f"{size} {first[size]}" for size in SIZES if size in first)
        figure.suptitle(f"{first['model']}: {shape}, {first['dtype']}, {first['inputs']}", fontsize=9)
        path = results.with_suffix(".svg")
        figure.savefig(path, metadata={"Date": None})
    return path


def _bars(axes: Any, rows: list[dict[str, Any]], column: str, label: str) -> None:
    values = [row.get(column) or 0 for row in rows]
    bars = axes.barh([row["provider"] for row in rows], values, color=[COLORS[_kind(row["provider"])] for row in rows])
    texts = axes.bar_label(bars, [f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in values], padding=3)
    for text in texts:  # over the dotted line
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.set_xlabel(label)
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)


def _kind(provider: str) -> str:
    name = re.split(r"\W", provider)[0]
    return name if name in COLORS else "peer"
