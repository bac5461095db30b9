"""`mind experiment`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mind import processes
from mind.cli.terminal import Unfinished, note, print_table, say, say_next
from mind.cli.watching import watching
from mind.display import number_of
from mind.errors import PausedError, require
from mind.experiment.plan import packaged

if TYPE_CHECKING:
    from mind.experiment.runner import Progress


@dataclass(frozen=True)
class Experiment:
    """Train and evaluate students for each method and seed of a plan, at equal budgets.

    A plan names the student, the questions, the methods with their options, the seeds, the budget, the grids for tuning
    and the evaluation sets. Started again with the same folder, the command does what is missing, also after a kill or
    after failed runs. `mind compare` says what may be concluded.
    """

    plan: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="PLAN")] = None
    """A JSON file, or the name of a plan that comes with the package, such as word-problems."""
    output: str = "experiments/experiment"
    """The experiment's folder: a new one, or one with the same plan."""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Value of ${NAME} in the plan's file names; give the option once per name."""
    jobs: int = 1
    """Number of runs at the same time, each a process with its share of the processors. Two processes with one thread
    each use two processors better than one process with two threads."""
    stop_after: Annotated[float | None, tyro.conf.arg(metavar="MINUTES")] = None
    """Stop after this many minutes, each run after its current step; started again, the experiment continues."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Distribute the runs over the Ray cluster at this address ("auto" finds it, "local" starts one here). Its machines
    must share the folder; needs the package ray. It runs as many at the same time as fit, each with as many processors
    as --jobs gives a run on this machine."""
    job: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Do a single job of the experiment in --output in this process, such as runs/mind/seed-0, for use with your own
    scheduler."""

    def __post_init__(self) -> None:
        require(
            self.plan is not None or self.job is not None,
            f"PLAN is missing: expected a JSON file, or a plan of the package: {', '.join(packaged())}",
        )
        require(self.plan is None or self.job is None, "--job beside a plan: the plan is that of --output")
        require(self.jobs >= 1, f"jobs is {self.jobs}: expected at least 1")
        require(self.stop_after is None or self.stop_after > 0, f"stop_after is {self.stop_after}: expected minutes")


def experiment_command(options: Experiment) -> int | Unfinished:
    stop_at = None if options.stop_after is None else time.monotonic() + 60 * options.stop_after
    if options.job is not None:
        return _one_job(options.output, options.job, stop_at)
    assert options.plan is not None
    variables = _variables(options.set)
    note("reading the plan and its questions")
    from mind.experiment.jobs import left
    from mind.experiment.places import Processes, RayTasks
    from mind.experiment.runner import prepare, run_experiment

    folder = prepare(options.plan, options.output, variables)
    threads = threads_of(options.jobs)
    if options.ray is None:
        place, at_a_time = Processes(folder, threads, stop_at), options.jobs
    else:
        place = RayTasks(folder, options.ray, threads, stop_at)
        at_a_time = place.at_a_time
    plan, _ = folder.read_experiment()
    say(f"{folder.path}: {number_of(left(plan, folder), 'job')} to do, {at_a_time} at a time")
    with watching() as watch:
        progress = run_experiment(folder, place, jobs=at_a_time, stop_at=stop_at, watch=watch, interrupt=place.stop)
    return _told(progress, left(plan, folder))


def kept_jobs(options: Experiment) -> str:
    """How many jobs of the experiment are done, in words; empty if it has not begun."""
    from mind.experiment.folder import ExperimentFolder
    from mind.experiment.jobs import every_job, left

    folder = ExperimentFolder(Path(options.output))
    if not folder.experiment.exists():
        return ""
    plan, _ = folder.read_experiment()
    count = len(list(every_job(plan)))
    done = count - left(plan, folder)
    return f"{done} of {count} jobs are done, and unfinished runs go on from their last saved step"


def threads_of(jobs: int) -> int:
    """The number of threads of each of `jobs` processes: its share of the processors, unless the environment sets
    it."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else max(1, processes.processors() // jobs)


def _one_job(output: str, name: str, stop_at: float | None) -> int:
    from mind.experiment.places import PAUSED, end_with_parent

    end_with_parent()
    note(f"job {name}: loading PyTorch")
    from mind.experiment.job import perform

    try:
        perform(output, name, stop_at)
    except PausedError as pause:
        say(str(pause))
        return PAUSED
    return 0


def _variables(given: tuple[str, ...]) -> dict[str, str]:
    variables: dict[str, str] = {}
    for item in given:
        name, equals, value = item.partition("=")
        require(bool(name and equals and value), f"--set {item}: expected NAME=VALUE")
        require(name not in variables, f"--set {name} is given twice")
        variables[name] = value
    return variables


def _told(progress: Progress, left: int) -> int | Unfinished:
    """Prints the results so far, the failures, and the next command."""
    from mind.experiment.summary import summary_rows

    print_table(progress.plan.title, summary_rows(progress.plan, progress.folder))
    for job, ending in progress.failed.items():
        say(f"failed: {job.name}: {ending.message} ({progress.folder.beside(job, '.log')})")
    if left:
        say(f"{number_of(left, 'job')} left to do")
        return Unfinished()
    say_next("compare", str(progress.folder.path), purpose="for what may be concluded")
    return 0
