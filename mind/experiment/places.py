"""Starts jobs of experiments as processes of this machine or of a Ray cluster.

A process is started as `python -m mind experiment --job NAME --output FOLDER`. It ends when the process that started it
ends in any way: it reads a pipe whose other end only that process holds.
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
"""The environment variable that tells a job that its standard input is that pipe."""
PAUSED = 75
"""The exit status of a job that paused."""
SHOWN_LINES = 3
"""Number of log lines of a failed job that its message quotes."""
STOPPED = Ending("failed", "stopped before it began")


class Processes:
    """Runs each job in a process of this machine; its output goes to a log beside the run's folder."""

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
            with self._starting:  # so that `stop` misses no process
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
        """Ends all jobs and starts no more; when they are started again, they continue from their last step."""
        with self._starting:
            self._stopped = True
            for process in list(self._running):
                process.kill()  # SIGTERM is ignored by the jobs of a process that ignores it


def job_command(folder: Path, name: str, stop_at: float | None) -> list[str]:
    """The command that starts a job."""
    command = [sys.executable, "-m", "mind", "experiment", "--job", name, "--output", str(folder)]
    if stop_at is not None:
        command += ["--stop-after", repr(max(stop_at - time.monotonic(), 0.06) / 60)]
    return command


def ending(status: int, log: Path, begin: int) -> Ending:
    """The meaning of a job's exit status, with the last lines of what it wrote from byte `begin` on."""
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
    """Makes this process end at once when its parent has ended, if the parent is a runner of experiments."""
    if os.environ.pop(WATCHED, None) is None:
        return
    pipe = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def watch() -> None:
        while os.read(pipe, 1):  # returns nothing once no process holds the other end
            pass
        os._exit(1)  # as a kill would: files on the disk are complete

    threading.Thread(target=watch, daemon=True).start()


class RayTasks:
    """Runs each job as a task of a Ray cluster, whose machines share the folder."""

    def __init__(self, folder: ExperimentFolder, address: str, threads: int, stop_at: float | None) -> None:
        """Raises MindError if Ray is not installed or the cluster cannot be reached."""
        send_nothing_unasked()
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise MissingError("--ray needs the package ray: pip install 'mind-kernels[ray]'") from None
        try:
            # A cluster that is started here has nobody to look at its dashboard.
            more = {"include_dashboard": False} if address == "local" else {}
            ray.init(address=address, log_to_driver=False, **more)
        except Exception as error:  # Ray raises many kinds
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
        """Number of jobs that the cluster has room for."""

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
        """As in `Processes`: the cluster's process that waits for a job is killed, and the job ends with it."""
        with self._starting:
            self._stopped = True
            for task in list(self._running):
                self._ray.cancel(task, force=True)
