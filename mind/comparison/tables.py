"""Makes the tables of a comparison as texts, for the page and the Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mind.comparison.compare import Comparison, Summary, Versus
from mind.comparison.curves import Curve
from mind.comparison.wording import interval, points
from mind.display import percent
from mind.report.tables import NOTHING, count, decimal, duration

SHOWN_AT = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the training at which the table of a curve gives its values."""
ABOUT_DIFFERENCES = (
    "Points, the reference less the other. The 95 % interval and the p-values are of a two-way analysis of questions "
    "and seeds with quantiles of Student's t. Beside them are the percentiles of the plain hierarchical bootstrap, "
    "whose intervals are too wide if seeds differ little and too narrow if they differ much. p better is one-sided, p "
    "is two-sided, and p (Holm) is the latter adjusted for all comparisons with methods of that role. Detectable is "
    "the smallest difference that an experiment with this error shows in 80 % of the cases."
)


@dataclass(frozen=True)
class Table:
    """Texts in rows; the first column names the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    about: str = ""


def accuracy_table(comparison: Comparison) -> Table:
    """The mean accuracy of each method on each group and set."""
    places = _places(comparison)
    rows = [
        [method.label, method.role, _runs(method), *(_shown(method.accuracy.get(on), percent) for on in places)]
        for method in comparison.methods.values()
    ]
    about = "Means over runs. Macro ID and OOD are means over the primary sets of the group, which count alike."
    return Table("Accuracy", ["method", "role", "runs", *places], rows, about)


def difference_tables(comparison: Comparison) -> Iterator[Table]:
    """The reference against each other method: first by group, then by set."""
    columns = ["against", "on", "difference", "95 % interval", "bootstrap", "p better", "p", "p (Holm)", "detectable"]
    rows = [_difference(one) for one in comparison.versus if one.on not in comparison.sets]
    yield Table(f"Differences of {comparison.reference}, by group", columns, rows, ABOUT_DIFFERENCES)
    columns = [*columns, "discordance", "by two runs", "McNemar"]
    rows = [[*_difference(one), *_of_runs(one)] for one in comparison.versus if one.on in comparison.sets]
    about = (
        "Discordance is the share of the questions on which two runs differ; by two runs is the smallest difference "
        "that a single run of each would show. McNemar's exact p is given if each of the two methods has one run, as "
        "the questions that the reference alone and the other alone got right; comparison.json has it for each seed."
    )
    yield Table(f"Differences of {comparison.reference}, by set", columns, rows, about)


def cost_table(comparison: Comparison) -> Table:
    """Held-out NLL and the cost of training."""
    rows = [
        [
            method.label,
            _shown(method.nll, decimal),
            _shown(method.flops, "{:.3g}".format),
            _shown(method.trained_tokens, count),
            _shown(method.teacher_tokens, count),
            _shown(method.wall_s, duration),
        ]
        for method in comparison.methods.values()
    ]
    columns = ["method", "held-out NLL", "FLOPs", "trained tokens", "teacher tokens", "wall time"]
    about = (
        "Means over runs; a dash if a run lacks the number. NLL in nats per token. Teacher tokens are those of a "
        "teacher model in the training; what a teacher wrote for the data is in the data's card."
    )
    return Table("Held-out NLL and cost", columns, rows, about)


def answer_table(comparison: Comparison) -> Table:
    """The shares of answers without a result, and of answers that were cut off."""
    rows = [
        [method.label, *(f"{percent(method.unparsed[n])}, {percent(method.cut_off[n])}" for n in comparison.sets)]
        for method in comparison.methods.values()
        if method.runs
    ]
    about = (
        "The share of the answers that state no result that can be compared, and of those cut off at the most tokens."
    )
    return Table("Unparsed and cut off", ["method", *comparison.sets], rows, about)


def seed_table(comparison: Comparison) -> Table:
    """One row per run."""
    places = _places(comparison)
    rows = [
        [
            method.label,
            NOTHING if run.seed is None else str(run.seed),
            *(_shown(run.accuracy[on], percent) for on in places),
            _shown(run.nll, decimal),
            _shown(run.flops, "{:.3g}".format),
            _shown(run.wall_s, duration),
        ]
        for method in comparison.methods.values()
        for run in method.runs
    ]
    columns = ["method", "seed", *places, "held-out NLL", "FLOPs", "wall time"]
    return Table("Every run", columns, rows)


def curve_table(title: str, curves: Sequence[Curve], shown: Callable[[float], str]) -> Table:
    """The values of some curves at the start, at the end and in between."""
    rows = [
        [curve.label, str(curve.runs), f"{curve.flops[-1]:.3g}"]
        + [shown(float(curve.values[round(part * (len(curve.values) - 1))])) for part in SHOWN_AT]
        for curve in curves
    ]
    return Table(title, ["method", "runs", "FLOPs", *(f"at {percent(part)}" for part in SHOWN_AT)], rows)


def _places(comparison: Comparison) -> list[str]:
    return [*comparison.groups, *comparison.sets]


def _runs(method: Summary) -> str:
    return f"{len(method.runs)} of {len(method.runs) + len(method.missing)}"


def _shown(value: float | None, shown: Callable[[float], str]) -> str:
    return NOTHING if value is None else shown(value)


def _difference(one: Versus) -> list[str]:
    drawn = one.bootstrap
    return [
        one.other + ("" if one.of_methods else " (single run)"),
        one.on,
        points(one.difference),
        interval(one.interval),
        NOTHING if drawn is None else f"{interval(drawn.interval)}, p {probability(drawn.p)}",
        probability(one.p_better),
        probability(one.p),
        _shown(one.p_holm, probability),
        f"{100 * one.detectable:.1f}",
    ]


def _of_runs(one: Versus) -> list[str]:
    single = one.single_runs[0] if len(one.single_runs) == 1 else None
    return [
        _shown(one.discordance, percent),
        NOTHING if one.detectable_by_two_runs is None else f"{100 * one.detectable_by_two_runs:.1f}",
        NOTHING if single is None else f"{single.ours_alone}, {single.theirs_alone}: {probability(single.p)}",
    ]


def probability(p: float) -> str:
    """A p-value as text, such as "0.031"; never 0."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
