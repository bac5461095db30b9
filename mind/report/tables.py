"""Makes the tables of a run as rows of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mind.config import flat
from mind.display import number_of, percent
from mind.intervals import paired_difference
from mind.report.charts import Series
from mind.report.reading import Metrics, Work, number_at, running_mean, value_at

Pairs = Mapping[str, Sequence[tuple[bool, bool]]]
"""Whether each question was answered correctly (before, after), by the label of its file."""

NOTHING = "–"
"""Shown for an unknown value."""


@dataclass(frozen=True)
class Row:
    """A number before and after training, as texts."""

    what: str
    before: str
    after: str
    change: str
    intervals: tuple[str, str, str] | None = None
    """The 95 % intervals of before, after and the change; None if this is not an accuracy."""

    def cells(self) -> Iterator[dict[str, str]]:
        """The printed lines: the numbers and, if there are any, the intervals."""
        yield {"what": self.what, "before": self.before, "after": self.after, "change": self.change}
        if self.intervals is not None:
            yield dict(zip(("what", "before", "after", "change"), ("95 % interval", *self.intervals), strict=True))


def decimal(number: float) -> str:
    """A number such as "1.227"."""
    return f"{number:.3f}"


def count(number: float) -> str:
    """A count such as "1,227"."""
    return f"{number:,.0f}"


def _row(what: str, values: Sequence[float | None], shown: Callable[[float], str], relative: bool = False) -> Row:
    before, after = values
    change = NOTHING
    if before is not None and after is not None:
        difference = after - before
        change = f"{100 * difference:+.1f} points" if shown is percent else _signed(difference, shown)
        change += f" ({100 * difference / before:+.1f} %)" if relative and before else ""
    first, last = (NOTHING if value is None else shown(value) for value in values)
    return Row(what, first, last, change.replace("-", "−"))


def _signed(difference: float, shown: Callable[[float], str]) -> str:
    return ("-" if difference < 0 else "+") + shown(abs(difference))


def evaluation_table(evaluation: Mapping[str, Any], pairs: Pairs) -> list[Row]:
    """The content of evaluation.json: the accuracies, the held-out loss, and the loss of each perspective.

    A dash replaces a missing side. Changes of a loss are also given relative to before, changes of an accuracy in
    points, with their interval if `pairs` has the questions.
    """
    sides = [evaluation.get("before"), evaluation.get("after")]
    if sides == [None, None]:
        return []
    rows = [row for label in _names(sides, "files") for row in _accuracy_rows(label, sides, pairs.get(label, ()))]
    rows.append(_row(f"held-out NLL, {_heldout_size(sides)}", _both(sides, "heldout", "nll"), decimal, relative=True))
    for name in _names(sides, "heldout", "nll_by_perspective"):
        nll = _both(sides, "heldout", "nll_by_perspective", name)
        rows.append(_row(f"held-out NLL, {name}", nll, decimal, relative=True))
    return rows


def _accuracy_rows(label: str, sides: Sequence[Any], pairs: Sequence[tuple[bool, bool]]) -> tuple[Row, ...]:
    shares, unparsed, cut_off = (_both(sides, "files", label, name) for name in ("accuracy", "unparsed", "cut_off"))
    accuracy = _row(f"accuracy, {label}{_file_size(label, sides)}", shares, percent)
    before, after = (accuracy_interval(value_at(side, "files", label)) for side in sides)
    change = _points(*paired_difference(pairs)) if pairs else NOTHING
    return (
        Row(accuracy.what, accuracy.before, accuracy.after, accuracy.change, (before, after, change)),
        _row(f"responses without an answer, {label}", unparsed, count),
        _row(f"responses cut off, {label}", cut_off, count),
    )


def accuracy_interval(result: object) -> str:
    """The interval of an accuracy in evaluation.json, such as "48.8 to 66.7 %"."""
    match value_at(result, "interval"):
        case [int() | float() as low, int() | float() as high] if 0 <= low <= high <= 1:
            return f"{100 * low:.1f} to {percent(high)}"
    return NOTHING


def _points(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f} points".replace("-", "−")


def _file_size(label: str, sides: Sequence[Any]) -> str:
    sizes = {total for total in _both(sides, "files", label, "total") if total is not None}
    return f" ({number_of(sizes.pop(), 'question')})" if len(sizes) == 1 else ""


def _heldout_size(sides: Sequence[Any]) -> str:
    for side in sides:
        questions, rationales = (number_at(side, "heldout", name) for name in ("questions", "rationales"))
        if questions is not None and rationales is not None:
            return f"nats per token ({number_of(rationales, 'rationale')} of {number_of(questions, 'question')})"
    return "nats per token"


def _both(sides: Sequence[Any], *keys: str) -> list[float | None]:
    return [number_at(side, *keys) for side in sides]


def _names(sides: Sequence[Any], *keys: str) -> list[str]:
    return list(dict.fromkeys(name for side in sides for name in value_at(side, *keys) or ()))


def headline_rows(table: Sequence[Row], metrics: Metrics, loss: Series) -> list[Row]:
    """At most four rows: one or two accuracies, the held-out loss, and the first against the last value of training
    (or of a search, which trains on nothing). Only steps with this `loss` count: steps of another kind are not
    comparable."""
    rows = [row for row in table if row.intervals][:2]
    rows += [row for row in table if row.what.startswith("held-out NLL, nats")]
    if math.isfinite(best := float(metrics.series("best_loss")[-1])):
        first = float(metrics.series("loss")[0])
        return [*rows, _row("objective, first and best trial", [first, best], decimal)][:4]
    its = np.isfinite(metrics.series(loss.name))
    its = its if its.any() else ~its
    window = max(1, int(its.sum()) // 10)
    ends = "first and last step" if window == 1 else f"first and last {window} steps"
    of = "" if loss.name == "loss" else f" of {loss.label}"
    for what, name, shown in (("train loss", loss.name, decimal), ("token accuracy", "accuracy", percent)):
        means = running_mean(metrics.series(name)[its], window)[[window - 1, -1]]
        values = [float(value) if math.isfinite(value) else None for value in means]
        rows.append(_row(f"{what}{of}, {ends}", values, shown, relative=name == loss.name))
    return rows[:4]


def work_table(work: Work, counted: Mapping[str, int]) -> list[dict[str, str]]:
    """The tokens of a run as rows of text: what, tokens, and their cost as a share of the naive run's. `counted` are
    the tokens of the whole run by kind; those of a teacher model have no share."""
    rows = {
        "naive run": (work.padded, 0),
        "without padding": (work.packed, 0),
        "with shared prompts": (work.shared, 0),
        "trained: forward and backward pass": (work.trained, 0),
        "observed: forward pass alone": (0, work.observed),
        "this run: trained and observed": (work.trained, work.observed),
    }
    others = {
        "observed before the first step": counted.get("observed", 0) - work.observed,
        "searched: forward pass alone": counted.get("search", 0),
        "generated: the student's own answers": counted.get("generated", 0),
        "encoded: texts as vectors": counted.get("encoded", 0),
    }
    rows |= {what: (0, tokens) for what, tokens in others.items() if tokens > 0}
    table = [
        {"what": what, "tokens": f"{sum(tokens):,}", "share": percent(work.of_naive(*tokens))}
        for what, tokens in rows.items()
    ]
    if scored := counted.get("teacher_scored"):
        table.append({"what": "scored by the teacher model", "tokens": f"{scored:,}", "share": NOTHING})
    return table


def status_rows(status: Mapping[str, Any], without_work: bool = False) -> list[dict[str, str]]:
    """The content of status.json as rows of text: what, value. A number without a proper name gets the words of its
    key.

    `without_work`: leave out the tokens by kind, since the page has a table of them.
    """
    rows = []
    for key, value in flat(status).items():
        if key.startswith("work.") and without_work:
            continue
        kind = key.removesuffix("_parameters")
        what, shown = _STATUS.get(key) or (
            (f"parameters, {kind}", count) if kind != key else (key.replace("_", " "), str)
        )
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        rows.append({"what": what, "value": NOTHING if value is None else shown(value) if number else str(value)})
    return rows


def duration(seconds: float) -> str:
    """A duration such as "12.3 s", "4.5 min", "6.7 h"."""
    return (
        f"{seconds:.1f} s"
        if seconds < 100
        else f"{seconds / 60:.1f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def operations(number: float) -> str:
    """A number of operations such as "3.35 GFLOP"."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:,.3g} {unit}FLOP"
    return f"{number:,.0f} FLOP"


