"""Summarizes the results of an experiment so far, without statistics, which are the task of `mind compare`."""

from __future__ import annotations

import json

from mind.experiment.folder import ExperimentFolder, Job
from mind.experiment.plan import BASE, BASE_MARKER, Plan
from mind.files import json_rows


def summary_rows(plan: Plan, folder: ExperimentFolder) -> list[dict[str, str]]:
    """One row for the untrained student and one per label: finished runs, mean accuracies in percent, mean cost."""
    rows = [_row(plan, folder, BASE, [Job(BASE)])]
    if plan.base_marker:
        rows.append(_row(plan, folder, BASE_MARKER, [Job(BASE_MARKER)]))
    return rows + [_row(plan, folder, label, [Job.run(label, seed) for seed in plan.seeds]) for label in plan.methods]


def _row(plan: Plan, folder: ExperimentFolder, label: str, jobs: list[Job]) -> dict[str, str]:
    done = [job for job in jobs if folder.done(job, plan)]
    statuses = [status for job in done if (status := folder.run(job).read_status())]
    row = {"method": label, "runs": f"{len(done)} of {len(jobs)}"}
    for name in plan.evaluation:
        row[name] = _mean([accuracy(folder, job, name) * 100 for job in done], "{:.1f} %")
    row["TFLOPs"] = _mean([status["flops"] / 1e12 for status in statuses], "{:,.1f}")
    row["minutes"] = _mean([status["wall_s"] / 60 for status in statuses], "{:,.1f}")
    return row


def accuracy(folder: ExperimentFolder, job: Job, name: str) -> float:
    """The share of right answers that a job's student gave to a set."""
    right = [row["correct"] for _, row in json_rows(folder.outcomes(job) / f"{name}.jsonl")]
    return sum(right) / len(right)


def _mean(values: list[float], form: str) -> str:
    return form.format(sum(values) / len(values)) if values else "-"


def doing(folder: ExperimentFolder, job: Job) -> str:
    """What a running job is doing, judged by the files that it has written."""
    run = folder.run(job)
    current = [stage for stage in run.stages if not stage.status.exists()] or [run]
    if run.status.exists():
        there = sum(1 for _ in folder.outcomes(job).glob("[!.]*.jsonl")) if job.kind == "runs" else 0
        return f"answers questions, {there} sets done" if there else "answers questions"
    if not current[0].metrics.exists():
        return "starting"
    last = current[0].metrics.read_bytes().rstrip().rpartition(b"\n")[2]
    try:
        row = json.loads(last)
    except json.JSONDecodeError:  # the line is being written
        return "trains"
    return f"step {row['step']}, loss {row['loss']:.3f}" if "step" in row else "prepares its training"
