"""Runs a command in several processes, started by torchrun or accelerate: one prints, and a failure is reported
once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mind import processes
from mind.cli.terminal import complain

LOST = "another process of this launch has ended, or does not answer"
TOLD_TO_END = "the launcher ends this process: somebody stopped the launch, or another process ended without a message"
WAITS_S = 10.0
"""Seconds after which a process says that it waits for the others."""


class LaunchEnded(SystemExit):
    """The launcher ends this process, because another one has failed or the launcher itself was told to end."""


def join(words: Sequence[str]) -> None:
    """Connects to the other processes before anything is read or written; all must have the same command line.

    From here on only the main process prints, except the message of a failure, which comes from the first process that
    fails. A single process removes what an earlier launch left in its environment.
    """
    if processes.count() == 1:
        if not os.environ.get("WORLD_SIZE"):
            for name in processes.OF_LAUNCHES:
                os.environ.pop(name, None)
        return
    if not processes.main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lives
        warnings.simplefilter("ignore")
        # Set before these are imported, since they read it then.
        os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with _said_after(WAITS_S):
        processes.begin()
    end_when_told()
    processes.check_same("the command line", _by_option(words))


@contextmanager
def _said_after(seconds: float) -> Iterator[None]:
    """Says what this process waits for if it takes longer than `seconds`: the variables of a launch may be set without
    one."""
    place = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    text = f"waits for the other processes of WORLD_SIZE {processes.count()}, at {place}; {processes.REMEDY}"
    timer = threading.Timer(seconds, complain, ("mind", text))
    timer.daemon = True
    if processes.speaks():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _by_option(words: Sequence[str]) -> dict[str, str]:
    """The words after each option ("" if there are none), and the command under its own name."""
    found, option = {"the command": ""}, "the command"
    for word in words:
        if word.startswith("--"):
            option, assigned, word = word.partition("=")
            found[option] = word if assigned else ""
        else:
            found[option] = f"{found[option]} {word}".strip()
    return found


def ending() -> bool:
    """Whether this process, which ends because of an error, should report it. From then on the launcher, which ends all
    processes when one has failed, no longer interrupts it."""
    if os.environ.get("WORLD_SIZE"):  # even if it is not a number
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return processes.first_to_fail()


def end_when_told() -> None:
    """From now on this process, one of several, ends by LaunchEnded if the launcher sends SIGTERM."""
    signal.signal(signal.SIGTERM, _end)


def _end(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise LaunchEnded(2)
