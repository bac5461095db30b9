"""Faults that a case must find."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path


def written_in_place() -> None:
    """Files are written where they are read."""
    import mind.files

    @contextmanager
    def replacing_file(path):
        Path(path).write_bytes(b"")
        yield Path(path)

    mind.files.replacing_file = replacing_file


def forgets() -> None:
    """An answer is told as stored before it is on the disk."""
    from mind.teacher.journal import Journal
    from tests.chaos.commands import fake_vllm

    fake_vllm()

    def append(self, records):
        for _ in records:
            pass

    Journal.append = append
