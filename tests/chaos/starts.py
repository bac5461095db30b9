"""Starts of a command, each in a process of its own that has imported everything, on a disk that may be small."""

from __future__ import annotations

import functools
import multiprocessing.connection
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import launches
from launches import launch

from tests.chaos.commands import Command
from tests.chaos.disturbances import Disturbance, count

LIMIT_S = 180
"""A start of a tiny command that takes longer hangs, on a machine that is busy too."""
ROOM = 2**28
"""Bytes of a disk that is not full."""

IMPORTED = """
    tests.chaos.commands mind.cli.commands mind.cli.dataset mind.cli.evaluating mind.cli.experiment mind.cli.latent
    mind.cli.training mind.curation.dataset mind.experiment.job mind.experiment.runner mind.latent.analyze
    mind.run.train mind.teacher.online openai peft sklearn.mixture transformers.models.llama.modeling_llama tyro
"""
launches._context.set_forkserver_preload(IMPORTED.split())


@dataclass(frozen=True)
class Start:
    """How one start ended."""

    statuses: tuple[int | None, ...]
    """Of its processes; None of one that hung."""
    said: str
    seconds: float

    @property
    def ended(self) -> str:
        """killed, error or by itself."""
        if any(status is None or status < 0 for status in self.statuses):
            return "killed"
        return "error" if any(self.statuses) else "by itself"


class Disk:
    """A folder, of which the room can be limited if this process may mount a file system."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.path = folder
        self.limited = os.geteuid() == 0 and _ran("mount", "-t", "tmpfs", "-o", f"size={ROOM}", "chaos", str(folder))

    def leave(self, free: int | None) -> None:
        """From now on so many bytes are free; None: enough."""
        used = sum(file.lstat().st_blocks for file in self.path.rglob("*")) * 512
        size = ROOM if free is None else max(used + free, 4096)
        assert self.limited and _ran("mount", "-o", f"remount,size={size}", str(self.path))

    def remove(self) -> None:
        if self.limited:
            assert _ran("umount", "-l", str(self.path))
        shutil.rmtree(self.path, ignore_errors=True)


def _ran(*words: str) -> bool:
    return subprocess.run(words, capture_output=True).returncode == 0


def _first(prefix: Callable[[], object], then: Callable[[], object] | None, forked_jobs: bool) -> None:
    """What a process does before the command."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had this process ignore it
    prefix()
    if forked_jobs:
        from tests.chaos import jobs

        jobs.fork_them()
    if then is not None:
        then()


def start(
    command: Command,
    place: Path,
    words: list[str],
    disturbance: Disturbance | None = None,
    counted: Path | None = None,
    limit_s: float = LIMIT_S,
) -> Start:
    """Starts the command in `place` and waits for its end.

    A file with the name of `counted` and the number of a process gets how many operations that took.
    """
    firsts = {}
    for rank in range(command.processes):
        strikes = disturbance is not None and rank == disturbance.rank
        count_them = None if counted is None else functools.partial(count, f"{counted}-{rank}")
        then = disturbance.install if disturbance is not None and strikes else count_them
        firsts[rank] = functools.partial(_first, command.prefix, then, words[0] == "experiment")
    environment: Mapping[str, str] = {"MIND_CACHE": str(place / "cache"), "TQDM_DISABLE": "1", **command.environment}
    began = time.monotonic()
    running = launch(place, words, command.processes, environment=environment, first=firsts)
    if disturbance is not None and disturbance.kind == "kill at a time":
        victim = running.processes[disturbance.rank]
        multiprocessing.connection.wait([victim.sentinel], disturbance.amount)
        if victim.exitcode is None:
            os.kill(victim.pid, getattr(signal, disturbance.signal))
    told = command.processes == 1
    while (left := [one for one in running.processes if one.exitcode is None]) and time.monotonic() < began + limit_s:
        multiprocessing.connection.wait([one.sentinel for one in left], 1)
        if not told and any(one.exitcode for one in running.processes):  # as torchrun does
            time.sleep(launches.LAUNCHER_LOOKS_S)
            for one in running.processes:
                one.terminate()
            told = True
    statuses = tuple(one.exitcode for one in running.processes)
    running.kill()
    for file in running.outputs:
        file.touch()  # a process that was killed at once has none
    said = "".join(running.said())
    for file in running.outputs:
        file.unlink()
    return Start(statuses, said, time.monotonic() - began)
