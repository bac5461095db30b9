"""Compares a reference method with all others; the result is the content of comparison.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mind.comparison.bootstrap import DRAWS, Bootstrap, bootstrap
from mind.comparison.decisions import detectable, discordance, holm, mcnemar
from mind.comparison.difference import difference
from mind.comparison.reading import Method, Results, Run, mean
from mind.errors import require
from mind.progress import Progress

VERSION = 1
"""Version of the analysis: it changes if the same outcomes would give other numbers."""
MACRO = {"id": "macro ID", "ood": "macro OOD"}
"""Group of the plan -> the name of the mean over its primary sets, which no set can have."""
GROUPS = {"macro ID": "in distribution", "macro OOD": "out of distribution"}
"""Metrics that describe how a method selects."""
CONTROLS = ("sft", "mind-shuffled")
"""Methods without selection, or with random selection: a method that does not beat them has not shown that its
selection helps."""
Role = Literal["reference", "baseline", "control", "other"]


@dataclass(frozen=True)
class OneRun:
    """Numbers of a single run."""

    seed: int | None
    accuracy: Mapping[str, float]
    """Accuracy by set and by `MACRO`."""
    nll: float | None
    flops: float | None
    trained_tokens: float | None
    teacher_tokens: float | None
    """Tokens of a teacher model during training; tokens that a teacher wrote for the data are in the data's card."""
    wall_s: float | None


@dataclass(frozen=True)
class Summary:
    """Numbers of a method, over its runs."""

    label: str
    method: str
    role: Role
    runs: Sequence[OneRun]
    missing: Mapping[str, str]
    """Planned runs that are missing, with the reason."""
    accuracy: Mapping[str, float]
    """The mean over runs, by set and by `MACRO`; empty without runs."""
    unparsed: Mapping[str, float]
    """The share of answers that state nothing comparable, by set."""
    cut_off: Mapping[str, float]
    nll: float | None
    flops: float | None
    trained_tokens: float | None
    teacher_tokens: float | None
    wall_s: float | None
    """The means over runs; None if a run lacks the number."""


@dataclass(frozen=True)
class SingleRuns:
    """Two single runs on one set, compared by the exact test of McNemar."""

    our_seed: int | None
    their_seed: int | None
    ours_alone: int
    """Number of questions that only our run got right."""
    theirs_alone: int
    p: float


@dataclass(frozen=True)
class Versus:
    """The reference compared with another method, on a set or over the primary sets of a group; differences are
    shares."""

    other: str
    on: str
    """The name of a set, or one of `GROUPS`."""
    questions: int
    of_methods: bool
    """False if one of the two has a single run: then the numbers are about these runs, and nothing follows for the
    methods. The untrained student has no seed, so it needs only one."""
    difference: float
    interval: tuple[float, float]
    """95 % interval, over questions and seeds (mind/comparison/difference.py)."""
    freedom: float | None
    """Degrees of freedom; None: infinite."""
    p_better: float
    """One-sided p-value for "the reference is better"."""
    p_worse: float
    """One-sided p-value for "the other is better"."""
    p: float
    """Two-sided p-value."""
    p_holm: float | None
    """The p-value adjusted for its family: the comparisons with methods of the same role over both groups, or over all
    sets; a missing method counts as p = 1. None outside the primary sets."""
    detectable: float
    """The smallest difference that the experiment detects in 80 % of the cases, two-sided at 5 %."""
    bootstrap: Bootstrap | None
    """None if all draws are equal."""
    discordance: float | None
    """The share of the questions on which two runs differ; None over a group."""
    detectable_by_two_runs: float | None
    """The smallest difference that two single runs of this discordance detect in 80 % of the cases."""
    single_runs: Sequence[SingleRuns]
    """For a set, one entry per seed; empty if questions were answered several times."""


