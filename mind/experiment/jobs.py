"""Lists the jobs of an experiment: which ones its plan has, what each depends on, and which can be done now."""

from __future__ import annotations

from collections.abc import Iterator

from mind.errors import MindError, require
from mind.experiment.folder import ExperimentFolder, Job
from mind.experiment.plan import BASE, BASE_MARKER, Plan
from mind.experiment.tuning import chosen, tune, tuning_jobs


def every_job(plan: Plan) -> Iterator[Job]:
    """All jobs, in the order in which they are started."""
    yield Job(BASE)
    if plan.base_marker:
        yield Job(BASE_MARKER)
    if plan.budget.of is not None:
        yield Job.budget(plan.budget.of)
    for label in plan.methods:
        yield from tuning_jobs(plan, label)
    for seed in plan.seeds:  # all labels with the first seed first, so that there are early results
        yield from (Job.run(label, seed) for label in plan.methods)


def job_of(name: str, plan: Plan) -> Job:
    """The job with this name; raises MindError if the plan has none."""
    job = Job(name)
    if job not in every_job(plan):
        example = Job.run(next(iter(plan.methods)), plan.seeds[0])
        raise MindError(f"{name}: the plan has no such job: expected one such as {example.name}")
    return job


def before(job: Job, plan: Plan) -> Iterator[Job]:
    """The jobs whose results this job reads: the untrained student's evaluation, the budget, the choice of a
    configuration."""
    if job.kind in (BASE, BASE_MARKER):
        return
    yield Job(BASE)
    if job.kind != "budget" and plan.budget.of is not None:
        yield Job.budget(plan.budget.of)
    if job.kind == "runs":
        yield from tuning_jobs(plan, job.label)


def require_before(job: Job, plan: Plan, folder: ExperimentFolder) -> None:
    """Raises a MindError that names the first unfinished job on which this one depends."""
    missing = next((one for one in before(job, plan) if not folder.done(one, plan)), None)
    require(missing is None, f"{job.name}: {missing and missing.name} comes first, and is not done")


def ready(plan: Plan, folder: ExperimentFolder) -> list[Job]:
    """The unfinished jobs that can be done now, in the order in which they are started.

    A run of a label whose configurations all failed can never be done. Raises MindError for a result of another plan.
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
    """Number of unfinished jobs of the whole experiment, including those that cannot start yet."""
    return sum(not folder.done(job, plan) for job in every_job(plan))


def budget_amount(plan: Plan, folder: ExperimentFolder) -> float:
    """The budget C, kept in budget.json after the first call. The run that measures it must be done (`before`)."""
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
