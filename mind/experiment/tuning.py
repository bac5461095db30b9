"""Chooses the configuration of each label: the one with the best greedy accuracy on the validation questions; of equal
ones, the one with the smallest held-out NLL; of equal ones, the first. Then the choice is fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mind.errors import require
from mind.experiment.configs import draws
from mind.experiment.folder import ExperimentFolder, Job
from mind.experiment.plan import Plan
from mind.files import held


def tuning_jobs(plan: Plan, label: str) -> list[Job]:
    """The tuning jobs of a label; none if it is not tuned."""
    return [Job.tuning(label, number) for number in range(len(configurations(plan, label)))]


def configurations(plan: Plan, label: str) -> list[dict[str, Any]]:
    """The configurations that tuning tries for a label, as options by name; none for a label without a grid."""
    return draws(label, plan.methods[label], plan.tuning.configurations, plan.tuning.seed)


def best(results: Sequence[Mapping[str, Any]]) -> int | None:
    """The number of the chosen configuration; None if all of them failed."""
    whole = [number for number, result in enumerate(results) if "failed" not in result]
    return min(whole, key=lambda number: (-results[number]["accuracy"], results[number]["nll"]), default=None)


def tune(plan: Plan, folder: ExperimentFolder) -> dict[str, Any]:
    """The table of the labels whose configurations have all been tried, written to tuning.json if it is new."""
    with held(folder.path / ".tuning.lock"):  # so that no job overwrites a newer table by an older one
        table = {}
        for label in plan.methods:
            results = [folder.read_result(folder.beside(job, ".json")) for job in tuning_jobs(plan, label)]
            if results and all(results):
                tried = [
                    {"options": options, **result}
                    for options, result in zip(configurations(plan, label), results, strict=True)
                ]
                table[label] = {"configurations": tried, "chosen": best(results)}
        if table and table != tuned(folder):
            folder.write_result({"labels": table}, folder.tuning)
    return table


def tuned(folder: ExperimentFolder) -> dict[str, Any]:
    """The table that `tune` wrote last, by label; empty if there is none."""
    return folder.read_result(folder.tuning).get("labels", {})


def chosen(plan: Plan, table: Mapping[str, Any], label: str) -> dict[str, Any] | None:
    """The options that the label's runs get from its grid, by name; None if they are not known yet, or never will
    be."""
    if not plan.methods[label].grid:
        return {}
    entry = table.get(label)
    if entry is None or entry["chosen"] is None:
        return None
    return entry["configurations"][entry["chosen"]]["options"]


def require_choice(plan: Plan, table: Mapping[str, Any], label: str) -> dict[str, Any]:
    """`chosen`; raises MindError if there is no choice."""
    options = chosen(plan, table, label)
    require(options is not None, f"{label}: all the configurations that were tried failed: tuning.json has why")
    assert options is not None
    return options
