"""Stores vectors and texts on the disk: one file per student while they are computed, then latent.npz with all of them.

An array is named "STUDENT/ARRAY". Each student has an "identity", a digest of what its arrays come from; arrays with
another identity are computed again.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mind.errors import MindError
from mind.files import replacing_file

Arrays = Mapping[str, np.ndarray]
_IDENTITY = "identity"


class Store:
    """The vectors of an analysis in its folder, which must exist."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "latent.npz"
        self._parts = folder / "vectors"

    def get(self, student: str, identity: str) -> dict[str, np.ndarray] | None:
        """The arrays that `put` stored for a student with this identity; None if there are none. Raises MindError for a
        file that cannot be read."""
        for file in (self._part(student), self.file):
            found = _read(file, student) if file.exists() else {}
            if found and str(found.pop(_IDENTITY)) == identity:
                return found
        return None

    def put(self, student: str, identity: str, arrays: Arrays) -> None:
        """Stores the arrays of a student, texts or numbers, before the analysis is done."""
        self._parts.mkdir(exist_ok=True)
        _write(self._part(student), {student: {**arrays, _IDENTITY: np.array(identity)}})

    def count(self) -> int:
        """The number of students that `put` stored arrays of, before the analysis is done."""
        return len(list(self._parts.glob("*.npz")))

    def finish(self, students: Mapping[str, str]) -> None:
        """Moves the arrays of these students, name -> identity, into latent.npz, and removes all others."""
        kept = {name: self.get(name, identity) for name, identity in students.items()}
        _write(self.file, {name: {**(kept[name] or {}), _IDENTITY: np.array(students[name])} for name in students})
        shutil.rmtree(self._parts, ignore_errors=True)

    def _part(self, student: str) -> Path:
        return self._parts / f"{student}.npz"


def padded(rows: Iterable[list[int]]) -> np.ndarray:
    """Lists of token ids as an array (R, longest), padded with -1."""
    rows = list(rows)
    table = np.full((len(rows), max(map(len, rows), default=0)), -1, np.int32)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table


def unpadded(table: np.ndarray) -> list[list[int]]:
    """The lists that `padded` was given."""
    return [row[row >= 0].tolist() for row in table]


def _write(file: Path, students: Mapping[str, Arrays]) -> None:
    arrays: dict[str, Any] = {f"{name}/{key}": array for name, some in students.items() for key, array in some.items()}
    with replacing_file(file) as partial, partial.open("wb") as opened:
        np.savez(opened, **arrays)


def _read(file: Path, student: str) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            names = [name for name in arrays.files if name.rpartition("/")[0] == student]
            return {name.rpartition("/")[2]: arrays[name] for name in names}
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise MindError(f"{file}: cannot be read: {error}; without it the vectors are computed again") from error
