"""responses.jsonl: every answer on disk before it counts, so that a kill at any moment loses and repeats nothing."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mind.errors import MindError
from mind.files import json_rows, naming
from mind.records import Key, Response
from mind.typed_json import record_of, row_of

logger = logging.getLogger(__name__)


class Journal:
    """An append-only file of responses, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file; raises MindError if another process holds it."""
        self.path = path
        self._file = path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise MindError(f"{path}: another process is writing it") from None
        self._mend()

    def _mend(self) -> None:
        """Cuts off the line that a kill left unfinished: its answer was never counted, and is asked for again."""
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
                "%s: an unfinished line of %d bytes was cut off; its answer is asked for again", self.path, end - whole
            )
            self._file.truncate(whole)

    def append(self, responses: Iterable[Response]) -> None:
        """Writes `responses` and returns when they are on the disk."""
        with naming(self.path):
            for response in responses:
                self._file.write(json.dumps(row_of(response)).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with naming(self.path):
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load_responses(path: str | os.PathLike[str]) -> Iterator[Response]:
    """The responses of a journal, one after another.

    Raises MindError with the line for a missing file, what is not a response, and a key that comes twice.
    """
    places: dict[Key, str] = {}
    for where, row in json_rows(path):
        response = record_of(Response, where, row)
        if response.key in places:
            line = places[response.key].rpartition(":")[2]
            raise MindError(f"{where}: {response.key} is also on line {line}")
        places[response.key] = where
        yield response
