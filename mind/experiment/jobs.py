"""The jobs of an experiment: which ones its plan has, what comes before each, and which can be done now."""

from __future__ import annotations

from collections.abc import Iterator

from mind.errors import MindError, require
from mind.experiment.folder import ExperimentFolder, Job
from mind.experiment.plan import BASE, BASE_MARKER, Plan
from mind.experiment.tuning import chosen, tune, tuning_jobs


def every_job(plan: Plan) -> Iterator[Job]:
    """All of them, in the order in which they are started."""
    yield Job(BASE)
    if plan.base_marker:
        yield Job(BASE_MARKER)
    if plan.budget.of is not None:
        yield Job.budget(plan.budget.of)
    for label in plan.methods:
        yield from tuning_jobs(plan, label)
    for seed in plan.seeds:  # all labels with the first seed, so that there is something to look at early
        yield from (Job.run(label, seed) for label in plan.methods)


def job_of(name: str, plan: Plan) -> Job:
    """The job of this name; raises MindError if the plan has none."""
    job = Job(name)
    if job not in every_job(plan):
        example = Job.run(next(iter(plan.methods)), plan.seeds[0])
        raise MindError(f"{name}: the plan has no such job: expected one such as {example.name}")
    return job


def before(job: Job, plan: Plan) -> Iterator[Job]:
    """The jobs whose results it reads: the untrained student's evaluation, the budget, the choice of a
    configuration."""
    if job.kind in (BASE, BASE_MARKER):
        return
    yield Job(BASE)
    if job.kind != "budget" and plan.budget.of is not None:
        yield Job.budget(plan.budget.of)
    if job.kind == "runs":
        yield from tuning_jobs(plan, job.label)


def require_before(job: Job, plan: Plan, folder: ExperimentFolder) -> None:
    """Raises MindError, with the first job that comes before this one and is not done."""
    missing = next((one for one in before(job, plan) if not folder.done(one, plan)), None)
    require(missing is None, f"{job.name}: {missing and missing.name} comes first, and is not done")


def ready(plan: Plan, folder: ExperimentFolder) -> list[Job]:
    """The jobs that can be done now and are not, in the order in which they are started.

    A run of a label all of whose configurations failed never can. Raises MindError for a result of another plan.
    """
    folder.read_result(folder.budget)
    done = {job for job in every_job(plan) if folder.done(job, plan)}
    table = tune(plan, folder)
    return [
        job
        for job in every_job(plan)
        if job not in done
        and done.issuperset(before(job, plan))
        and (job.kind != "runs" or chosen(plan, table, job.label) is not None)
    ]


def left(plan: Plan, folder: ExperimentFolder) -> int:
    """How many jobs of the whole experiment are not done, those that cannot start yet among them."""
    return sum(not folder.done(job, plan) for job in every_job(plan))


def budget_amount(plan: Plan, folder: ExperimentFolder) -> float:
    """C, kept in budget.json from the first call on. The run that it is measured by is done (`before`)."""
    kept = folder.read_result(folder.budget)
    if kept:
        return kept["amount"]
    unit, amount, of = plan.budget.unit, plan.budget.amount, plan.budget.of
    if of is not None:
        status = folder.run(Job.budget(of)).read_status()
        amount = status["flops"] if unit == "flops" else status["work"]["trained"]
    assert amount is not None
    folder.write_result({"unit": unit, "amount": amount, "of": of}, folder.budget)
    return amount
