"""Draws the pictures of a comparison: inline SVG, each with a table of its content."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from mind.comparison.compare import MACRO, Comparison, Versus
from mind.comparison.curves import Curve, curves
from mind.comparison.reading import Results
from mind.comparison.tables import Table, curve_table, difference_tables
from mind.display import percent
from mind.report.charts import AMBER, BLUE, MUTED
from mind.report.pictures import STYLE, Ink, perspective_inks, svg_of
from mind.report.tables import decimal

PANELS = 3
"""Largest number of panels side by side in the picture by sets."""
SHOWN_CHARACTERS = 24


@dataclass(frozen=True)
class Picture:
    """A picture and its table."""

    key: str
    """Its name within the page."""
    title: str
    caption: str
    svg: Markup | None
    """None if there is nothing to draw."""
    legend: Sequence[Ink]
    table: Table
    wide: bool = False
    """Whether it has the whole width of the page."""


def pictures(comparison: Comparison, results: Results) -> list[Picture]:
    """All pictures, in the order of the page."""
    with matplotlib.rc_context(STYLE):
        return [*_forests(comparison), *_curves(results)]


def _forests(comparison: Comparison) -> Iterator[Picture]:
    by_group, by_set = difference_tables(comparison)
    caption = (
        f"Accuracy of {comparison.reference} less that of each other method, with 95 % intervals: to the right of 0 "
        f"{comparison.reference} is better. A hollow mark is of a single run."
    )
    groups, sets = comparison.groups, list(comparison.sets)
    inks = [Ink(group, _color(comparison, group)) for group in groups]
    yield Picture("groups", by_group.title, caption, _forest(comparison, [groups], "groups"), inks, by_group, True)
    panels = [[name] for name in sets]
    yield Picture("sets", by_set.title, caption, _forest(comparison, panels, "sets"), [], by_set, True)


def _forest(comparison: Comparison, panels: Sequence[Sequence[str]], key: str) -> Markup | None:
    """A forest plot with one panel per list of places, a row per method and a mark per place."""
    others = list(dict.fromkeys(one.other for one in comparison.versus))
    if not others:
        return None
    columns = min(PANELS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(11.6, rows * (0.9 + 0.3 * len(others))), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    for axes, places in zip(grid.flat, panels, strict=False):
        axes.axvline(0, color=MUTED, linewidth=1)
        for number, on in enumerate(places):
            color = _color(comparison, on)
            offset = 0.28 * (number - (len(places) - 1) / 2)
            for row, other in enumerate(others):
                if (versus := comparison.against(other, on)) is not None:
                    _mark(axes, row + offset, versus, color)
        axes.set_yticks(range(len(others)), [_short(other) for other in others])
        axes.set_ylim(len(others) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("points" if key == "groups" else f"{_short(places[0])}, points")
    return svg_of(figure, key)


def _color(comparison: Comparison, on: str) -> str:
    group = comparison.sets[on]["group"] if on in comparison.sets else on
    return AMBER if group in ("ood", MACRO["ood"]) else BLUE


def _mark(axes: Axes, y: float, versus: Versus, color: str) -> None:
    low, high = (100 * end for end in versus.interval)
    axes.plot([low, high], [y, y], color=color, linewidth=1.8)
    fill = color if versus.of_methods else "none"
    axes.plot([100 * versus.difference], [y], marker="o", markersize=5, color=color, markerfacecolor=fill)


def _curves(results: Results) -> Iterator[Picture]:
    trained = [method for method in results.methods.values() if method.trained and method.runs]
    inks = dict(zip((m.label for m in trained), perspective_inks([m.label for m in trained]), strict=True))
    share = 1 / len(results.plan.data.perspectives)

    def drawn(key: str, title: str, unit: str, caption: str, found: list[Curve], shown: Callable) -> Picture:
        legend = [inks[curve.label] for curve in found]
        return Picture(key, title, caption, _lines(key, unit, found, legend), legend, curve_table(title, found, shown))

    yield drawn(
        "loss", "Training loss", "nats per token",
        "Means over the runs of a method. Losses of different methods are different sums: compare their courses, not "
        "their heights.",
        curves(trained, "loss"), decimal,
    )  # fmt: skip
    yield drawn(
        "accuracy", "Token accuracy in training", "share of tokens",
        "The share of the labeled tokens that the student finds likeliest.", curves(trained, "accuracy"), percent,
    )  # fmt: skip
    yield drawn(
        "selected", "Perspectives selected, |I_dyn| / K", "share of the perspectives",
        "At 1 nothing is filtered; near 1 / K a single perspective is left. Methods that do not select have no line.",
        curves(trained, "selected", share), percent,
    )  # fmt: skip
    yield drawn(
        "alpha_entropy", "Entropy of alpha", "nats",
        "0 is a single perspective; log K is equal weights on all K.", curves(trained, "alpha_entropy"), decimal,
    )  # fmt: skip


def _lines(key: str, unit: str, found: Sequence[Curve], inks: Sequence[Ink]) -> Markup | None:
    if not found:
        return None
    figure = Figure(figsize=(5.8, 2.9), layout="constrained")
    axes = figure.subplots()
    for curve, ink in zip(found, inks, strict=True):
        style = (0, ink.dashes) if ink.dashes else "-"
        axes.plot(curve.flops, curve.values, color=ink.color, linewidth=1.4, linestyle=style)
    axes.set(xlabel="floating-point operations of the training", ylabel=unit)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return svg_of(figure, key)


def _short(name: str) -> str:
    return name if len(name) <= SHOWN_CHARACTERS else name[: SHOWN_CHARACTERS - 1] + "…"
