"""Recognizes a folder of another kind than a command reads, and names the command that takes it."""

from __future__ import annotations

import os
from pathlib import Path

from mind.cli.terminal import command_line
from mind.display import path_meant
from mind.errors import MindError, require
from mind.experiment.folder import ExperimentFolder
from mind.run_folder import RunFolder
from mind.teacher.folder import DatasetFolder

_TABLES = (".csv", ".tsv", ".xls", ".xlsx", ".parquet", ".arrow")
"""Endings of files that programs read as tables, which JSON in them is not."""
_WRITTEN_BY = {"a run": "mind train", "an experiment": "mind experiment", "a data set": "mind data generate"}
"""The command that makes a folder of each kind."""
SHOWN = 3
"""Number of runs that a message names if the folder holds them."""


def check_json_name(output: str, ending: str) -> None:
    """Raises MindError for the name of a file of JSON that ends as one of another format; `ending` is meant instead."""
    path = Path(output)
    require(
        path.suffix.lower() not in _TABLES,
        f"--output {output}: {'JSON lines' if ending == '.jsonl' else 'JSON'} will be written, and no {path.suffix} "
        f"file: name it {path.with_suffix(ending)}",
    )


def check_kind(path: str, expected: str) -> None:
    """Raises MindError if there is nothing at `path`, or something known to be other than what is expected: "a run",
    "an experiment" or "a data set". A folder of no known kind is left to those who read it."""
    require(os.path.lexists(path), f"{path}: no such folder{path_meant(Path(path))}")
    kind, remedy = _kind(Path(path))
    if kind and kind != expected:
        if not remedy and expected in _WRITTEN_BY:
            remedy = f": the folder that `{_WRITTEN_BY[expected]}` writes"
        raise MindError(f"{path} is {kind}, and {expected} is expected here{remedy}")


def _kind(path: Path) -> tuple[str, str]:
    """What there is at the path, and the end of a message with the command that takes it; "" if that is not known."""
    data, run = DatasetFolder(path), RunFolder(path)
    if path.is_file():
        return "a file", ""
    if not path.is_dir():
        return "", ""
    if not any(path.iterdir()):
        return "an empty folder", ""
    if ExperimentFolder(path).experiment.is_file():
        return "an experiment", f": `{command_line('compare', str(path))}` reads it"
    if run.begun is not None:
        return "a run", f": `{command_line('report', str(path))}` reads it"
    if data.responses.is_file() or data.config.is_file():
        return "a data set", f": `{command_line('data', 'judge', str(path))}` and `mind data filter` read it"
    if (path / "config.json").is_file():
        return "a model", f": `{command_line('evaluate', '--student.model', str(path))} --files FILE` reads it"
    runs = sorted(str(one) for one in path.iterdir() if one.is_dir() and RunFolder(one).begun is not None)
    if runs:
        return "a folder of runs", f": {', '.join(runs[:SHOWN])}{', ...' if runs[SHOWN:] else ''}"
    return "", ""
