"""What a page shows of a latent analysis, read from the latent.json that `mind latent` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mind.display import listed, number_of
from mind.errors import require
from mind.report.charts import AMBER, BLUE, MUTED
from mind.report.pictures import STYLE, Ink, perspective_inks, svg_of
from mind.report.reading import number_at, value_at
from mind.report.tables import NOTHING
from mind.typed_json import read_json

LATENT = "latent.json"
_NEEDED = ("views", "claim", "missing", "coverage", "maps", "runs", "perspectives", "questions", "student")
_GROUPS = {"experts": Ink("experts", BLUE), "null": Ink("null experts", AMBER)}

Cells = list[dict[str, Any]]
"""Rows of a table, as texts by column."""


@dataclass(frozen=True)
class LatentPicture:
    """A picture with what to look for in it."""

    key: str
    title: str
    svg: Markup
    legend: list[Ink]
    caption: str


@dataclass(frozen=True)
class LatentSection:
    """An analysis as texts and pictures."""

    sentence: str
    """What may be said."""
    about: str
    """Student, runs and questions."""
    conditions: Cells
    probes: Cells
    clusters: Cells
    coverage: Cells
    coverage_view: str
    """By whose vectors the perspectives of samples are told."""
    uniform_coverage: str
    missing: list[str]
    pictures: list[LatentPicture]


def latent_section(folder: Path) -> LatentSection | None:
    """What the latent.json in `folder` holds; None if there is none. Raises MindError for one that is malformed."""
    file = folder / LATENT
    if not file.exists():
        return None
    analysis = read_json(file)
    known = isinstance(analysis, dict) and all(name in analysis for name in _NEEDED)
    require(known, f"{file}: expected what `mind latent` writes, an object with {', '.join(_NEEDED)}")
    names = analysis["perspectives"]
    with matplotlib.rc_context(STYLE):
        pictures = [_accuracies(analysis), *_maps(analysis)]
    uniform = number_at(analysis, "uniform_coverage")
    return LatentSection(
        sentence=analysis["claim"]["sentence"],
        about=_about(analysis),
        conditions=[_condition(row) for row in analysis["claim"]["conditions"]],
        probes=[_probes(name, view) for name, view in analysis["views"].items()],
        clusters=[_clusters(name, view) for name, view in analysis["views"].items()],
        coverage=[_coverage(row, names) for row in analysis["coverage"]],
        coverage_view=_view(analysis, value_at(analysis, "coverage_view")),
        uniform_coverage=NOTHING if uniform is None else f"{uniform:.2f}",
        missing=analysis["missing"],
        pictures=[picture for picture in pictures if picture is not None],
    )


def _about(analysis: Mapping[str, Any]) -> str:
    def seeds(group: str) -> str:
        found = value_at(analysis, "runs", group, "seeds")
        return "none" if found is None else f"{number_of(len(found), 'seed')} ({listed([str(seed) for seed in found])})"

    perspectives, questions = len(analysis["perspectives"]), number_of(analysis["questions"]["count"], "question")
    return (
        f"Student {analysis['student']}; {perspectives} perspectives; experts of {seeds('experts')}, null experts of "
        f"{seeds('null')}; {questions} that none of them was trained on."
    )


def _view(analysis: Mapping[str, Any], name: Any) -> str:
    """As in "V5 (TF-IDF of the teacher's rationales)"."""
    what = value_at(analysis, "views", name, "what")
    return NOTHING if what is None else f"{name} ({what})"


def _condition(row: Mapping[str, Any]) -> dict[str, str]:
    points = [number_at(row, name) for name in ("value", "low", "high")]
    if None not in points:
        value, low, high = (f"{100 * (number or 0):+.1f}".replace("-", "−") for number in points)
        shown = f"{value} points ({low} to {high})"
    else:
        p = number_at(row, "p")
        shown = NOTHING if p is None else f"p = {p:.3f}"
    holds = {True: "yes", False: "no", None: "not known: there is no such control"}[row["holds"]]
    return {"what": row["name"], "value": shown, "holds": holds}


def _probes(name: str, view: Mapping[str, Any]) -> dict[str, str]:
    cells = {"view": name, "what": view["what"], "questions": str(value_at(view, "experts", "questions") or NOTHING)}
    for probe in ("new_student", "by_question"):
        for group in _GROUPS:
            cells[f"{probe}_{group}"] = _estimate(value_at(view, group, probe, "accuracy"), 100, "%", 1)
    return cells


def _clusters(name: str, view: Mapping[str, Any]) -> dict[str, str]:
    cells = {"view": name, "what": view["what"]}
    for group in _GROUPS:
        for measure in ("count", "nmi", "ari", "silhouette"):
            places = 1 if measure == "count" else 2
            cells[f"{measure}_{group}"] = _estimate(value_at(view, group, "clusters", measure), 1, "", places)
    widths = value_at(view, "experts", "clusters", "by_width") or {}
    cells["widths"] = ", ".join(f"{width}: {some['count']:.0f}, {some['nmi']:.2f}" for width, some in widths.items())
    return cells


def _coverage(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    shares = sorted(zip(row["shares"], names, strict=True), reverse=True)
    return {
        "what": row["student"],
        "method": row["method"],
        "coverage": f"{row['coverage']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
        "shares": ", ".join(f"{name} {100 * share:.0f} %" for share, name in shares[:3]),
    }


def _estimate(estimate: Any, scale: float, unit: str, places: int) -> str:
    """As in "38.9 % (22.3 to 55.6)"."""
    value, low, high = (number_at(estimate, name) for name in ("value", "low", "high"))
    if value is None:
        return NOTHING
    interval = "" if low is None or high is None else f" ({scale * low:.{places}f} to {scale * high:.{places}f})"
    return f"{scale * value:.{places}f}{unit and f' {unit}'}{interval}".replace("-", "−")


def _accuracies(analysis: Mapping[str, Any]) -> LatentPicture | None:
    """The probe of new students by view, of experts and null experts."""
    views = list(analysis["views"].items())
    figure = Figure(figsize=(5.8, 0.9 + 0.34 * len(views)), layout="constrained")
    axes = figure.subplots()
    drawn = False
    for place, (_, view) in enumerate(views):
        for shift, (group, ink) in zip((-0.13, 0.13), _GROUPS.items(), strict=True):
            accuracy = value_at(view, group, "new_student", "accuracy")
            value, low, high = (number_at(accuracy, name) for name in ("value", "low", "high"))
            if value is not None and low is not None and high is not None:
                axes.plot([low, high], [place + shift] * 2, color=ink.color, linewidth=1.6)
                axes.plot(value, place + shift, "o", color=ink.color, markersize=4)
                drawn = True
    if not drawn:
        return None
    axes.axvline(1 / len(analysis["perspectives"]), color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)))
    axes.set_yticks(range(len(views)), [name for name, _ in views])
    axes.set(xlim=(-0.02, 1.02), ylim=(len(views) - 0.5, -0.5), xlabel="accuracy of the probe of new students")
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    legend = [*_GROUPS.values(), Ink("chance", MUTED, (4, 2))]
    caption = (
        "Tested on students of a seed, and on questions, that the probe has not seen; 95 % intervals over "
        "perspectives. V4 counts if the experts are above the null experts, V1 if it is above V3 and V5. The table "
        "above has the numbers."
    )
    return LatentPicture(
        "latent-probes", "Can the perspective be read off?", svg_of(figure, "latent-probes"), legend, caption
    )


def _maps(analysis: Mapping[str, Any]) -> list[LatentPicture]:
    """The maps of a view and group side by side."""
    inks = perspective_inks([str(name) for name in analysis["perspectives"]])
    pictures = []
    for place, (view, group) in enumerate(dict.fromkeys((one["view"], one["group"]) for one in analysis["maps"])):
        maps = [one for one in analysis["maps"] if (one["view"], one["group"]) == (view, group)]
        figure = Figure(figsize=(5.8, 2.9), layout="constrained")
        for axes, one in zip(figure.subplots(1, len(maps), squeeze=False).flat, maps, strict=True):
            for ink, points in zip(inks, one["points"], strict=True):
                axes.plot(*zip(*points, strict=True), ".", color=ink.color, markersize=3.5)
            axes.set(xticks=[], yticks=[], title=f"t-SNE, seed {one['seed']}")
        title = f"{view}, {_GROUPS[group].name}: {value_at(analysis, 'views', view, 'what')}"
        caption = "Neither distances nor the number of clusters can be read off these maps. latent.json has the points."
        key = f"latent-map-{place}"
        pictures.append(LatentPicture(key, title, svg_of(figure, key), inks, caption))
    return pictures
