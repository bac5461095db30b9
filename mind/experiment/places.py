"""Where the jobs of an experiment are done: processes of this machine, or of a Ray cluster.

A process is started as `python -m mind experiment --job NAME --output FOLDER`. It ends when whoever started it does,
however that comes: it reads a pipe whose other end only they hold.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from mind.display import one_line
from mind.errors import MindError, MissingError
from mind.experiment.folder import ExperimentFolder, Job
from mind.experiment.runner import Ending
from mind.hub import send_nothing_unasked

WATCHED = "MIND_EXPERIMENT_WATCHED"
"""In the environment of a job whose standard input is that pipe."""
PAUSED = 75
"""The exit status of a job that paused."""
SHOWN_LINES = 3
"""Of the log of a job that failed, in its message."""
STOPPED = Ending("failed", "stopped before it began")


class Processes:
    """A process of this machine for each job, its output in a log beside the run's folder."""

    def __init__(self, folder: ExperimentFolder, threads: int, stop_at: float | None) -> None:
        self._folder, self._threads, self._stop_at = folder, threads, stop_at
        self._running: set[subprocess.Popen[bytes]] = set()
        self._starting, self._stopped = threading.Lock(), False

    def __call__(self, job: Job) -> Ending:
        log = self._folder.beside(job, ".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = job_command(self._folder.path, job.name, self._stop_at)
        environment = os.environ | {WATCHED: "1", "OMP_NUM_THREADS": str(self._threads)}
        with log.open("ab") as output:
            begin = output.tell()
            with self._starting:  # so that `stop` misses none
                if self._stopped:
                    return STOPPED
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environment
                )
                self._running.add(process)
            try:
                status = process.wait()
            finally:
                self._running.discard(process)
                if process.stdin is not None:
                    process.stdin.close()
        return ending(status, log, begin)

    def stop(self) -> None:
        """Ends all jobs: started again they go on from their last step. None is started any more."""
        with self._starting:
            self._stopped = True
            for process in list(self._running):
                process.terminate()


def job_command(folder: Path, name: str, stop_at: float | None) -> list[str]:
    """How a job is started."""
    command = [sys.executable, "-m", "mind", "experiment", "--job", name, "--output", str(folder)]
    if stop_at is not None:
        command += ["--stop-after", repr(max(stop_at - time.monotonic(), 0.06) / 60)]
    return command


def ending(status: int, log: Path, begin: int) -> Ending:
    """What the exit status of a job means, with the last lines of what it wrote from byte `begin` on."""
    if status == 0:
        return Ending("done")
    if status == PAUSED:
        return Ending("paused")
    with log.open("rb") as file:
        file.seek(begin)
        lines = deque((line for line in file.read().decode(errors="replace").splitlines() if line.strip()), SHOWN_LINES)
    said = [line for line in lines if line.startswith("mind: error:")] or list(lines)
    how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return Ending("failed", "; ".join([how, *(one_line(line, 300) for line in said)]))


def end_with_parent() -> None:
    """This process ends at once when the one that started it has ended, if that is a runner of experiments."""
    if os.environ.pop(WATCHED, None) is None:
        return
    pipe = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def watch() -> None:
        while os.read(pipe, 1):  # returns nothing when no process holds the other end
            pass
        os._exit(1)  # as a kill would: what is on the disk is whole

    threading.Thread(target=watch, daemon=True).start()


class RayTasks:
    """A task of a Ray cluster for each job, whose machines share the folder."""

    def __init__(self, folder: ExperimentFolder, address: str, threads: int, stop_at: float | None) -> None:
        """Raises MindError if Ray is not installed or the cluster cannot be reached."""
        send_nothing_unasked()
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise MissingError("--ray needs the package ray: pip install 'mind-kernels[ray]'") from None
        try:
            # A cluster that begins here has nobody to look at its dashboard.
            more = {"include_dashboard": False} if address == "local" else {}
            ray.init(address=address, log_to_driver=False, **more)
        except Exception as error:  # of many kinds
            raise MindError(f"--ray {address}: {one_line(str(error), 300)}") from None

        resources = ray.cluster_resources()
        gpus = 1 if resources.get("GPU") else 0

        @ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)
        def task(job: Job, seconds: float | None) -> Ending:
            until = None if seconds is None else time.monotonic() + seconds
            return Processes(folder, threads, until)(job)

        self._ray, self._task, self._stop_at = ray, task, stop_at
        self._running: set[Any] = set()
        self._starting, self._stopped = threading.Lock(), False
        self.at_a_time = max(int(resources["GPU"]) if gpus else int(resources.get("CPU", 1) // threads), 1)
        """How many jobs the cluster has room for."""

    def __call__(self, job: Job) -> Ending:
        seconds = None if self._stop_at is None else self._stop_at - time.monotonic()
        with self._starting:
            if self._stopped:
                return STOPPED
            task = self._task.remote(job, seconds)
            self._running.add(task)
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            return Ending("failed", one_line(str(error), 300))
        finally:
            self._running.discard(task)

    def stop(self) -> None:
        """As of `Processes`: the cluster's process that waits for a job is killed, and the job ends with it."""
        with self._starting:
            self._stopped = True
            for task in list(self._running):
                self._ray.cancel(task, force=True)
