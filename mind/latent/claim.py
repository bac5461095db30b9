"""Decides what may be claimed: "internalised, not surface" only if every control allows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mind.display import percent
from mind.latent.probes import Difference, Probe, compared
from mind.latent.views import WHAT, Measured

LEVEL = 0.05
TEXT_CONTROLS = ("V3 own", "V3", "V5 own", "V5")
CEILING = 0.98
"""If a text control reaches this accuracy, V1 cannot be above it."""


@dataclass(frozen=True)
class Condition:
    """One condition of the claim."""

    name: str
    """The condition, in words."""
    holds: bool | None
    """None if it cannot be decided, because there is no such control."""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    """The bounds of the 95 % interval of a difference of accuracies."""
    p: float | None = None


@dataclass(frozen=True)
class Claim:
    """Whether the students have internalised the perspectives."""

    allowed: bool
    sentence: str
    conditions: list[Condition]


def claim_of(experts: Mapping[str, Measured], null: Mapping[str, Measured]) -> Claim:
    """What the measurements by view allow one to claim. All of it is about probes on new students."""
    conditions = list(_conditions(experts, null))
    weights, texts = conditions[:2], conditions[2:]
    if all(condition.holds for condition in conditions):
        sentence = (
            "The perspectives are internalised, not surface: before any text of theirs is there, students of one "
            "perspective share what null experts do not, and the states over their own answers tell the perspective "
            "better than the wording does."
        )
        return Claim(True, sentence, conditions)
    if all(condition.holds for condition in weights):
        start = "The weights hold something of the perspectives (V4), but it cannot be said that this is not surface"
        sentence = f"{start}: {_why(texts)}"
    else:
        sentence = f"It cannot be said that the students have internalised the perspectives: {_why(conditions)}"
    return Claim(False, f"{sentence}.{_at_the_ceiling(experts)}", conditions)


def _conditions(experts: Mapping[str, Measured], null: Mapping[str, Measured]) -> Iterator[Condition]:
    weights = _probe(experts, "V4")
    name = "V4: the experts' perspectives are told better than those of null experts"
    yield _of(name, weights, _probe(null, "V4"), paired=False)
    name = f"V4: better than if the perspectives are dealt out among the students (p < {LEVEL})"
    p = None if weights is None else weights.accuracy.p
    yield Condition(name, None if p is None else p < LEVEL, p=p)
    for view in TEXT_CONTROLS:
        name = f"V1: the perspective is told better than by {view} ({WHAT[view]})"
        yield _of(name, _probe(experts, "V1"), _probe(experts, view), paired=True)


def _of(name: str, probe: Probe | None, control: Probe | None, *, paired: bool) -> Condition:
    if probe is None or control is None:
        return Condition(name, None)
    difference: Difference = compared(probe, control, paired=paired)
    return Condition(name, difference.positive, difference.value, difference.low, difference.high)


def _probe(measured: Mapping[str, Measured], view: str) -> Probe | None:
    return measured[view].new_student if view in measured else None


def _why(conditions: list[Condition]) -> str:
    failed = [f"{condition.name}: {_shown(condition)}" for condition in conditions if condition.holds is False]
    missing = [condition.name for condition in conditions if condition.holds is None]
    parts = [f"not so: {'; '.join(failed)}"] if failed else []
    parts += [f"no control, and so not known: {'; '.join(missing)}"] if missing else []
    return ". ".join(part[0].upper() + part[1:] if number else part for number, part in enumerate(parts))


def _shown(condition: Condition) -> str:
    if condition.value is None or condition.low is None or condition.high is None:
        return f"p = {condition.p:.3f}"
    points = [f"{100 * number:+.1f}".replace("-", "−") for number in (condition.value, condition.low, condition.high)]
    return f"{points[0]} points, 95 % interval {points[1]} to {points[2]}"


def _at_the_ceiling(experts: Mapping[str, Measured]) -> str:
    full = [
        f"{view} ({percent(probe.accuracy.value)})"
        for view in TEXT_CONTROLS
        if (probe := _probe(experts, view)) is not None and probe.accuracy.value >= CEILING
    ]
    if not full:
        return ""
    return f" The texts alone tell the perspectives apart, {' and '.join(full)}: V1 could not show more."
