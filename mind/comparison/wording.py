"""Writes the conclusions of a comparison in sentences: no more than the protocol of the analysis allows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mind.comparison.compare import CONTROLS, GROUPS, Comparison, Versus
from mind.comparison.decisions import ALPHA, all_hold, whole_groups
from mind.display import one_line, percent
from mind.experiment.plan import BASE, BASE_MARKER

EQUAL = 1.05
"""Costs count as equal up to this ratio: a run ends with a whole step."""
FLOOR, CEILING = 0.05, 0.95
"""A set on which all methods are below the first accuracy, or above the second, cannot distinguish them."""
NOT_THE_PAPERS = (
    "Nothing here compares with the tables of papers, whose students, data and decoding are others. A difference that "
    "is not shown may exist all the same; the smallest that would be seen is in the tables."
)


def sentences(comparison: Comparison) -> list[str]:
    """The claim about the baselines, and what the controls say about it."""
    return [*_claim(comparison), *_controls(comparison)]


def holds(comparison: Comparison, labels: Sequence[str], groups: Sequence[str]) -> bool:
    """Whether the reference beats every one of the methods in every group: an intersection-union test at 5 %."""
    return all_hold([_p_better(comparison, label, group) for label in labels for group in groups])


def points(difference: float) -> str:
    """A difference in points, such as "+1.2"."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def interval(ends: tuple[float, float]) -> str:
    """An interval in points, such as "−0.4 to +2.8"."""
    low, high = ends
    return f"{points(low)} to {points(high)}"


def _p_better(comparison: Comparison, label: str, group: str) -> float:
    """One-sided p-value; 1 against a method without runs or with a single one, which cannot be beaten."""
    versus = comparison.against(label, group)
    return versus.p_better if versus is not None and versus.of_methods else 1.0


def _claim(comparison: Comparison) -> Iterator[str]:
    reference, baselines, groups = comparison.reference, comparison.baselines, comparison.groups
    if not baselines:
        yield f"No baselines are named, so nothing is claimed of {reference} against them."
        return
    named = (
        f"the {len(baselines)} baselines {_and(baselines)}" if len(baselines) > 1 else f"the baseline {baselines[0]}"
    )
    setting = f"with {one_line(comparison.student, 100)}, {one_line(comparison.data, 100)}, {_compute(comparison)}"
    if not groups:
        yield f"No set is primary, so nothing is claimed of {reference} against {named}."
        return
    whole = whole_groups({group: [_p_better(comparison, label, group) for label in baselines] for group in groups})
    if whole == groups:
        yield f"{reference} beats {named} {_where(whole)}, {setting}." + _untested(groups)
    elif whole:
        rest = [group for group in groups if group not in whole]
        yield f"{reference} beats {named} {_where(whole)}, {setting}, but not {_where(rest)}." + _untested(groups)
        yield f"Not shown: better than {_not_shown(comparison, baselines, rest, ALPHA)}."
    else:
        won = [one for one in _shown(comparison, baselines, groups) if one.difference > 0]
        failed = _not_shown(comparison, baselines, groups, ALPHA / len(groups))
        if won:
            yield f"{reference} beats {_by_method((one.other, _on(one)) for one in won)}, {setting}."
            yield f"It is not shown to beat all of {named} {_where(groups, 'or')}: not {failed}."
        else:
            any_of = "any of " if len(baselines) > 1 else ""
            yield f"It is not shown that {reference} beats {any_of}{named} {_where(groups, 'or')}, {setting}."
            yield f"The differences: {failed}."
    for one in _shown(comparison, baselines, groups):
        if one.difference < 0:
            yield f"{one.other} beats {reference} {GROUPS[one.on]}: {points(-one.difference)} points."


def _shown(comparison: Comparison, labels: Sequence[str], groups: Sequence[str]) -> list[Versus]:
    """The comparisons with methods whose adjusted p-value shows a difference."""
    found = [comparison.against(label, group) for label in labels for group in groups]
    return [
        one for one in found if one is not None and one.of_methods and one.p_holm is not None and one.p_holm < ALPHA
    ]


def _not_shown(comparison: Comparison, labels: Sequence[str], groups: Sequence[str], alpha: float) -> str:
    """The comparisons that make a claim about all of them fail at `alpha`; there is one, at least."""
    failing = [(label, group) for label in labels for group in groups if _p_better(comparison, label, group) >= alpha]
    return _by_method((label, _seen(comparison, label, group)) for label, group in failing)


def _seen(comparison: Comparison, label: str, group: str) -> str:
    """The difference from a method in a group of sets, as far as there are runs of it."""
    versus = comparison.against(label, group)
    return f"{GROUPS[group]} (no runs)" if versus is None else _on(versus)


def _on(versus: Versus) -> str:
    if not versus.of_methods:
        return f"{GROUPS[versus.on]} (a single run: {points(versus.difference)} points)"
    return f"{GROUPS[versus.on]} ({points(versus.difference)} points, {interval(versus.interval)})"


