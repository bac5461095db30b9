"""Chooses the paths of a data set and its accompanying files, so that no file of another data set is overwritten."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mind.errors import MindError, require
from mind.files import check_apart, new_file

SUFFIXES = (".jsonl", ".parquet")
"""The endings of data sets."""


def new_data_set(
    name: str, endings: Sequence[str], *, overwrite: bool, inputs: Sequence[str | os.PathLike[str]] = ()
) -> Path:
    """The path of a data set to write, with files beside it that are named after it and have these endings.

    Raises MindError for a name that ends in none of SUFFIXES, which decide how it is read; if one of the files exists,
    unless `overwrite`; and in any case if it is one of `inputs`, or belongs to another data set, as the report of
    mine.jsonl would if mine.parquet is written beside it.
    """
    require(Path(name).suffix in SUFFIXES, f"--output {name}: expected a name that ends in {' or '.join(SUFFIXES)}")
    output = new_file(name, overwrite=overwrite)
    for path in (output, *(beside(output, ending) for ending in endings)):
        check_apart(path, inputs)
    for suffix in SUFFIXES if endings else ():
        other = output.with_suffix(suffix)
        if other != output and other.exists():
            raise MindError(f"{other}: exists already, and what belongs to it would be replaced: name another --output")
    for ending in endings:
        new_file(beside(output, ending), overwrite=overwrite)
    return output


def beside(output: Path, ending: str) -> Path:
    """The path of `output` with another ending."""
    return Path(f"{output.with_suffix('')}{ending}")
