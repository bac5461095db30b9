"""The folder of a run whose launch has several processes: the main one owns it, and the others read what it wrote."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mind import processes
from mind.errors import MindError
from mind.run_folder import MARK, RunFolder

LOOK_S = 60
"""Seconds for what another machine wrote to come into sight: NFS remembers for as long that a file was not there."""


@contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """The folder, made if it is missing, is this launch's own inside.

    Raises MindError in all processes if another launch has it, or if one of this launch does not see it.
    """
    with ExitStack() as stack:
        processes.by_main(lambda: stack.enter_context(folder.held()))
        _check_shared(folder)
        yield


def _check_shared(folder: RunFolder) -> None:
    """Every process must come to read the word that the main one leaves. A folder that is empty otherwise goes with the
    error: nothing has begun."""
    if processes.count() == 1:
        return
    mark = folder.path / MARK
    word = processes.agreed(lambda: uuid.uuid4().hex)
    processes.by_main(lambda: mark.write_text(word))
    found = processes.together((_comes(mark, word), socket.gethostname()))
    processes.by_main(mark.unlink)
    for number, (seen, host) in enumerate(found):
        if not seen:
            with suppress(OSError):
                processes.by_main(folder.path.rmdir)
            raise MindError(
                f"{folder.path}: process {number}, on {host}, does not see the folder that process 0, on "
                f"{found[0][1]}, writes to: --output names one that all processes share"
            )


def _comes(file: Path, word: str) -> bool:
    """Whether the file is there with this word, now or within LOOK_S; the others wait for this process meanwhile."""
    end = time.monotonic() + min(LOOK_S, processes.timeout_s() / 2)
    while not (file.exists() and file.read_text() == word):
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
