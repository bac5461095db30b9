"""Draws the pictures of a run: inline SVG whose text and lines use the page's colors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from mind.display import percent
from mind.report.charts import AMBER, BLUE, INK, MUTED, RULE, Chart, Series
from mind.report.data_tables import DataTable, series_table
from mind.report.reading import Metrics, binned, running_mean

DRAWN_POINTS = 400  # a longer series is drawn as means of equal bins, which keeps the page small
HEATMAP_COLUMNS = 120

PAGE_COLORS = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)"}
HUES = (BLUE, AMBER, "#23a06b", "#e2504f", "#8f63dc", "#0fa3b8", "#d856a4", "#8b8f3a")
SHADES = ((0.0, ()), (0.35, (4, 2)), (-0.3, (1.2, 1.6)), (0.55, (6, 2, 1.2, 2)))  # (toward white or black, dashes)

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "mind", "font.size": 9, "font.family": "DejaVu Sans",
    "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": RULE, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": RULE, "grid.linewidth": 0.6, "xtick.color": RULE, "ytick.color": RULE,
    "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED, "figure.facecolor": "none", "axes.facecolor": "none",
    "text.parse_math": False, "axes.formatter.useoffset": False, "axes.formatter.limits": (-3, 6),
}  # fmt: skip


@dataclass(frozen=True)
class Ink:
    """The look of one series, in the picture and in its legend."""

    name: str
    color: str
    dashes: tuple[float, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A chart in the form that the page shows."""

    chart: Chart
    svg: Markup | None
    """None if the run has no number for it."""
    legend: list[Ink]
    """Empty for a single series."""
    table: DataTable | None = None
    """The numbers of the picture; None if there is no picture, or if the page already has a table of them."""


Lines = Sequence[tuple[Ink, np.ndarray]]
"""The look of each line, and its values."""


