"""A run folder as one self-contained page: `write_report(run)` writes `run/report.html`.

The page needs no network and no script: the pictures are inline SVG whose text and rules take the page's colours, so
that one file serves light and dark. Read are config.json and metrics.jsonl, and, where present, evaluation.json and
status.json. Every text that comes from a run is escaped: by jinja2 in the page, by matplotlib in a picture.
"""

import json
import math
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mind.errors import MindError

TEMPLATES = Path(__file__).parent / "templates"
DRAWN_POINTS = 400  # a longer series is drawn as means of equal bins, which keeps the page small
HEATMAP_COLUMNS = 120

# Written by matplotlib as plain colours, replaced by the page's custom properties in `svg_of`.
INK, MUTED, RULE = "#010203", "#010204", "#010205"
PAGE_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)"}
BLUE, AMBER = "#3f83f0", "#e08a1e"
HUES = (BLUE, AMBER, "#23a06b", "#e2504f", "#8f63dc", "#0fa3b8", "#d856a4", "#8b8f3a")
SHADES = ((0.0, ()), (0.35, (4, 2)), (-0.3, (1.2, 1.6)), (0.55, (6, 2, 1.2, 2)))  # (towards white or black, dashes)

STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "mind", "font.size": 9, "font.family": "DejaVu Sans",
    "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": RULE, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": RULE, "grid.linewidth": 0.6, "xtick.color": RULE, "ytick.color": RULE,
    "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED, "figure.facecolor": "none", "axes.facecolor": "none",
    "text.parse_math": False, "axes.formatter.useoffset": False, "axes.formatter.limits": (-3, 6),
}  # fmt: skip


@dataclass(frozen=True)
class Ink:
    """How one series looks, in the picture and in its legend."""

    name: str
    colour: str
    dashes: tuple[float, ...] = ()


@dataclass(frozen=True)
class Picture:
    svg: Markup | None  # None: the run holds no number for it
    legend: list[Ink]  # titles and captions are the template's


class Metrics:
    """metrics.jsonl as series. A missing or null number is nan; one that is not finite is nan and noted."""

    def __init__(self, path: Path):
        self.path = path
        self.notes: dict[str, str] = {}  # by topic, one each
        self.warmup: list[tuple[int, dict]] = []  # (line number, record)
        by_step: dict[float, tuple[int, dict]] = {}
        repeated = 0
        for line, record in self._records():
            if record["phase"] == "warmup":
                self.warmup.append((line, record))
                continue
            step = self._number(line, "step", record.get("step"))
            if math.isnan(step):
                raise MindError(f"{path}, line {line}: a train line needs a number as its step")
            repeated += step in by_step
            by_step[step] = (line, record)
        if not by_step:
            raise MindError(f"{path}: no train lines, so there is nothing to report")
        if repeated:
            self.notes["repeated"] = f"{path.name}: {repeated} lines repeat a step (a resumed run), the later counts"
        self.train = [by_step[step] for step in sorted(by_step)]
        self.steps = self.series("step")

    def _records(self) -> Iterator[tuple[int, dict]]:
        lines = read_bytes(self.path).split(b"\n")
        for number, text in enumerate(lines, start=1):
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except ValueError as error:
                if number == len(lines):
                    self.notes["last"] = f"{self.path.name}, line {number}: last line incomplete, left out"
                    return
                raise MindError(f"{self.path}, line {number}: not JSON ({error})") from None
            if not isinstance(record, dict) or record.get("phase") not in ("warmup", "train"):
                raise MindError(f'{self.path}, line {number}: expected an object with "phase" "warmup" or "train"')
            yield number, record

    def _number(self, line: int, name: str, value: object) -> float:
        if value is None:
            return math.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise MindError(f"{self.path}, line {line}: {name} is {value!r}, expected a number")
        if not math.isfinite(value):
            self.notes.setdefault(name, f"{self.path.name}, line {line}: {name} is not finite, such are left out")
            return math.nan
        return float(value)

    def _mapping(self, line: int, record: dict, name: str) -> dict:
        value = record.get(name) or {}
        if not isinstance(value, dict):
            raise MindError(f"{self.path}, line {line}: {name} is {value!r}, expected an object by perspective")
        return value

    def series(self, name: str, phase: str = "train") -> np.ndarray:
        records = self.train if phase == "train" else self.warmup
        return np.array([self._number(line, name, record.get(name)) for line, record in records])

    def by_perspective(self, name: str, perspectives: list[str]) -> list[np.ndarray]:
        rows = [(line, self._mapping(line, record, name)) for line, record in self.train]
        return [np.array([self._number(line, name, row.get(key)) for line, row in rows]) for key in perspectives]

    def perspectives(self) -> list[str]:
        names = ("l_real", "score", "alpha", "selected_share")
        return list(dict.fromkeys(k for line, r in self.train for n in names for k in self._mapping(line, r, n)))


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise MindError(f"{path}: missing, expected in a run folder") from None


