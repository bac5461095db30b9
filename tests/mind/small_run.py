"""A small run through the command line: its arguments with changes, and what it leaves."""

from __future__ import annotations

import json

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