@dataclass(frozen=True)
class Comparison:
    """The whole comparison."""

    title: str
    plan: str
    """The hash of the plan."""
    student: str
    data: str
    analysis: Mapping[str, Any]
    sets: Mapping[str, Mapping[str, Any]]
    """Name of a set -> its group, whether it is primary, and its number of questions."""
    budget: str
    """The unit of the plan's budget, "flops" or "trained_tokens"."""
    planned_seeds: Sequence[int]
    reference: str
    baselines: Sequence[str]
    controls: Sequence[str]
    methods: Mapping[str, Summary]
    versus: Sequence[Versus]
    failures: Sequence[Mapping[str, Any]]

    def against(self, other: str, on: str) -> Versus | None:
        """The comparison with this method; None if there is none, because one of the two has no runs."""
        return next((one for one in self.versus if (one.other, one.on) == (other, on)), None)

    @property
    def groups(self) -> list[str]:
        """Those of `GROUPS` that have primary sets."""
        there = {one["group"] for one in self.sets.values() if one["primary"]}
        return [macro for group, macro in MACRO.items() if group in there]


def compared(
    results: Results,
    reference: str | None = None,
    baselines: Sequence[str] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """The comparison of an experiment's results.

    Args:
        results: the result of `mind.comparison.reading.read_results`.
        reference: the label of the method that the claim is about; None: the plan's, else "mind".
        baselines: the labels of the methods that it should beat; None: those of the plan.
        draws: number of draws of the bootstrap.
        seed: seed of its random numbers.

    Raises MindError for a label that the experiment does not have, and for a reference without a run.
    """
    plan, methods = results.plan, results.methods
    reference = reference or plan.reference or "mind"
    chosen = tuple(plan.baselines if baselines is None else baselines)
    for what, label in (("reference", reference), *(("baselines", label) for label in chosen)):
        require(label in methods, f"{what} {label!r}: the experiment has no such method: {', '.join(methods)}")
    require(reference not in chosen, f"baselines names the reference, {reference}")
    ours = methods[reference]
    why = "; ".join(f"{run}: {reason}" for run, reason in ours.missing.items())
    require(bool(ours.runs), f"reference {reference}: none of its runs is there ({why})")
    controls = tuple(
        label for label, one in methods.items() if one.name in CONTROLS and label not in (reference, *chosen)
    )
    roles: dict[str, Role] = {label: _role(label, reference, chosen, controls) for label in methods}
    places = _places(results)
    others = [label for label, one in methods.items() if label != reference and one.runs]
    versus = []
    with Progress("comparisons", len(others) * len(places), "comparison") as bar:
        for label in others:
            for on, sets in places.items():
                versus.append(_versus(ours, methods[label], on, sets, draws, seed))
                bar.update(1)
    return Comparison(
        title=plan.title,
        plan=results.hash,
        student=results.student,
        data=results.data,
        analysis={
            "version": VERSION,
            "seed": seed,
            "draws": draws,
            "as_planned": _as_planned(results, reference, chosen),
        },
        sets={
            name: {"group": one.group, "primary": one.primary, "questions": results.questions(name)}
            for name, one in plan.evaluation.items()
        },
        budget=plan.budget.unit,
        planned_seeds=plan.seeds,
        reference=reference,
        baselines=chosen,
        controls=controls,
        methods={label: _summary(one, roles[label], places) for label, one in methods.items()},
        versus=_with_holm(versus, roles, results),
        failures=results.failures,
    )


def _role(label: str, reference: str, baselines: Sequence[str], controls: Sequence[str]) -> Role:
    if label == reference:
        return "reference"
    return "baseline" if label in baselines else "control" if label in controls else "other"


def _as_planned(results: Results, reference: str, baselines: Sequence[str]) -> bool:
    """Whether the claim is the one that the plan fixed in advance."""
    return (reference, set(baselines)) == (results.plan.reference, set(results.plan.baselines))


def _places(results: Results) -> dict[str, list[str]]:
    """Where methods are compared: each group, over its primary sets, and each set."""
    sets = results.plan.evaluation
    groups = {
        macro: [name for name, one in sets.items() if one.primary and one.group == group]
        for group, macro in MACRO.items()
    }
    return {macro: names for macro, names in groups.items() if names} | {name: [name] for name in sets}


def _versus(ours: Method, theirs: Method, on: str, sets: Sequence[str], draws: int, seed: int) -> Versus:
    mine, other = ours.marks(sets), theirs.marks(sets)
    found = difference(mine, other)
    differing = discordance(mine.sets[0], other.sets[0]) if on in sets else None
    questions = sum(table.shape[1] for table in mine.sets)
    return Versus(
        other=theirs.label,
        on=on,
        questions=questions,
        of_methods=all(len(method.runs) > 1 or not method.trained for method in (ours, theirs)),
        difference=found.difference,
        interval=found.interval,
        freedom=found.freedom if math.isfinite(found.freedom) else None,
        p_better=found.p_ours,
        p_worse=found.p_theirs,
        p=found.p,
        p_holm=None,
        detectable=found.detectable,
        bootstrap=bootstrap(mine, other, draws, seed),
        discordance=differing,
        detectable_by_two_runs=None if differing is None else detectable(differing, questions),
        single_runs=_single_runs(ours.runs, theirs.runs, on) if on in sets else (),
    )


def _single_runs(ours: Sequence[Run], theirs: Sequence[Run], name: str) -> list[SingleRuns]:
    """Pairs of runs with the same seed, or each run with the untrained student."""
    pairs = [(one, two) for one in ours for two in theirs if None in (one.seed, two.seed) or one.seed == two.seed]
    return [
        SingleRuns(one.seed, two.seed, *mcnemar(*(np.array(run.answers[name].marks, bool) for run in (one, two))))
        for one, two in pairs
        if one.answers[name].single and two.answers[name].single
    ]


def _with_holm(versus: Sequence[Versus], roles: Mapping[str, Role], results: Results) -> list[Versus]:
    """Adds the adjusted p-values of each family; a planned comparison that is missing counts as p = 1."""
    sets = results.plan.evaluation
    primary = [name for name, one in sets.items() if one.primary]
    groups = [macro for group, macro in MACRO.items() if any(sets[name].group == group for name in primary)]
    known, adjusted = {(one.other, one.on): one.p for one in versus}, {}
    for role in ("baseline", "control", "other"):
        labels = [label for label, own in roles.items() if own == role]
        for family in (groups, primary):
            keys = {f"{label} {on}": (label, on) for label in labels for on in family}
            values = holm({name: known.get(key, 1.0) for name, key in keys.items()})
            adjusted |= {keys[name]: value for name, value in values.items()}
    return [dataclasses.replace(one, p_holm=adjusted.get((one.other, one.on))) for one in versus]


def _summary(method: Method, role: Role, places: Mapping[str, Sequence[str]]) -> Summary:
    runs = [_one_run(run, places) for run in method.runs]
    sets = list(method.runs[0].answers) if runs else []
    return Summary(
        label=method.label,
        method=method.name,
        role=role,
        runs=runs,
        missing=method.missing,
        accuracy={on: method.marks(names).accuracy for on, names in places.items()} if runs else {},
        unparsed={name: float(np.mean([run.answers[name].unparsed for run in method.runs])) for name in sets},
        cut_off={name: float(np.mean([run.answers[name].cut_off for run in method.runs])) for name in sets},
        **{
            name: mean([getattr(run, name) for run in runs])
            for name in ("nll", "flops", "trained_tokens", "teacher_tokens", "wall_s")
        },
    )


def _one_run(run: Run, places: Mapping[str, Sequence[str]]) -> OneRun:
    scored = run.cost("work", "teacher_scored")
    return OneRun(
        seed=run.seed,
        accuracy={
            on: float(np.mean([run.answers[name].marks.mean() for name in names])) for on, names in places.items()
        },
        nll=run.nll,
        flops=run.cost("flops"),
        trained_tokens=run.cost("work", "trained"),
        teacher_tokens=0.0 if scored is None and run.status else scored,
        wall_s=run.cost("wall_s"),
    )