def read_object(path: Path) -> dict:
    try:
        value = json.loads(read_bytes(path))
    except ValueError as error:
        raise MindError(f"{path}, line {getattr(error, 'lineno', 1)}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise MindError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values at each place, over those that are not nan (none: nan)."""
    sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(values))])
    counts = np.concatenate([[0], np.cumsum(~np.isnan(values))])
    start = np.maximum(np.arange(len(values)) + 1 - window, 0)
    count = counts[1:] - counts[start]
    return np.where(count > 0, (sums[1:] - sums[start]) / np.maximum(count, 1), np.nan)


def binned(values: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` means of equal consecutive bins, nan left out."""
    size = math.ceil(len(values) / limit)
    ends = [*range(size, len(values), size), len(values)]
    return np.array([running_mean(values[max(0, end - size) : end], size)[-1] for end in ends])


def perspective_inks(names: list[str]) -> list[Ink]:
    """Eight hues, then the same hues in three further shades, each with its own dashes: 32 that differ."""
    inks = []
    for index, name in enumerate(names):
        shift, dashes = SHADES[index // len(HUES) % len(SHADES)]
        target = 1.0 if shift > 0 else 0.0
        colour = to_hex([c + (target - c) * abs(shift) for c in to_rgb(HUES[index % len(HUES)])])
        inks.append(Ink(name, colour, dashes))
    return inks


def svg_of(figure: Figure, prefix: str) -> Markup:
    """Inline SVG without outside names: ids are prefixed, as many pictures share a page; colours follow the page."""
    buffer = StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser picks the font in the end
        figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for written, shown in PAGE_COLOURS.items():
        svg = svg.replace(written, shown)
    return Markup(svg)


class Pictures:
    """Draws the pictures of one run; each method returns one Picture."""

    def __init__(self, metrics: Metrics, perspectives: list[str], consistency_weight: float):
        self.metrics = metrics
        self.names, self.inks = perspectives, perspective_inks(perspectives)
        self.consistency_weight = consistency_weight
        self.window = min(25, max(3, len(metrics.steps) // 12))

    def draw(self) -> dict[str, Picture]:
        series, each = self._series, self._each_perspective
        rates = {"learning_rate": Ink("student", INK), "meta_learning_rate": Ink("MetaNet", AMBER)}
        memory = {"peak_rss_mib": Ink("process (RSS)", BLUE), "peak_gpu_mib": Ink("GPU", AMBER)}
        return {
            "losses": self.losses(),
            "accuracy": series("accuracy", "share of tokens"),
            "l_real": each("l_real", "nats a token"),
            "jsd": series("jsd", "mean JSD, nats"),
            "score": each("score", "score"),
            "alpha": each("alpha", "mean α"),
            "selected": series("selected", "perspectives", ylim=(0, None)),
            "selected_share": self.selected_share(),
            "meta_loss": self.meta_loss(),
            "rates": series("rates", "learning rate", rates, smooth=False, ylim=(0, None)),
            "tokens_per_s": series("tokens_per_s", "tokens/s", ylim=(0, None)),
            "memory": series("memory", "MiB", memory, smooth=False, ylim=(0, None)),
        }

    def _panels(self, rows: int = 1, columns: int = 1, height: float = 2.9, **layout) -> tuple[Figure, list[Axes]]:
        figure = Figure(figsize=(5.8, height), layout="constrained")
        return figure, list(figure.subplots(rows, columns, squeeze=False, **layout).flat)

    def _finish(self, key: str, figure: Figure, legend: list[Ink]) -> Picture:
        figure.axes[-1].set_xlabel("step")
        figure.axes[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        drawn = any(axes.lines or axes.images for axes in figure.axes)
        return Picture(svg_of(figure, key) if drawn else None, legend if len(legend) > 1 else [])

    def _draw(self, axes: Axes, values: np.ndarray, ink: Ink, smooth: bool = True) -> None:
        if np.isnan(values).all():
            return
        steps = binned(self.metrics.steps, DRAWN_POINTS)
        marker = {"marker": "o", "markersize": 3} if len(steps) == 1 else {}
        if smooth:
            axes.plot(steps, binned(values, DRAWN_POINTS), color=ink.colour, linewidth=0.7, alpha=0.28)
            values = running_mean(values, self.window)
        line = {"color": ink.colour, "linestyle": (0, ink.dashes) if ink.dashes else "-"}
        axes.plot(steps, binned(values, DRAWN_POINTS), linewidth=1.6, **line, **marker)

    def _lines(self, key: str, unit: str, lines: list[tuple[Ink, np.ndarray]], smooth=True, **axes_set) -> Picture:
        figure, (axes,) = self._panels()
        for ink, values in lines:
            self._draw(axes, values, ink, smooth)
        axes.set(ylabel=unit, **axes_set)
        return self._finish(key, figure, [ink for ink, values in lines if not np.isnan(values).all()])

    def _series(self, key: str, unit: str, inks: dict[str, Ink] | None = None, **options) -> Picture:
        inks = inks or {key: Ink("", BLUE)}
        return self._lines(key, unit, [(ink, self.metrics.series(name)) for name, ink in inks.items()], **options)

    def _each_perspective(self, name: str, unit: str) -> Picture:
        return self._lines(name, unit, list(zip(self.inks, self.metrics.by_perspective(name, self.names), strict=True)))

    def losses(self) -> Picture:
        legend = [Ink("total", INK), Ink("SFT", BLUE)]
        consistency = self.consistency_weight * self.metrics.series("consistency")
        below = bool((consistency > 0).any())
        figure, axes = self._panels(1 + below, height_ratios=[3, 1.2][: 1 + below], sharex=True)
        for ink, name in zip(legend, ("loss", "sft_loss"), strict=True):
            self._draw(axes[0], self.metrics.series(name), ink)
        axes[0].set_ylabel("nats a token")
        if below:
            legend.append(Ink(f"λ × consistency, λ = {self.consistency_weight:g} (lower panel)", AMBER))
            self._draw(axes[1], consistency, legend[-1])
            axes[1].set_ylabel("λ L_cons")
        return self._finish("losses", figure, legend)

    def selected_share(self) -> Picture:
        shares = self.metrics.by_perspective("selected_share", self.names)
        grid = np.array([binned(share, HEATMAP_COLUMNS) for share in shares])
        figure, (axes,) = self._panels(height=max(2.9, 0.9 + 0.2 * len(grid)))
        axes.grid(False)
        if not np.isnan(grid).all():
            ends = [(*to_rgb(BLUE), 0.04), (*to_rgb(BLUE), 1.0)]
            ramp = LinearSegmentedColormap.from_list("share", ends, bad=(0, 0, 0, 0))
            extent = (self.metrics.steps[0] - 0.5, self.metrics.steps[-1] + 0.5, len(grid) - 0.5, -0.5)
            axes.imshow(grid, cmap=ramp, vmin=0, vmax=1, aspect="auto", interpolation="none", extent=extent)
            axes.set_yticks(range(len(grid)), [n if len(n) <= 24 else n[:23] + "…" for n in self.names])
        return self._finish("selected_share", figure, [])

    def meta_loss(self) -> Picture:
        warmup = self.metrics.series("meta_loss", "warmup")
        before = not np.isnan(warmup).all()
        figure, axes = self._panels(1, 1 + before, width_ratios=[1, 2][-1 - before :], sharey=True)
        legend = [Ink("warm-up, MetaNet alone", AMBER), Ink("training", BLUE)][not before :]
        if before:
            axes[0].plot(self.metrics.series("epoch", "warmup"), warmup, color=AMBER, marker="o", markersize=3)
            axes[0].set_xlabel("warm-up epoch")
            axes[0].xaxis.set_major_locator(MaxNLocator(3, integer=True))
        self._draw(axes[-1], self.metrics.series("meta_loss"), legend[-1])
        axes[0].set_ylabel("KL, nats")
        return self._finish("meta_loss", figure, legend)


def _at(tree: object, *keys: str) -> object:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _number(tree: object, *keys: str) -> float | None:
    value = _at(tree, *keys)
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def _row(what: str, values: list[float | None], pattern: str = "{:.3f}", relative: bool = False) -> dict[str, str]:
    """One table row; of a share (pattern in %) the change is in points."""
    before, after = ("–" if value is None else pattern.format(value) for value in values)
    change = "–"
    if None not in values:
        difference = values[1] - values[0]
        change = f"{100 * difference:+.1f} points" if "%" in pattern else ("{:+" + pattern[2:]).format(difference)
        change += f" ({100 * difference / values[0]:+.1f} %)" if relative and values[0] else ""
    return {"what": what, "before": before, "after": after, "change": change.replace("-", "−")}


def evaluation_table(evaluation: dict) -> list[dict[str, str]]:
    """evaluation.json's content as rows of text: what, before, after, change; a dash where a side is missing.

    The held-out loss comes first; changes of a loss are also given relative to before, those of an accuracy in points.
    """
    sides = [evaluation.get("before"), evaluation.get("after")]
    if sides == [None, None]:
        return []

    def both(*keys: str) -> list[float | None]:
        return [_number(side, *keys) for side in sides]

    def names(*keys: str) -> list[str]:
        return list(dict.fromkeys(name for side in sides for name in _at(side, *keys) or ()))

    rows = [_row("held-out NLL, nats a token", both("heldout", "nll"), relative=True)]
    for name in names("heldout", "nll_by_perspective"):
        rows.append(_row(f"held-out NLL, {name}", both("heldout", "nll_by_perspective", name), relative=True))
    for label in names("files"):
        rows.append(_row(f"accuracy, {label}", both("files", label, "accuracy"), "{:.1%}"))
        for count in ("total", "correct", "unparsed"):
            rows.append(_row(f"{count}, {label}", both("files", label, count), "{:,.0f}"))
    for count in ("questions", "rationales", "tokens"):
        rows.append(_row(f"held-out {count}", both("heldout", count), "{:,.0f}"))
    return rows


def headline_rows(table: list[dict[str, str]], metrics: Metrics) -> list[dict[str, str]]:
    """The held-out loss, up to three accuracies, and the training's own start against its end."""
    accuracies = [row for row in table if row["what"].startswith("accuracy, ")]
    window = max(1, len(metrics.steps) // 10)
    rows = table[:1] + accuracies[:3]
    for what, name, pattern in (("train loss", "loss", "{:.3f}"), ("token accuracy", "accuracy", "{:.1%}")):
        means = running_mean(metrics.series(name), window)[[window - 1, -1]]
        ends = [float(value) if math.isfinite(value) else None for value in means]
        rows.append(_row(f"{what}, first and last {window} steps", ends, pattern, relative=name == "loss"))
    return rows


def flat(tree: dict, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    rows = {}
    for key, value in tree.items():
        rows |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return rows


def write_report(run: Path) -> Path:
    """Write run/report.html whole or not at all, and return its path.

    Raises MindError that names a missing config.json or metrics.jsonl, the file and line of malformed JSON, or that
    there are no train lines. What an interrupted run lacks is said in the report.
    """
    run = Path(run)
    config, metrics = read_object(run / "config.json"), Metrics(run / "metrics.jsonl")
    evaluation, status = (read_object(f) if f.exists() else {} for f in (run / "evaluation.json", run / "status.json"))
    named = _at(config, "data", "perspectives")
    named = [str(name) for name in named] if isinstance(named, list) else []
    perspectives = list(dict.fromkeys(named + metrics.perspectives()))
    table = evaluation_table(evaluation)
    pictures = Pictures(metrics, perspectives, _number(config, "objective", "consistency_weight") or 0.0)
    with matplotlib.rc_context(STYLE):
        drawn = pictures.draw()
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.get_template("report.html").render(
        run=run.resolve().name, model=_at(config, "student", "model"), perspectives=perspectives,
        steps=len(metrics.steps), window=pictures.window, bin_size=math.ceil(len(metrics.steps) / DRAWN_POINTS),
        headlines=headline_rows(table, metrics), table=table, evaluation=evaluation, pictures=drawn,
        page_colours=PAGE_COLOURS, notes=list(metrics.notes.values()), status=flat(status), config=flat(config),
    )  # fmt: skip
    report, unfinished = run / "report.html", run / f".report.{os.getpid()}.tmp"
    try:
        unfinished.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
        os.replace(unfinished, report)
    finally:
        unfinished.unlink(missing_ok=True)
    return report
