"""Writes the report of a filtered data set as one self-contained page that needs no network and no script.

Every text on it was written by a model, a user or a stranger. The template environment shortens, cleans and escapes
each text that it prints, so that no place in the template can forget it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from mind.display import percent
from mind.files import replacing
from mind.records import Question, Response, Verdict
from mind.report.data_tables import DataTable
from mind.report.page import page_template
from mind.report.pictures import AMBER, BLUE, STYLE, svg_of

SHOWN_QUESTIONS = 12
SHOWN_PER_REASON = 6
LENGTH_BINS, RATE_BINS = 40, 10


@dataclass(frozen=True)
class ReportInput:
    """The contents of the page, as plain data."""

    title: str
    summary: Mapping[str, Any]
    """{"rationales": {"read", "kept", "dropped": {reason: n}, "perspectives": {name: {"read", "right", "kept",
    "checked", "adherent"}}, "teachers": {name: {"read", "right", "kept", "characters", "tokens"}}}, "questions": {fate:
    n}}. "checked" is the number of rationales whose adherence could be checked; characters and tokens are medians over
    the kept ones."""
    kept_lengths: Sequence[int]
    """Characters of each kept rationale."""
    dropped_lengths: Sequence[int]
    """Characters of each dropped rationale."""
    pass_rates: Sequence[float]
    """The fraction of right answers per question, the teacher's or a student's; without questions that have none."""
    tokens: Mapping[str, int]
    """{"prompt", "completion", "uncounted_responses"}: all of the data card, with attempts that gave no answer."""
    cost: Mapping[str, Any] | None
    """{"amount", "currency"}, as in the data card; None without a price."""
    kept: Sequence[Question]
    """Examples with their rationales; the first SHOWN_QUESTIONS are shown."""
    dropped: Mapping[str, Sequence[tuple[Question | None, Response, Verdict]]]
    """Reason -> examples; the first SHOWN_PER_REASON are shown. The question is None if it is not known."""


def write_dataset_report(data: ReportInput, path: str | os.PathLike[str]) -> Path:
    """Writes the page in one step, and returns its path. Its size does not grow with the size of the texts."""
    with matplotlib.rc_context(STYLE):
        lengths = _lengths(data.kept_lengths, data.dropped_lengths)
        pass_rates = _pass_rates(data.pass_rates)
    page = page_template("dataset.html").render(
        title=data.title,
        headlines=_headlines(data),
        reasons=_bars([("kept", data.summary["kept"]), *data.summary["dropped"].items()]),
        fates=_bars(list(data.summary["questions"].items())),
        perspectives=_perspectives(data.summary["perspectives"]),
        teachers=_teachers(data.summary["teachers"]),
        lengths=lengths,
        pass_rates=pass_rates,
        colors={"kept": BLUE, "dropped": AMBER},
        kept=data.kept[:SHOWN_QUESTIONS],
        dropped={reason: examples[:SHOWN_PER_REASON] for reason, examples in data.dropped.items()},
        counts=data.summary["dropped"],
    )
    with replacing(path) as file:
        file.write(page)
    return Path(path)


def _headlines(data: ReportInput) -> list[dict[str, str]]:
    summary, tokens = data.summary, data.tokens
    read, kept, questions = summary["read"], summary["kept"], summary["questions"]
    right = sum(counts["right"] for counts in summary["perspectives"].values())
    rate = f"pass rate of a question {percent(float(np.mean(data.pass_rates)))}" if len(data.pass_rates) else ""
    uncounted = tokens["uncounted_responses"]
    cost = "not known" if data.cost is None else f"{data.cost['amount']:,.2f} {data.cost['currency']}"
    rows = [
        ("questions kept", f"{questions.get('kept', 0):,}", f"of {sum(questions.values()):,}"),
        ("rationales kept", f"{kept:,}", f"of {read:,} ({_percent(kept, read)})"),
        ("right answers", _percent(right, read), rate),
        (
            "tokens",
            f"{tokens['prompt'] + tokens['completion']:,}",
            f"{tokens['prompt']:,} of prompts, {tokens['completion']:,} of answers",
        ),
        ("cost", cost, f"without {uncounted:,} replies whose tokens are not known" if uncounted else ""),
    ]
    return [dict(zip(("what", "value", "note"), row, strict=True)) for row in rows]


def _bars(counts: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """Table rows with a bar each, whose width is the count's percentage of all but at least visible; no bar for 0."""
    total = sum(count for _, count in counts)
    return [
        {
            "name": name,
            "count": count,
            "share": _percent(count, total),
            "width": max(round(100 * count / total, 2), 0.3),
            "color": "kept" if name == "kept" else "dropped",
        }
        for name, count in counts
        if count
    ]


