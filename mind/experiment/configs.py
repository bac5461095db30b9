"""Makes the configuration of `mind train` for each run of an experiment."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mind.config import DataConfig, MindConfig
from mind.errors import MindError
from mind.experiment.folder import ExperimentFolder, Job
from mind.experiment.plan import BudgetPlan, MethodPlan, Plan
from mind.typed_json import overlaid

BATCHED = {"train": {"report_to": "none"}}
"""Defaults that differ for the runs of an experiment: metrics.jsonl has the same content as TensorBoard's files."""
OF_INPUTS = {"train", "heldout", "heldout_fraction", "evaluation", "max_questions", "leaks"} | {
    field.name for field in dataclasses.fields(DataConfig) if field.name.startswith("generated_")
}
"""Fields of `data` that have taken effect once the questions are in the experiment's folder; the runs get the
others."""


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """{"train.seed": 1} as {"train": {"seed": 1}}."""
    tree: dict[str, Any] = {}
    for name, value in options.items():
        *sections, last = name.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return tree


def draws(label: str, method: MethodPlan, count: int, seed: int) -> list[dict[str, Any]]:
    """The configurations that tuning tries, as options by name: `count` different ones of the grid, or the label's own
    number. If the grid has no more than that, all of them in its order; without a grid, none.

    They are drawn from the seed and the label such that no value of an option is repeated before all of its other
    values have been used, as in a Latin hypercube: otherwise six draws out of 72 could miss a learning rate completely.
    """
    if not method.grid:
        return []
    names, count = list(method.grid), method.configurations or count
    points = list(itertools.product(*(range(len(values)) for values in method.grid.values())))
    if len(points) > count:
        draw = random.Random(seed * 2**32 + zlib.crc32(label.encode()))
        left, drawn = draw.sample(points, len(points)), []
        used: Counter[tuple[str, int]] = Counter()
        for _ in range(count):
            least = min(left, key=lambda point: sum(used[pair] ** 2 for pair in zip(names, point, strict=True)))
            left.remove(least)
            drawn.append(least)
            used.update(zip(names, least, strict=True))
        points = drawn
    return [{name: method.grid[name][at] for name, at in zip(names, point, strict=True)} for point in points]


def run_config(
    job: Job,
    plan: Plan,
    sources: Mapping[str, Mapping[str, Any]],
    folder: ExperimentFolder,
    *,
    seed: int,
    chosen: Mapping[str, Any],
    budget: Mapping[str, Any],
) -> MindConfig:
    """The configuration of a job's run.

    Args:
        job: its name says where the run is, and its label.
        plan: as written.
        sources: the inputs of experiment.json.
        folder: the experiment's folder.
        seed: the run's seed.
        chosen: options from the label's grid, by name.
        budget: fields of `train`: "flops" or "trained_tokens", or "epochs" for the run that sets the budget.
    """
    from mind.methods import run_config as built
    from mind.methods import with_options

    method = plan.methods[job.label]
    values: Any = {
        "student": dataclasses.asdict(plan.student) | student_source(sources),
        "data": {name: value for name, value in dataclasses.asdict(plan.data).items() if name not in OF_INPUTS},
    }
    for more in (BATCHED, plan.config, {"method": method.method}, method.options, nested(chosen)):
        values = overlaid(values, more)
    own = {
        "output": os.fspath(folder.run(job)),
        "data": {"train": str(folder.train_file), "heldout": str(folder.validation_file)},
        "train": {"seed": seed, **budget},
        "evaluation": {"before": os.fspath(folder.base)},
    }
    values = json.loads(json.dumps(overlaid(values, own)))
    try:
        return with_options(built(values, f"methods.{job.label}"))
    except MindError as error:
        where = "" if str(error).startswith("methods.") else f"methods.{job.label}: "
        of = f" (with {_words(chosen)})" if chosen else ""
        raise MindError(f"{where}{error}{of}") from None


def student_source(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The place of the student, as fields of its configuration."""
    places = {"model": "student", "chat_template": "student.chat_template"}
    return {name: sources[entry]["source"] for name, entry in places.items() if entry in sources}


def budget_fields(budget: BudgetPlan, amount: float, share: float = 1.0) -> dict[str, Any]:
    """The fields of `train` that set a share of the budget C."""
    return {budget.unit: float(amount * share) if budget.unit == "flops" else max(1, round(amount * share))}


def check_configs(plan: Plan, sources: Mapping[str, Mapping[str, Any]], folder: ExperimentFolder) -> None:
    """Raises MindError for a label with options, or values in its grid, that are not valid; nothing is trained."""
    from mind.run.checks import check_options
    from mind.run.stages import stages_of

    budget = budget_fields(plan.budget, plan.budget.amount or 1e18)
    for label, method in plan.methods.items():
        first = {name: values[0] for name, values in method.grid.items()}
        for chosen in [first | {name: value} for name, values in method.grid.items() for value in values] or [{}]:
            config = run_config(Job.run(label, 0), plan, sources, folder, seed=0, chosen=chosen, budget=budget)
            for stage in stages_of(config):
                try:
                    check_options(stage.config)
                except MindError as error:
                    raise MindError(f"methods.{label}: {error}") from None
    if plan.budget.of is not None:
        job, epochs = Job.budget(plan.budget.of), {"epochs": plan.budget.epochs}
        run_config(job, plan, sources, folder, seed=plan.seeds[0], chosen={}, budget=epochs)


def _words(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())
