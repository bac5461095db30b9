"""A command in several processes, started by torchrun or accelerate: one speaks, and a failure is told once."""

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
"""Seconds that a process waits for the others before it says so."""


class LaunchEnded(SystemExit):
    """The launcher ends this process, since another one has failed or it is itself told to end."""


def join(words: Sequence[str]) -> None:
    """Meets the other processes before anything is read or written; all have the same command line.

    From here on the main process alone prints, but for the message of a failure, which is that of the first process
    to fail, whichever it is. One process, which has nobody to meet, forgets what a launch left in its environment.
    """
    if processes.count() == 1:
        if not os.environ.get("WORLD_SIZE"):
            os.environ.pop("LOCAL_RANK", None)  # by which accelerate would look for a launch
        return
    if not processes.main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lives
        warnings.simplefilter("ignore")
        # Read when these are imported, which is later.
        os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with _said_after(WAITS_S):
        processes.begin()
    signal.signal(signal.SIGTERM, _end)
    processes.check_same("the command line", _by_option(words))


@contextmanager
def _said_after(seconds: float) -> Iterator[None]:
    """Says what this process waits for if it takes longer: variables of a launch may be there without one."""
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


@contextmanager
def leaving_together() -> Iterator[None]:
    """The main process alone says which option is wrong, and then a parser ends the program: the others wait for that,
    since a launcher ends all processes once one has ended."""
    try:
        yield
    except SystemExit:
        if processes.joined():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            processes.wait()
        raise


def _by_option(words: Sequence[str]) -> dict[str, str]:
    """What follows each option, "" if that is nothing, and the command under its own name."""
    found, option = {"the command": ""}, "the command"
    for word in words:
        if word.startswith("--"):
            option, assigned, word = word.partition("=")
            found[option] = word if assigned else ""
        else:
            found[option] = f"{found[option]} {word}".strip()
    return found


def ending() -> bool:
    """Whether this process, which ends because of an error, is the one that tells it. The launcher, which ends all of
    them when one has failed, no longer interrupts it."""
    if os.environ.get("WORLD_SIZE"):  # also one that is no number
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return processes.first_to_fail()


def _end(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise LaunchEnded(2)