def _perspectives(perspectives: Mapping[str, Mapping[str, int]]) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "read": f"{counts['read']:,}",
            "right": _percent(counts["right"], counts["read"]),
            "kept": f"{counts['kept']:,}",
            "adherent": _percent(counts["adherent"], counts["checked"]),
        }
        for name, counts in perspectives.items()
    ]


def _teachers(teachers: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "read": f"{counts['read']:,}",
            "right": _percent(counts["right"], counts["read"]),
            "kept": f"{counts['kept']:,}",
            "characters": "–" if counts["characters"] is None else f"{counts['characters']:,.0f}",
            "tokens": "–" if counts["tokens"] is None else f"{counts['tokens']:,.0f}",
        }
        for name, counts in teachers.items()
    ]


def _percent(part: int, whole: int) -> str:
    return percent(part / whole) if whole else "–"


@dataclass(frozen=True)
class Histogram:
    """A picture and its numbers."""

    svg: Markup
    table: DataTable


def _lengths(kept: Sequence[int], dropped: Sequence[int]) -> Histogram | None:
    """A histogram of both; its last bin holds the longest hundredth, which would otherwise squeeze the others."""
    if not len(kept) + len(dropped):
        return None
    longest = max(np.percentile([*kept, *dropped], 99), 1)
    return _histogram(
        "lengths",
        {"kept": (BLUE, np.minimum(kept, longest)), "dropped": (AMBER, np.minimum(dropped, longest))},
        np.linspace(0, longest, LENGTH_BINS + 1),
        "characters",
        "rationales",
    )


def _pass_rates(rates: Sequence[float]) -> Histogram | None:
    if not len(rates):
        return None
    return _histogram(
        "rates",
        {"questions": (BLUE, rates)},
        np.linspace(0, 1, RATE_BINS + 1),
        "right answers",
        "questions",
        formatter=PercentFormatter(1, symbol=" %"),
    )


def _histogram(
    key: str, series: Mapping[str, tuple[str, ArrayLike]], bins: np.ndarray, xlabel: str, ylabel: str, formatter=None
) -> Histogram:
    """A histogram of several series: name -> (color, values)."""
    figure = Figure(figsize=(5.8, 2.9), layout="constrained")
    axes = figure.subplots()
    columns = []
    for color, values in series.values():
        counts, _ = np.histogram(values, bins)
        columns.append(counts)
        place = {"x": bins[:-1], "height": counts, "width": np.diff(bins), "align": "edge"}
        axes.bar(**place, color=color, alpha=0.35)
        axes.bar(**place, color="none", edgecolor=color, linewidth=0.8)
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(bins[0], bins[-1]), ylim=(0, None))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    if formatter is not None:
        axes.xaxis.set_major_formatter(formatter)
    ends = [f"{edge:.0%}".replace("%", " %") if formatter is not None else f"{edge:,.0f}" for edge in bins]
    rows = [
        [f"{low} to {high}", *(f"{count:,}" for count in counts)]
        for low, high, *counts in zip(ends, ends[1:], *columns, strict=False)
        if any(counts)
    ]
    return Histogram(svg_of(figure, key), DataTable([xlabel, *series], rows))
