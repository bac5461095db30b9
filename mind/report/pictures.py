"""The pictures of a run: inline SVG whose text and rules take the page's colours."""

import re
import warnings
from dataclasses import dataclass
from io import StringIO

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from mind.report.reading import Metrics, binned, running_mean

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
        pictures = {
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
            "tokens_per_s": series("tokens_per_s", "supervised tokens/s", ylim=(0, None)),
            "memory": series("memory", "MiB", memory, smooth=False, ylim=(0, None)),
            "work": self.work(),
        }
        if (self.metrics.series("dropped_mass") > 0).any():  # 0 says that the gradient is exact
            pictures["dropped_mass"] = series("dropped_mass", "share of probability", ylim=(0, None))
        return pictures

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

    def work(self) -> Picture:
        """A waterfall of the run's totals: each bar is what is left after one more saving."""
        work = self.metrics.work()
        if work is None:
            return Picture(None, [])
        bars = {
            "naive step": (work.padded, 0),
            "no padding": (work.packed, 0),
            "prompts shared": (work.shared, 0),
            "backward for the selected only": (work.trained, work.observed),
        }
        legend = [Ink("forward and backward", BLUE), Ink("forward alone, counted a third", AMBER), Ink("saved", RULE)]
        short = EngFormatter(places=1)
        figure, (axes,) = self._panels()
        axes.set_axis_off()
        axes.set(xlim=(0, 1), ylim=(len(bars) - 0.75, -0.6))  # the first on top, each below its text
        before = 0.0
        for y, (name, (trained, observed)) in enumerate(bars.items()):
            backward, share = work.of_naive(trained), work.of_naive(trained, observed)
            for ink, start, end in zip(legend, (0, backward, share), (backward, share, before), strict=True):
                if start < end:
                    axes.barh(y, end - start, 0.4, start, color=ink.colour)
            tokens = f"{short(trained)} + {short(observed)} / 3" if observed else short(trained)
            axes.text(0, y - 0.27, name)
            axes.text(1, y - 0.27, f"{share:.1%} · {tokens} tokens", color=MUTED, horizontalalignment="right")
            before = share
        return Picture(svg_of(figure, "work"), legend)
