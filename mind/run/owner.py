"""Locks the folder of a run for a launch of several processes: the main one writes it, and the others read it."""

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
"""Seconds to wait until a file written by another machine becomes visible: NFS remembers that long that a file was
missing."""


@contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """Inside the block the folder, made if it is missing, belongs to this launch alone.

    Raises MindError in all processes if another launch has it, or if a process of this launch does not see it.
    """
    with ExitStack() as stack:
        processes.by_main(lambda: stack.enter_context(folder.held()))
        _check_shared(folder)
        yield


def _check_shared(folder: RunFolder) -> None:
    """Checks that every process can read a word that the main one writes. After an error a folder that is otherwise
    empty is removed, since nothing has begun."""
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
    """Whether the file with this word is visible, now or within LOOK_S; the other processes wait for this one
    meanwhile."""
    end = time.monotonic() + min(LOOK_S, processes.timeout_s() / 2)
    while not (file.exists() and file.read_text() == word):
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
