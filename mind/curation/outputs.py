"""Where a data set and the files beside it are to be written, so that none of another data set is lost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mind.errors import MindError
from mind.files import new_file

SUFFIXES = (".jsonl", ".parquet")
"""Of a data set."""


def new_data_set(
    name: str, endings: Sequence[str], *, overwrite: bool, inputs: Sequence[str | os.PathLike[str]] = ()
) -> Path:
    """The path of a data set to write, with files beside it that are named after it and have these endings.

    Raises MindError if one of them exists, unless `overwrite`; and in any case if it is one of `inputs`, or belongs to
    another data set, as the report of mine.jsonl does beside mine.parquet.
    """
    output = new_file(name, overwrite=overwrite)
    for path in (output, *(beside(output, ending) for ending in endings)):
        check_not_input(path, inputs)
    for suffix in SUFFIXES:
        other = output.with_suffix(suffix)
        if other != output and other.exists():
            raise MindError(f"{other}: exists already, and what belongs to it would be replaced: name another --output")
    for ending in endings:
        new_file(beside(output, ending), overwrite=overwrite)
    return output


def check_not_input(output: Path, inputs: Sequence[str | os.PathLike[str]]) -> None:
    """Raises MindError if `output` is one of the files that are read for it."""
    for path in inputs:
        if output.exists() and os.path.exists(path) and output.samefile(path):
            raise MindError(f"{output}: is also read, and would be lost: name another --output")


def beside(output: Path, ending: str) -> Path:
    """The file beside the data set `output` with this ending in the place of its own."""
    return Path(f"{output.with_suffix('')}{ending}")