def perspective_inks(names: list[str]) -> list[Ink]:
    """Eight hues, then the same hues in three further shades, each with its own dashes: 32 different looks."""
    inks = []
    for index, name in enumerate(names):
        shift, dashes = SHADES[index // len(HUES) % len(SHADES)]
        target = 1.0 if shift > 0 else 0.0
        red, green, blue = (c + (target - c) * abs(shift) for c in to_rgb(HUES[index % len(HUES)]))
        color = to_hex((red, green, blue))
        inks.append(Ink(name, color, dashes))
    return inks


def svg_of(figure: Figure, prefix: str) -> Markup:
    """Inline SVG that refers to nothing outside: its ids get the prefix, since many pictures share a page; its colors
    follow the page.

    The page must have a title with the id PREFIX-title and a caption with the id PREFIX-caption, which name and
    describe the picture.
    """
    buffer = StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser chooses the font in the end
        figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    named = f'aria-labelledby="{prefix}-title" aria-describedby="{prefix}-caption"'
    # at smaller widths its text would be too small to read
    width = f'style="--width: {72 * figure.get_figwidth():.0f}px"'
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" {named} {width}>', svg, count=1)
    for written, shown in PAGE_COLORS.items():
        svg = svg.replace(written, shown)
    return Markup(svg)


def _from_zero(axes: Axes) -> None:
    """Sets the vertical axis from 0 to a little above the highest value, which would otherwise touch the edge."""
    highest = axes.dataLim.y1
    axes.set_ylim(0, 1.05 * highest if highest > 0 else None)


class Pictures:
    """Draws the charts of one run."""

    def __init__(self, metrics: Metrics, perspectives: list[str]) -> None:
        self.metrics = metrics
        self.names, self.inks = perspectives, perspective_inks(perspectives)
        self.window = min(25, max(3, len(metrics.steps) // 12))

    def wants(self, chart: Chart) -> bool:
        """Whether the report shows the chart."""
        return not chart.only_if_positive or any((values > 0).any() for _, values in self._lines(chart))

    def draw(self, chart: Chart) -> Picture:
        """The chart as inline SVG."""
        if chart.form == "shares":
            return self._shares(chart)
        if chart.form == "work":
            return self._work(chart)
        lines = self._lines(chart)
        below = self._lines(chart.lower) if chart.lower else []
        below = below if any((values > 0).any() for _, values in below) else []
        before = self._warmup(chart) if chart.warmup else []
        if before:
            figure, axes = self._panels(1, 2, width_ratios=[1, 2], sharey=True)
            self._draw_warmup(axes[0], before)
        elif below:
            figure, axes = self._panels(2, 1, height_ratios=[3, 1.2], sharex=True)
        else:
            figure, axes = self._panels()
        main = axes[1] if before else axes[0]
        for ink, values in lines:
            self._draw(main, values, ink, chart.smooth)
        axes[0].set_ylabel(chart.unit)
        if chart.from_zero:
            _from_zero(main)
        for ink, values in below:
            self._draw(axes[1], values, ink)
            axes[1].set_ylabel(chart.lower.unit if chart.lower else "")
        legend = [ink for ink, values in (*before, *lines, *below) if not np.isnan(values).all()]
        return self._finish(chart, figure, legend, [*lines, *below], before)

    def _lines(self, chart: Chart) -> Lines:
        """The lines of a chart and their values, one per step."""
        if chart.form == "perspectives":
            return list(zip(self.inks, self.metrics.by_perspective(chart.key, self.names), strict=True))
        return [
            (Ink(series.label, series.color, series.dashes), series.scale * self.metrics.series(series.name))
            for series in chart.series or (Series(chart.key),)
        ]

    def _warmup(self, chart: Chart) -> Lines:
        """The same numbers before the student trained, one per epoch; empty if there are none."""
        lines = [self.metrics.series(series.name, "warmup") for series in chart.series or (Series(chart.key),)]
        return [(Ink(chart.warmup, AMBER), values) for values in lines if not np.isnan(values).all()]

    def _panels(self, rows: int = 1, columns: int = 1, height: float = 2.9, **layout) -> tuple[Figure, list[Axes]]:
        figure = Figure(figsize=(5.8, height), layout="constrained")
        return figure, list(figure.subplots(rows, columns, squeeze=False, **layout).flat)

    def _finish(self, chart: Chart, figure: Figure, legend: Sequence[Ink], lines: Lines, before: Lines = ()) -> Picture:
        figure.axes[-1].set_xlabel("step")
        figure.axes[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        if not any(axes.lines or axes.images for axes in figure.axes):
            return Picture(chart, None, [])
        named = [(ink.name or chart.unit, values) for ink, values in lines if not np.isnan(values).all()]
        epochs = self.metrics.series("epoch", "warmup") if before else None
        table = series_table(self.metrics.steps, named, epochs, [(ink.name, values) for ink, values in before])
        return Picture(chart, svg_of(figure, chart.key), list(legend) if len(legend) > 1 else [], table)

    def _draw(self, axes: Axes, values: np.ndarray, ink: Ink, smooth: bool = True) -> None:
        if np.isnan(values).all():
            return
        steps = binned(self.metrics.steps, DRAWN_POINTS)
        marker = {"marker": "o", "markersize": 3} if len(steps) == 1 else {}
        if smooth:
            axes.plot(steps, binned(values, DRAWN_POINTS), color=ink.color, linewidth=0.7, alpha=0.28)
            values = running_mean(values, self.window)
        line = {"color": ink.color, "linestyle": (0, ink.dashes) if ink.dashes else "-"}
        axes.plot(steps, binned(values, DRAWN_POINTS), linewidth=1.6, **line, **marker)

    def _draw_warmup(self, axes: Axes, lines: Lines) -> None:
        for ink, values in lines:
            axes.plot(self.metrics.series("epoch", "warmup"), values, color=ink.color, marker="o", markersize=3)
        axes.set_xlabel("warm-up epoch")
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))

    def _shares(self, chart: Chart) -> Picture:
        """A map with one row per perspective: the darker, the nearer to 1."""
        shares = self.metrics.by_perspective(chart.key, self.names)
        grid = np.array([binned(share, HEATMAP_COLUMNS) for share in shares])
        figure, (axes,) = self._panels(height=max(2.9, 0.9 + 0.2 * len(grid)))
        axes.grid(False)
        if not np.isnan(grid).all():
            ends = [(*to_rgb(BLUE), 0.04), (*to_rgb(BLUE), 1.0)]
            ramp = LinearSegmentedColormap.from_list("share", ends).with_extremes(bad=(0, 0, 0, 0))
            extent = (self.metrics.steps[0] - 0.5, self.metrics.steps[-1] + 0.5, len(grid) - 0.5, -0.5)
            axes.imshow(grid, cmap=ramp, vmin=0, vmax=1, aspect="auto", interpolation="none", extent=extent)
            axes.set_yticks(range(len(grid)), [n if len(n) <= 24 else n[:23] + "…" for n in self.names])
        return self._finish(chart, figure, [], list(zip(self.inks, shares, strict=True)))

    def _work(self, chart: Chart) -> Picture:
        """A waterfall of the run's totals: each bar shows what remains after one more saving."""
        work = self.metrics.work()
        if work is None:
            return Picture(chart, None, [])
        bars = {
            "naive step": (work.padded, 0),
            "no padding": (work.packed, 0),
            "prompts shared": (work.shared, 0),
            "backward for the selected only" if work.trained < work.shared else "as computed": (
                work.trained,
                work.observed,
            ),
        }
        legend = [Ink("forward and backward", BLUE), Ink("forward alone, counted a third", AMBER), Ink("saved", RULE)]
        short = EngFormatter(places=1)
        figure, (axes,) = self._panels()
        axes.set_axis_off()
        axes.set(xlim=(0, 1), ylim=(len(bars) - 0.75, -0.6))  # the first bar on top, each below its text
        before = 0.0
        for y, (name, (trained, observed)) in enumerate(bars.items()):
            backward, share = work.of_naive(trained), work.of_naive(trained, observed)
            for ink, start, end in zip(legend, (0, backward, share), (backward, share, before), strict=True):
                if start < end:
                    axes.barh(y, end - start, 0.4, start, color=ink.color)
            tokens = f"{short(trained)} + {short(observed)} / 3" if observed else short(trained)
            axes.text(0, y - 0.27, name)
            axes.text(1, y - 0.27, f"{percent(share)} · {tokens} tokens", color=MUTED, horizontalalignment="right")
            before = share
        return Picture(chart, svg_of(figure, chart.key), legend)
