"""Shows the stages of a run as the rows of a table."""

from __future__ import annotations

from dataclasses import dataclass

from mind.display import percent
from mind.report.reading import Metrics, number_at, value_at
from mind.report.tables import NOTHING, count, decimal, duration
from mind.run_folder import RunFolder


@dataclass(frozen=True)
class StageRow:
    """A stage, as texts."""

    name: str
    link: str | None
    """The path of its own report, relative to that of the run; None for the last stage, which is the run itself."""
    method: str
    rate: str
    """The largest learning rate."""
    steps: str
    tokens: str
    time: str
    loss: str
    """The loss in the first and in the last line of metrics."""
    heldout: str
    """The held-out NLL after it."""
    accuracy: str
    """The accuracy after it, by evaluation file."""


def stage_rows(folder: RunFolder, metrics: Metrics) -> list[StageRow]:
    """The stages of a run in order, the run itself last; empty for a run with a single stage."""
    stages = folder.stages
    if not stages:
        return []
    rows = [
        _row(stage, own, stage.path.name, f"{stage.path.relative_to(folder.path).as_posix()}/{stage.report.name}")
        for stage, own in zip(stages, metrics.earlier, strict=True)
    ]
    return [*rows, _row(folder, metrics, "last", None)]


def _row(folder: RunFolder, metrics: Metrics, name: str, link: str | None) -> StageRow:
    losses, rates = metrics.series("loss"), metrics.series("learning_rate")
    after = folder.read_evaluation()["after"]
    heldout = number_at(after, "heldout", "nll")
    accuracies = {label: number_at(result, "accuracy") for label, result in (value_at(after, "files") or {}).items()}
    return StageRow(
        name,
        link,
        method=str(folder.read_config().get("method", NOTHING)),
        rate=f"{rates.max():.3g}",
        steps=count(metrics.steps[-1]),
        tokens=count(metrics.series("tokens").sum()),
        time=duration(metrics.series("step_s").sum()),
        loss=f"{decimal(losses[0])} → {decimal(losses[-1])}",
        heldout=NOTHING if heldout is None else decimal(heldout),
        accuracy=", ".join(f"{label} {percent(share)}" for label, share in accuracies.items() if share is not None)
        or NOTHING,
    )