def _mebibytes(number: float) -> str:
    return f"{count(number)} MiB"


_STATUS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "wall_s": ("time of the whole run", duration),
    "train_s": ("time of the training", duration),
    "steps": ("optimizer steps", count),
    "tokens": ("labeled tokens", count),
    "tokens_per_s": ("labeled tokens per second of training steps", count),
    "work.padded": ("tokens of a naive run", count),
    "work.packed": ("tokens without padding", count),
    "work.shared": ("tokens with shared prompts", count),
    "work.trained": ("tokens of the student, forward and backward", count),
    "work.observed": ("tokens of the student, forward alone", count),
    "work.search": ("tokens of the student in a search, forward alone", count),
    "work.generated": ("tokens of the student's own answers", count),
    "work.encoded": ("tokens of texts as vectors", count),
    "work.teacher_scored": ("tokens of the teacher model", count),
    "flops": ("floating-point operations", operations),
    "work_of_naive": ("work, compared with a naive run", percent),
    "student_parameters": ("parameters of the student", count),
    "trained_parameters": ("parameters that are trained", count),
    "metanet_parameters": ("parameters of MetaNet", count),
    "peak_rss_mib": ("peak memory of the process", _mebibytes),
    "peak_gpu_mib": ("peak memory on the GPU", _mebibytes),
}
"""Key of status.json -> its name, and the function that formats its number."""


def origin_rows(starts: Sequence[Mapping[str, Any]], inputs: Mapping[str, Any]) -> list[dict[str, str]]:
    """The origin of a run as rows of text: what, value. First each start with its command and versions, then the
    data."""
    rows = []
    for number, start in enumerate(starts, 1):
        name = "start" if len(starts) == 1 else f"start {number} of {len(starts)}"
        versions = value_at(start, "versions") or {}
        rows += [
            {"what": name, "value": str(value_at(start, "date"))},
            {"what": "command", "value": str(value_at(start, "command"))},
            {"what": "versions", "value": ", ".join(f"{package} {version}" for package, version in versions.items())},
        ]
    for name in inputs:
        source, digest = (value_at(inputs, name, part) for part in ("source", "sha256"))
        rows.append({"what": f"{name}, start of its SHA-256", "value": f"{source}: {digest}"})
    return rows
