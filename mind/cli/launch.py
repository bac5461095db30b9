"""A command in several processes, started by torchrun or accelerate: one speaks, and a failure is told once."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from mind import processes

LOST = "another process of this launch has ended, or does not answer"


class LaunchEnded(SystemExit):
    """The launcher ends this process, since another one has failed or it is itself told to end."""


def join(words: Sequence[str]) -> None:
    """Meets the other processes before anything is read or written; all have the same command line.

    From here on the main process alone prints, but for the message of a failure, which is that of the first process
    to fail, whichever it is.
    """
    if not processes.main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lives
        warnings.simplefilter("ignore")
        # Read when these are imported, which is later.
        os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    processes.begin()
    signal.signal(signal.SIGTERM, _end)
    processes.check_same("the command line", _by_option(words))


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
    if processes.joined():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return processes.first_to_fail()


def _end(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise LaunchEnded(2)
