"""What disturbs a command, and how it is drawn. A disturbance is installed in the process of the command itself."""

from __future__ import annotations

import datetime
import errno
import os
import random
import resource
import signal
import time
from dataclasses import dataclass, field
from typing import Any

from tests.chaos import operations
from tests.chaos.operations import Operation

SIGNALS = ("SIGKILL", "SIGINT", "SIGTERM")
ERRORS = {
    "ENOSPC": ("write", "open", "mkdir", "rename", "native"),
    "EIO": ("write", "truncate", "fsync", "rename", "native"),
}
"""The operations that fail with an error of the system, by its name."""
MESSAGE = 4096
"""Bytes of what a command prints, which goes to a file: the limit of sizes is not below."""
COMMON = ("kill at an operation", "kill at a time", "full disk", "ENOSPC", "EIO", "file size limit", "short", "clock")


@dataclass(frozen=True)
class Reference:
    """What an undisturbed start took."""

    operations: tuple[int, ...]
    """Of each process."""
    seconds: float
    sizes: tuple[int, ...]
    """Of the files that it left, in bytes."""
    grown: int
    """Bytes of the disk that it took."""


@dataclass(frozen=True)
class Disturbance:
    """One start of a command is disturbed so."""

    kind: str
    seed: int
    signal: str = "SIGKILL"
    operation: int = 0
    """Which operation it strikes, from 1, if it strikes one."""
    amount: float = 0.0
    """Of what its kind has an amount: seconds, bytes."""
    rank: int = 0
    """Which process it strikes, of several."""
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def draw(cls, kind: str, draw: random.Random, reference: Reference, processes: int = 1) -> Disturbance:
        """One of this kind, somewhere in a start that takes what the reference took."""
        amount, rank = 0.0, draw.randrange(processes)
        if kind == "kill at a time":
            amount = draw.uniform(0, 1.1 * reference.seconds)
        elif kind == "full disk":
            amount = float(round(draw.uniform(0, 1.1) * reference.grown))
        elif kind == "file size limit":
            amount = float(round(draw.uniform(0, 1) * draw.choice(reference.sizes or (4096,))))
        return cls(
            kind,
            draw.randrange(2**31),
            draw.choice(SIGNALS),
            draw.randint(1, reference.operations[rank]),
            amount,
            rank,
        )

    @property
    def kills(self) -> bool:
        """Whether it ends the command without a chance to store what is under way."""
        return self.kind.startswith("kill")

    def __str__(self) -> str:
        where = {
            "kill at an operation": f"{self.signal} at operation {self.operation}",
            "kill at a time": f"{self.signal} after {self.amount:.2f} s",
            "full disk": f"a disk with {self.amount:,.0f} bytes of room",
            "ENOSPC": f"no space left from operation {self.operation} on",
            "EIO": f"an I/O error at operation {self.operation}",
            "file size limit": f"no file beyond {self.amount:,.0f} bytes",
            "worker": f"the worker is killed at call {self.operation}",
            "engine": f"the engine dies at call {self.operation}",
        }.get(self.kind, self.kind)
        return where + (f", in process {self.rank}" if self.rank else "")

    def install(self) -> None:
        """In the process of the command, before it begins."""
        draw = random.Random(self.seed)
        if self.kind == "kill at an operation":
            operations.install(lambda one: self._kill(one))
        elif self.kind in ERRORS:
            operations.install(lambda one: self._fail(one))
        elif self.kind == "short":
            operations.install(lambda one: None, short=draw)
        elif self.kind == "file size limit":
            limit = max(int(self.amount), MESSAGE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        elif self.kind == "clock":
            _step_clock(draw)
        elif self.kind == "worker":
            _kill_worker(self.operation)
        elif self.kind == "engine":
            _end_engine(self.operation)

    def _kill(self, one: Operation) -> None:
        if one.number == self.operation:
            number = getattr(signal, self.signal)
            if number == signal.SIGKILL or signal.getsignal(number) == signal.SIG_DFL:
                one.half()  # a process that handles the signal ends the write before
            os.kill(os.getpid(), number)

    def _fail(self, one: Operation) -> None:
        lasting = self.kind == "ENOSPC"
        struck = one.number >= self.operation if lasting else one.number == self.operation
        if struck and one.kind in ERRORS[self.kind]:
            one.half()
            raise one.error(getattr(errno, self.kind))


def count(file: str) -> None:
    """In the process of a command that nothing disturbs: writes how many operations it took into a file."""
    operations.install(lambda one: operations.tell(file, one.number))


def _step_clock(draw: random.Random) -> None:
    """The wall clock jumps by up to two weeks, forward or back, every few times that it is read."""
    import mind.provenance
    import mind.teacher.online

    plain, offset = time.time, 0.0

    def stepped() -> float:
        nonlocal offset
        if draw.random() < 0.2:
            offset = draw.uniform(-1.2e6, 1.2e6)
        return plain() + offset

    class Stepped(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.fromtimestamp(stepped(), tz)

    time.time = stepped
    time.time_ns = lambda: int(1e9 * stepped())
    mind.provenance.datetime = mind.teacher.online.datetime = Stepped  # pyright: ignore[reportPrivateImportUsage]


def _kill_worker(call: int) -> None:
    """The process that compares LaTeX answers is killed as it gets a pair to compare."""
    from mind.grading import latex_equality

    plain, calls = latex_equality._ask, 0

    def ask(process, *pair):
        nonlocal calls
        calls += 1
        if calls == call:
            process.kill()
        return plain(process, *pair)

    latex_equality._ask = ask


def _end_engine(call: int) -> None:
    """vLLM's engine, which runs in a process of its own, is gone when it is called."""
    import sys

    engine: Any = sys.modules["vllm"]
    calls = 0
    plain = engine.reply

    def reply(turn):
        nonlocal calls
        calls += 1
        if calls >= call:
            raise RuntimeError("EngineCore encountered an issue. See stack trace (above) for the root cause.")
        return plain(turn)

    engine.reply = reply
