"""Runs an experiment: does the jobs that its folder lacks, several at a time, each in its own process.

The folder says what there is to do (`mind.experiment.jobs`); it is read again after each job. So an experiment that is
started again continues.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mind.errors import MindError, require
from mind.experiment.configs import check_configs
from mind.experiment.folder import ExperimentFolder, Job
from mind.experiment.inputs import Inputs, load_inputs, write_inputs
from mind.experiment.jobs import ready
from mind.experiment.plan import Plan, differences, json_of, located, plan_hash, read_plan
from mind.files import check_new_folder, held
from mind.provenance import NUMERIC_PACKAGES, now, versions


@dataclass(frozen=True)
class Ending:
    """How a job ended."""

    state: Literal["done", "paused", "failed"]
    message: str = ""


Place = Callable[[Job], Ending]
"""Does a job in a process of its own, and waits for its end."""


@dataclass
class Progress:
    """The state of an experiment, for display."""

    plan: Plan
    folder: ExperimentFolder
    waiting: list[Job] = field(default_factory=list)
    """Jobs that could start now."""
    running: dict[Job, float] = field(default_factory=dict)
    """Running jobs and their start times, by time.monotonic."""
    ended: dict[Job, Ending] = field(default_factory=dict)
    """Jobs that have ended since this start."""

    @property
    def failed(self) -> dict[Job, Ending]:
        return {job: ending for job, ending in self.ended.items() if ending.state == "failed"}


Watch = Callable[[Progress], None]
"""Called whenever something has changed, and every second."""


def prepare(source: str, output: str | os.PathLike[str], variables: Mapping[str, str]) -> ExperimentFolder:
    """The folder of the experiment that a plan describes, ready to run: made, or found to be of the same plan.

    Args:
        source: the plan's file, or the name of a plan of the package.
        output: the folder.
        variables: values of ${NAME} in the plan's file names.

    Raises MindError, before anything is written, for a bad plan, bad questions, invalid options, and a folder that
    holds something else or an experiment with another plan (naming the fields that differ).
    """
    plan, place = read_plan(source)
    folder = ExperimentFolder(Path(os.path.abspath(output)))
    check_new_folder(folder.path)
    inputs = load_inputs(located(plan, place, variables))
    check_configs(plan, inputs.sources, folder)
    if folder.experiment.exists():
        _check_same(folder, plan, inputs.digests)  # before the lock, since the experiment may be running right now
    elif folder.path.exists():
        others = [path for path in folder.path.iterdir() if path.name not in ("data", folder.lock.name)]
        require(not others, f"{folder.path}: exists and is not an empty folder; name another --output")
    folder.path.mkdir(parents=True, exist_ok=True)
    with held(folder.lock, "another process runs this experiment"):
        if folder.experiment.exists():  # another process may have made it meanwhile
            _adopt(folder, plan, inputs)
        else:
            write_inputs(inputs, folder)
            content = {
                **json_of(plan),
                "inputs": inputs.sources,
                "hash": plan_hash(plan, inputs.digests),
                "versions": versions(("mind-kernels", *NUMERIC_PACKAGES)),
                "date": now(),
            }
            folder.write(content, folder.experiment)
    return folder


def _adopt(folder: ExperimentFolder, plan: Plan, inputs: Inputs) -> None:
    """Continues an experiment with the same plan, whose student and questions may have moved."""
    _check_same(folder, plan, inputs.digests)
    _, content = folder.read_experiment()
    if content["inputs"] != inputs.sources:
        folder.write(content | {"inputs": inputs.sources}, folder.experiment)


def _check_same(folder: ExperimentFolder, plan: Plan, digests: Mapping[str, str]) -> None:
    former, content = folder.read_experiment()
    if content.get("hash") == plan_hash(plan, digests):
        return
    there = {name: entry["sha256"] for name, entry in content["inputs"].items()}
    names = [*differences(json_of(former), json_of(plan)), *(f"inputs.{name}" for name in differences(there, digests))]
    raise MindError(f"{folder.path}: holds an experiment by another plan, which differs in {', '.join(names)}")


def run_experiment(
    folder: ExperimentFolder,
    place: Place,
    *,
    jobs: int = 1,
    stop_at: float | None = None,
    watch: Watch | None = None,
    interrupt: Callable[[], object] = lambda: None,
) -> Progress:
    """Does the jobs that the experiment in the folder lacks, and returns how they ended.

    Args:
        folder: what `prepare` returned.
        place: does a job; it is called in `jobs` threads.
        jobs: number of jobs at the same time.
        stop_at: a time by time.monotonic after which no job is started; None: no limit.
        watch: is called with the progress.
        interrupt: ends the jobs in `place`; called if this function is interrupted by Ctrl-C or an error.

    A job that failed is not tried again before the next start. Raises MindError if another process runs it.
    """
    plan, _ = folder.read_experiment()
    progress = Progress(plan, folder)
    with held(folder.lock, "another process runs this experiment"), ThreadPoolExecutor(jobs) as threads:
        _write_failures(progress)
        try:
            _run(progress, lambda job: threads.submit(place, job), jobs, stop_at, watch)
        except BaseException:
            interrupt()  # before waiting for the threads
            raise
    return progress


def _run(
    progress: Progress,
    submit: Callable[[Job], Future[Ending]],
    jobs: int,
    stop_at: float | None,
    watch: Watch | None,
) -> None:
    running: dict[Future[Ending], Job] = {}
    while True:
        known = progress.ended.keys() | progress.running.keys()
        progress.waiting = [job for job in ready(progress.plan, progress.folder) if job not in known]
        late = stop_at is not None and time.monotonic() >= stop_at
        for job in progress.waiting[: 0 if late else jobs - len(running)]:
            running[submit(job)] = job
            progress.running[job] = time.monotonic()
        if not running:
            return
        for future in _first(running, progress, watch):
            job = running.pop(future)
            del progress.running[job]
            progress.ended[job] = future.result()
            _write_failures(progress)


def _first(running: Mapping[Future[Ending], Job], progress: Progress, watch: Watch | None) -> set[Future[Ending]]:
    """Waits until at least one job ends, and returns those that have ended."""
    while True:
        if watch is not None:
            watch(progress)
        ended, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
        if ended:
            return ended


def _write_failures(progress: Progress) -> None:
    """Writes all failures of this start, again after each new one."""
    folder = progress.folder
    rows: list[dict[str, Any]] = [
        {
            "job": job.name,
            "label": job.label,
            "seed": job.number if job.kind == "runs" else None,
            "message": ending.message,
            "log": str(folder.beside(job, ".log").relative_to(folder.path)),
        }
        for job, ending in progress.failed.items()
    ]
    if rows or folder.failures.exists():
        folder.write(rows, folder.failures)
