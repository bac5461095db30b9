"""What a report shows of a run, as data: sections of charts, and which numbers of metrics.jsonl each draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

# Written by matplotlib as plain colors, replaced by the page's custom properties (pictures.svg_of).
INK, MUTED, RULE = "#010203", "#010204", "#010205"
BLUE, AMBER = "#3f83f0", "#e08a1e"


@dataclass(frozen=True)
class Series:
    """A number of the lines of metrics.jsonl, as a line of a chart."""

    name: str
    """Its key there."""
    label: str = ""
    """Its name in the legend, which a chart of several series has."""
    color: str = BLUE
    scale: float = 1.0
    """What is drawn is the number times this."""
    dashes: tuple[float, ...] = ()
    """Lengths of dash and gap, in widths of the line: a dashed line leaves one that it runs over visible."""
    brief: str = ""
    """How the progress bar says it, such as "t {:.2f}"; empty: not at all."""


@dataclass(frozen=True)
class Chart:
    """A picture of the report, with steps from left to right."""

    key: str
    """Names it within the page. A chart without `series` draws the number of this name."""
    title: str
    unit: str
    """Of the vertical axis."""
    caption: str
    """What to look for in it."""
    series: tuple[Series, ...] = ()
    form: Literal["lines", "perspectives", "shares", "work"] = "lines"
    """"lines": the series; "perspectives": an object of numbers by perspective, a line each; "shares": such an object
    of numbers from 0 to 1, as a map with a row each; "work": the tokens of the run, saving by saving."""
    smooth: bool = True
    """Draw a running mean over the logged values."""
    from_zero: bool = False
    """The vertical axis begins at 0."""
    lower: Chart | None = None
    """Drawn in a smaller panel below, if any of its numbers is positive."""
    warmup: str = ""
    """The legend of the same numbers in phase "warmup", which are drawn in a panel on the left if there are any."""
    only_if_positive: bool = False
    """Leave the chart out if none of its numbers is positive."""


def briefly(charts: Iterable[Chart], logs: Mapping[str, Any]) -> str:
    """The latest of the charts' numbers that have a `brief` and are among the `logs`, as words for a progress bar."""
    series = [one for chart in charts for one in chart.series if one.brief and one.name in logs]
    return ", ".join(one.brief.format(one.scale * logs[one.name]) for one in series)


@dataclass(frozen=True)
class Section:
    """Charts under a heading."""

    title: str
    charts: tuple[Chart, ...]


LOSS = Chart(
    "losses",
    "Loss",
    "nats per token",
    "It should fall; a rise that stays is a learning rate that is too high.",
    (Series("loss", "total", INK),),
)
ACCURACY = Chart(
    "accuracy",
    "Token accuracy",
    "share of tokens",
    "It should rise while the loss falls; a jump towards 1 is memorizing.",
)
L_REAL = Chart(
    "l_real",
    "Loss of each perspective (L_real)",
    "nats per token",
    "The lowest line is the perspective that the student finds easiest; all should fall.",
    form="perspectives",
)
DROPPED_MASS = Chart(
    "dropped_mass",
    "Probability outside the sparse gradient",
    "share of probability",
    "Mean over the labeled tokens; one common distribution stands in for it. It should be small, and fall as the "
    "student grows surer.",
    from_zero=True,
    only_if_positive=True,  # 0 says that the gradient is exact
)
LEARNING_RATE = Chart(
    "rates",
    "Learning rate",
    "learning rate",
    "It should rise in the warm-up of the schedule, then fall.",
    (Series("learning_rate", "student", INK),),
    smooth=False,
    from_zero=True,
)
STUDENT = Section("Student", (LOSS, ACCURACY, L_REAL, DROPPED_MASS, LEARNING_RATE))
"""What the trainer logs for every method."""
MACHINE = Section(
    "Machine",
    (
        Chart(
            "tokens_per_s",
            "Throughput",
            "labeled tokens/s",
            "Labeled tokens of rationales and answers, trained on or observed. It should be flat; it dips while "
            "checkpoints are saved or another process is busy.",
            from_zero=True,
        ),
        Chart(
            "memory",
            "Peak memory",
            "MiB",
            "A plateau is healthy; a line that keeps climbing is a leak or ever longer sequences.",
            (Series("peak_rss_mib", "process (RSS)"), Series("peak_gpu_mib", "GPU", AMBER)),
            smooth=False,
            from_zero=True,
        ),
        Chart(
            "work",
            "Work of a step",
            "",
            "What each saving leaves, over the run, of a naive step's work, which pads all rationales to the longest "
            "and computes each with a backward pass. A token without one counts a third. The table beside it has the "
            "numbers.",
            form="work",
        ),
    ),
)