def _by_method(told: Iterable[tuple[str, str]]) -> str:
    """Pairs of a method and what is said of it, in words that name each method once."""
    of: dict[str, list[str]] = {}
    for label, seen in told:
        of.setdefault(label, []).append(seen)
    return "; ".join(f"{label} {_and(seen)}" for label, seen in of.items())


def _controls(comparison: Comparison) -> Iterator[str]:
    reference, methods = comparison.reference, comparison.methods
    own = methods[reference].method
    if own in CONTROLS:
        yield f"{reference} is a control itself: it selects nothing by what the student is capable of."
        return
    there = {methods[label].method for label in (*comparison.controls, *comparison.baselines)}
    lacking = [name for name in CONTROLS if name not in there]
    labels = [label for label in methods if methods[label].method in CONTROLS]
    adds = "capability-aware selection" if own.startswith("mind") else f"what sets {reference} apart"
    if labels and not lacking and holds(comparison, labels, comparison.groups):
        yield f"{reference} beats the controls {_and(labels)}, too, {_where(comparison.groups)}."
    reasons = [f"the experiment has no {_and(lacking)}"] if lacking else []
    failing = [(label, group) for label in labels for group in comparison.groups]
    failing = [(label, group) for label, group in failing if not holds(comparison, [label], [group])]
    if failing:
        told = _by_method((label, _seen(comparison, label, group)) for label, group in failing)
        controls = "control" if len({label for label, _ in failing}) == 1 else "controls"
        reasons.append(f"{reference} is not shown to beat the {controls} {told}")
    if reasons:
        begins = " and ".join(reasons)
        begins = begins if not lacking else begins[0].upper() + begins[1:]
        yield f"{begins}, so it is not shown that {adds} is what helps, whatever the baselines do."


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know about the runs, such as missing ones, and about sets that decide nothing."""
    return list(_notes(comparison))


def _notes(comparison: Comparison) -> Iterator[str]:
    if not comparison.analysis["as_planned"]:
        yield (
            "The plan does not name this reference with these baselines: a claim that is chosen after its results have "
            "been seen is exploration."
        )
    planned = len(comparison.planned_seeds)
    missing: dict[str, list[str]] = {}  # what is said of methods -> these methods
    for label, method in comparison.methods.items():
        if method.missing:
            known = "; ".join(f"{run}: {reason}" for run, reason in method.missing.items())
            there = len(method.runs)
            treated = "means are over the others, and intervals are wider for it" if there else "compared with nothing"
            said = f"{there} of {there + len(method.missing)} runs are there ({known}); {treated}."
            missing.setdefault(said, []).append(label)
    yield from (f"{_and(labels)}: {said}" for said, labels in missing.items())
    single = [label for label, m in comparison.methods.items() if len(m.runs) == 1 and label not in (BASE, BASE_MARKER)]
    if single:
        yield (
            f"{_and(single)}: a single run, so how much seeds differ is not known. Intervals and p-values are those of "
            "this run, and nothing is claimed of the method."
        )
    if planned < 3:
        yield f"The plan has {planned} seed{'s' * (planned > 1)}: intervals are wide, and say little of other seeds."
    runs = {f"runs/{label}/seed-{seed}" for label in comparison.methods for seed in comparison.planned_seeds}
    for row in comparison.failures:
        if row.get("job") not in runs:
            job, message = row.get("job", row.get("label")), row.get("message")
            yield f"Failed: {one_line(str(job), 100)}: {one_line(str(message), 300)}"
    for name in comparison.sets:
        shares = [method.accuracy[name] for method in comparison.methods.values() if method.runs]
        if shares and (max(shares) < FLOOR or min(shares) > CEILING):
            seen = f"{percent(min(shares))} to {percent(max(shares))}"
            yield f"{name}: all methods are right in {seen}, so it decides nothing."


def _compute(comparison: Comparison) -> str:
    """Whether the reference and the baselines cost the same, in the unit of the plan's budget."""
    unit, field = ("compute", "flops") if comparison.budget == "flops" else ("trained tokens", "trained_tokens")
    methods = [comparison.methods[label] for label in (comparison.reference, *comparison.baselines)]
    costs = {m.label: getattr(m, field) for m in methods if m.runs and m.label not in (BASE, BASE_MARKER)}
    unknown = [label for label, cost in costs.items() if not cost]
    if unknown:
        return f"at {unit} that is not known of {_and(unknown)}"
    least, most = min(costs, key=costs.__getitem__), max(costs, key=costs.__getitem__)
    ratio = costs[most] / costs[least]
    if ratio <= EQUAL:
        return f"at equal {unit}"
    return f"at unequal {unit} ({most} took {ratio:.2f} times that of {least})"


def _where(groups: Sequence[str], word: str = "and") -> str:
    """The groups in words: "in and out of distribution"."""
    if len(groups) > 1:
        return f"in {word} out of distribution"
    return GROUPS[groups[0]]


def _untested(groups: Sequence[str]) -> str:
    lacking = [GROUPS[group] for group in GROUPS if group not in groups]
    return f" No primary set is {lacking[0]}." if lacking else ""


def _and(names) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
