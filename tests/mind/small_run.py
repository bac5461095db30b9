"""A small run through the command line: its arguments with changes, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

from tiny import build_tokenizer

from mind.cli import main

TIMING = ("step_s", "tokens_per_s", "peak_rss_mib")


def replaced(arguments, *changes):
    """The arguments with the options of `changes` ("--name", "value", ...) in place of their own."""
    arguments = list(arguments)
    for name, value in zip(changes[::2], changes[1::2], strict=True):
        if name in arguments:
            arguments[arguments.index(name) + 1] = value
        else:
            arguments += [name, value]
    return arguments


def train_rows(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows if row["phase"] == "train"]


def expect_error(arguments, capsys, *parts):
    assert main(arguments) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    for part in ("mind: error:", *parts):
        assert part in message, message


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, to the byte."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def write_student(folder: Path, model) -> str:
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)
