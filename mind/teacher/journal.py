"""Journals such as responses.jsonl: an answer is on the disk before it counts, so a killed job loses and repeats
nothing."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mind.data.rows import keyed_records
from mind.display import readable
from mind.errors import MindError, require
from mind.files import is_at, json_rows, lock, naming
from mind.perspectives import KNOWLEDGE
from mind.records import Response
from mind.teacher.requests import Wasted
from mind.typed_json import record_of, row_of

logger = logging.getLogger(__name__)

_CHUNK = 2**20
"""Bytes written at a time."""


class Journal:
    """An append-only file of records, held by one process at a time."""

    def __init__(self, path: Path, *, reserve: int = 0) -> None:
        """Opens or creates the file, and reserves `reserve` bytes of the disk, so that answers under way fit if the
        disk fills up.

        Raises MindError if another process holds the file, and if the disk has too little room.
        """
        self.path = path
        self._reserve = path.with_name(f".{path.name}.reserve")
        self._file = path.open("ab+", buffering=0)
        try:
            lock(self._file, f"{path}: another process is writing it")
        except MindError:
            self._file.close()
            raise
        self._end = self._mend()
        _sync_folder(path.parent)
        if reserve:
            self._take(reserve)

    def _take(self, size: int) -> None:
        try:
            with self._reserve.open("wb") as file:
                if size > shutil.disk_usage(self.path.parent).free:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                for left in range(size, 0, -_CHUNK):
                    file.write(bytes(min(left, _CHUNK)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self.close()
            raise MindError(
                f"{self.path.parent}: no room for the {-(-size // 1000):,} kB of answers that are under way at a time: "
                f"{error.strerror}"
            ) from None

    def _mend(self) -> int:
        """Cuts off a line that a killed process left unfinished: its answer never counted, and will be asked for again.

        Returns where the complete lines end.
        """
        end = self._file.seek(0, os.SEEK_END)
        whole, position = end, end
        while position:
            start = max(position - 65536, 0)
            self._file.seek(start)
            newline = self._file.read(position - start).rfind(b"\n")
            if newline >= 0:
                whole = start + newline + 1
                break
            whole = position = start
        if whole < end:
            logger.warning(
                "%s: an unfinished line of %d bytes was cut off; its answer is asked for again",
                readable(str(self.path)),
                end - whole,
            )
            self._file.truncate(whole)
        return whole

    def append(self, records: Iterable[Any]) -> None:
        """Writes `records` and returns when they are on the disk.

        Raises OSError if the disk is full. By then the records are in the reserved place, if there is one, and later
        ones will be too; nothing more should be asked for. Nor should it after the MindError that says that the file is
        no longer at its path: the records are in the file that was moved, or are lost with the one that was removed.
        """
        lines = b"".join(json.dumps(row_of(record)).encode() + b"\n" for record in records)
        with naming(self.path):
            try:
                self._write(lines)
            except OSError:
                self._reserve.unlink(missing_ok=True)
                self._write(lines)
                raise
        require(
            is_at(self.path, self._file),
            f"{self.path}: moved or removed while the job ran, which ends here; start it again where the answers are",
        )

    def _write(self, lines: bytes) -> None:
        """Writes all of `lines` or, if it raises, none: a part that was written is cut off, at the latest before the
        next write."""
        if self._file.seek(0, os.SEEK_END) > self._end:
            self._file.truncate(self._end)
        left = memoryview(lines)
        try:
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError:
            with suppress(OSError):  # of a disk that fails at everything
                self._file.truncate(self._end)
            raise
        self._end += len(lines)

    def close(self) -> None:
        self._reserve.unlink(missing_ok=True)
        with naming(self.path):
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load_responses(path: str | os.PathLike[str]) -> Iterator[Response]:
    """The responses of a journal, one after another; raises MindError as `mind.data.rows.keyed_records`."""
    return keyed_records(Response, path)


def load_rationales(path: str | os.PathLike[str]) -> Iterator[Response]:
    """The responses of a journal that are rationales, which are the ones to judge."""
    return (response for response in load_responses(path) if response.key.perspective != KNOWLEDGE)


def load_wasted(path: str | os.PathLike[str]) -> Iterator[Wasted]:
    """The attempts without an answer in a journal; raises a MindError with the line of a faulty record."""
    for where, row in json_rows(path):
        yield record_of(Wasted, where, row)


def _sync_folder(folder: Path) -> None:
    """Returns when the names of the folder's files are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
