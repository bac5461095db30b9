"""Jobs of an experiment as forks of their runner, which has imported what they need: a process of its own takes longer
to import that than such a job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any


def fork_them() -> None:
    """In the runner: its jobs are forks of it from now on."""
    import mind.experiment.places

    used = SimpleNamespace(Popen=_Job, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
    mind.experiment.places.subprocess = used  # pyright: ignore[reportAttributeAccessIssue]


class _Job:
    """Of subprocess.Popen what a place for jobs uses."""

    def __init__(self, command: list[str], *, stdin: Any, stdout: Any, stderr: Any, env: Mapping[str, str]) -> None:
        read, write = os.pipe()
        sys.stdout.flush()
        self._pid = os.fork()
        if not self._pid:
            os.close(write)
            _become(command[3:], read, stdout.fileno(), env)
        os.close(read)
        self.stdin = SimpleNamespace(close=lambda: os.close(write))
        self._ended = threading.Event()

    def wait(self) -> int:
        _, status = os.waitpid(self._pid, 0)
        self._ended.set()
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        if not self._ended.is_set():
            os.kill(self._pid, signal.SIGKILL)


def _become(words: list[str], stdin: int, output: int, environment: Mapping[str, str]) -> None:
    """The process of the job, which does not return."""
    status = 1
    try:
        for stream, file in ((0, stdin), (1, output), (2, output)):
            os.dup2(file, stream)
        # As in a new program: else a job would hold its runner's lock when that is killed.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        # Another thread of the runner may have held the locks of the streams that were copied with it.
        sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
        os.environ.clear()
        os.environ.update(environment)
        from mind.cli import main

        status = main(words)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
