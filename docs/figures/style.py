"""What the figures of the concept pages share: one look, legible on light and dark pages, the same file each time."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

FOLDER = Path(__file__).resolve().parent
INK, BLUE, AMBER, GREEN, GRAY, PALE = "#20242c", "#2f6fb5", "#d08a1e", "#3a8a5c", "#8a909a", "#e3e6eb"

# The page is white in either theme: colors and text then keep their contrast on a dark site.
plt.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "mind",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
        "figure.facecolor": "white",
    }
)


def save(figure: Figure, name: str, folder: Path = FOLDER) -> Path:
    """Writes NAME.svg, without a date, so that the same drawing is the same file."""
    path = folder / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    path.write_text("".join(line.rstrip() + "\n" for line in path.read_text().splitlines()))
    return path


def block(axes: Axes, x: float, y: float, width: float, height: float, color: str, text: str = "", **kind) -> None:
    """A rectangle with a text in its middle."""
    axes.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor="white", linewidth=0.8))
    if text:
        dark = color not in (PALE, "white")
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color="white" if dark else INK, **kind)


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str = INK) -> None:
    """A rounded frame with a text."""
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.08", facecolor="white", edgecolor=color, lw=1.4
        )
    )
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", linespacing=1.4, fontsize=9)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK, bend: float = 0) -> None:
    axes.annotate(
        "",
        xy=end,
        xytext=start,
        arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.4, "connectionstyle": f"arc3,rad={bend}"},
    )


def blank(axes: Axes, width: float, height: float) -> None:
    """Axes without ticks, of `width` by `height` units."""
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
