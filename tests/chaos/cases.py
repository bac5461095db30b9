"""A case: a command is started on a disk of its own, disturbed once or twice, and then left in peace. What must hold:

- a start ends by itself, with a message if it failed, and never with a traceback or the key;
- what was on the disk for good stays, and files that are replaced at once are whole or not there;
- the start that is left in peace goes on or begins again, and leaves what an undisturbed one leaves, and nothing else;
- a server's answers are bought once, but for those under way when a start was killed, and their tokens count.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mind.display import one_line
from tests.chaos.commands import COMMANDS, reply
from tests.chaos.disturbances import Disturbance, Reference
from tests.chaos.server import KEY, USAGE, Teacher
from tests.chaos.starts import Disk, Start, start

LIE_SHARE = 0.3
"""Of the attempts of a case with a server that lies."""
MOST_STARTS = 12
"""In peace, until all is there: a lie may end a job, and so may a disturbance that lasts."""
MESSAGES = ("mind: error:", "mind: interrupted", "stopped:", "the last failure:", "failed:")


@dataclass
class Outcome:
    """What became of a case."""

    command: str
    seed: int
    disturbances: list[Disturbance] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)
    """The disturbed starts by how they ended: killed, error, by itself."""
    violations: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """By each start."""
    seconds: float = 0.0


class Bench:
    """A command with what it reads and an undisturbed result of it."""

    def __init__(self, name: str, place: Path, teacher: Teacher) -> None:
        self.name, self.command, self.place, self.teacher = name, COMMANDS[name], place, teacher
        self.inputs = place / "inputs"
        self.inputs.mkdir()
        prepare = multiprocessing.get_context("spawn").Process(target=_prepare, args=(name, self.inputs))
        prepare.start()
        prepare.join()
        assert prepare.exitcode == 0, f"{name}: its inputs cannot be made"
        teacher.begin(0, 0.0)
        start(self.command, place, ["--version"], limit_s=3600)  # the first one imports everything, and is not timed
        with self.disk() as disk:
            before, file = _bytes_of(disk.path), place / "operations"
            ended = self._start(disk, counted=file)
            assert ended.ended == "by itself", f"{name} does not work undisturbed: {ended.said}"
            assert bool(teacher.attempts) == bool(self.command.asks), f"{name} asked {teacher.attempts.total()} times"
            self.whole = dict(self.command.result(disk.path))
            self.at_once = {name: (disk.path / name).read_bytes() for name in self.command.at_once}
            sizes = tuple(one.stat().st_size for one in sorted(disk.path.rglob("*")) if one.is_file())
            grown = _bytes_of(disk.path) - before
            operations = [int(Path(f"{file}-{rank}").read_text()) for rank in range(self.command.processes)]
            self.reference = Reference(tuple(operations), ended.seconds, sizes, grown)

    @contextmanager
    def disk(self) -> Iterator[Disk]:
        disk = Disk(self.place / "disk")
        try:
            self.command.begin(self.inputs, disk.path)
            yield disk
        finally:
            disk.remove()

    def _start(self, disk: Disk, disturbance: Disturbance | None = None, counted: Path | None = None) -> Start:
        words = [self.teacher.url if word == "URL" else word for word in self.command.words(self.inputs, disk.path)]
        return start(self.command, self.place, words, disturbance, counted)

    def case(self, seed: int) -> Outcome:
        """The case of this seed, always the same but for times."""
        draw, outcome = random.Random(f"{self.name} {seed}"), Outcome(self.name, seed)
        with self.disk() as disk:
            kinds = [kind for kind in self.command.kinds if disk.limited or kind != "full disk"]
            lies = bool(self.command.asks) and draw.random() < 0.3
            for _ in range(draw.choice((1, 1, 2))):
                kind = draw.choice(kinds)
                one = Disturbance.draw(kind, draw, self.reference, self.command.processes)
                if kind in ("worker", "engine"):
                    one = Disturbance(kind, seed, operation=draw.randint(1, 12))
                lies = lies or kind == "lies"
                outcome.disturbances.append(one)
            self.teacher.begin(seed, LIE_SHARE if lies else 0.0)
            for one in outcome.disturbances:
                self.disturb(disk, one, outcome)
            self._in_peace(disk, outcome)
        shutil.rmtree(self.place / "cache", ignore_errors=True)
        return outcome

    def disturb(self, disk: Disk, one: Disturbance, outcome: Outcome) -> None:
        before = {name: _lines(disk.path / name) for name in self.command.journals}
        if one.kind == "full disk":
            disk.leave(int(one.amount))
        ended = self._start(disk, one)
        if one.kind == "full disk":
            disk.leave(None)
        outcome.ended[ended.ended] += 1
        outcome.seconds += ended.seconds
        self._check_start(ended, outcome)
        if ended.ended == "killed" and not one.kills:
            outcome.violations.append(f"a start was killed, by none of ours: {ended.statuses}")
        for name, lines in before.items():
            if lines[: len(lines)] != _lines(disk.path / name)[: len(lines)]:
                outcome.violations.append(f"{name} has lost lines that were there")
        for name, whole in self.at_once.items():
            file = disk.path / name
            if file.exists() and file.read_bytes() != whole and _is_plain(whole):
                outcome.violations.append(f"{name} is there and not whole")
        if ended.ended == "by itself":
            self._check_result(disk, outcome, "a start that was disturbed and ended by itself")

    def _in_peace(self, disk: Disk, outcome: Outcome) -> None:
        for _ in range(MOST_STARTS):
            ended = self._start(disk)
            outcome.seconds += ended.seconds
            self._check_start(ended, outcome)
            if ended.ended == "by itself":
                break
            if not self.command.asks or not self.teacher.lies:
                said = one_line(ended.said[-400:], 400)
                outcome.violations.append(f"cannot go on: {ended.statuses}: {said}")
                return
        else:
            outcome.violations.append(f"is not done after {MOST_STARTS} starts")
            return
        self._check_result(disk, outcome, "the rerun")
        self._check_left(disk, outcome)
        if self.command.asks:
            self._check_paid(disk, outcome)

    def _check_start(self, ended: Start, outcome: Outcome) -> None:
        said = outcome.violations.append
        outcome.said.append(f"{ended.statuses}\n{ended.said}")
        if None in ended.statuses:
            said("hangs")
        if "Traceback" in ended.said:
            said(f"a traceback: {one_line(ended.said.strip().splitlines()[-1], 200)}")
        if ended.ended == "error" and not any(message in ended.said for message in MESSAGES):
            said(f"no message: {ended.statuses}: {one_line(ended.said[-200:], 200)}")
        if KEY in ended.said:
            said("the key is printed")

    def _check_result(self, disk: Disk, outcome: Outcome, who: str) -> None:
        try:
            found = self.command.result(disk.path)
        except Exception as error:
            outcome.violations.append(f"{who} left no result: {type(error).__name__}: {one_line(str(error), 200)}")
            return
        outcome.violations += [f"{who} has another result: {what}" for what in differences(self.whole, found)]

    def _check_left(self, disk: Disk, outcome: Outcome) -> None:
        left = [path for path in disk.path.rglob("*") if path.suffix in (".partial", ".former", ".reserve")]
        outcome.violations += [f"{path.relative_to(disk.path)} is left" for path in left]
        for file in disk.path.rglob("*"):
            if file.is_file() and KEY.encode() in file.read_bytes():
                outcome.violations.append(f"{file.relative_to(disk.path)} has the key")

    def _check_paid(self, disk: Disk, outcome: Outcome) -> None:
        """`asks` names the journal of what was paid for and gave no answer."""
        twice = sum(count - 1 for count in self.teacher.answers.values())
        stops = sum(one.kind != "lies" for one in outcome.disturbances)
        if twice > stops * self.command.under_way:
            told = [self.teacher.told[name] for name, count in self.teacher.answers.items() if count > 1]
            outcome.violations.append(f"{twice} answers were bought twice in {stops} disturbed starts: {told}")
        rows = [json.loads(line) for line in _lines(disk.path / str(self.command.asks))]
        counted = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)
        lost = self.teacher.paid - counted
        if not 0 <= lost <= stops * self.command.under_way * sum(USAGE):
            outcome.violations.append(f"{self.teacher.paid} tokens were told without an answer, {counted} are counted")


def differences(whole: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What is not the same, in a line each."""
    names = [name for name in {**whole, **found} if whole.get(name) != found.get(name)]
    return [
        f"{name}: {one_line(repr(found.get(name)), 100)} for {one_line(repr(whole.get(name)), 100)}" for name in names
    ]


@contextmanager
def benches(names: list[str]) -> Iterator[Iterator[Bench]]:
    """The commands of these names, one after the other, with a teacher for all."""
    with ExitStack() as stack:
        teacher = stack.enter_context(Teacher(reply))

        def each() -> Iterator[Bench]:
            for name in names:
                with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
                    yield Bench(name, Path(folder), teacher)

        yield each()


def _prepare(name: str, inputs: Path) -> None:
    import os
    import sys

    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MIND_CACHE": str(inputs / "cache")}
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  of a process that ends here
    COMMANDS[name].prepare(inputs)


def _is_plain(content: bytes) -> bool:
    """Whether it holds no time by which it differs from start to start."""
    return b"<html" not in content and not content.startswith(b"PK")


def _lines(file: Path) -> list[bytes]:
    """The whole lines of a journal."""
    return file.read_bytes().split(b"\n")[:-1] if file.exists() else []


def _bytes_of(folder: Path) -> int:
    return sum(file.lstat().st_blocks for file in folder.rglob("*")) * 512
