"""The table of trainers in the integrations' README, from what their tests recorded.

`make integrations ARGS=--record` runs the tests, and writes results.jsonl and the table.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from docs.generated import replaced

RESULTS = Path(__file__).with_name("results.jsonl")
README = Path(__file__).resolve().parents[2] / "mind_kernels" / "integrations" / "README.md"
BEGIN = "<!-- from tests/integrations/results.jsonl -->"
TRAINERS = {
    "transformers": ("transformers' Trainer, or any loop that calls a model with labels", "transformers.py"),
    "accelerate": ("accelerate", "transformers.py"),
    "trl": ("TRL", "trl.py"),
    "axolotl": ("axolotl", "axolotl.py"),
    "llamafactory": ("LLaMA-Factory", "llamafactory.py"),
    "torchtitan": ("torchtitan", "torchtitan.py"),
    "verl": ("verl", "verl.py"),
    "kernels": ("Hugging Face's `kernels`", "../../build_tools/hub.py"),
}
"""By distribution: its name, and the module that serves it."""
_LISTED = 6  # cases; of more, their number is told


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()]


def replace(recorded: list[dict[str, Any]]) -> None:
    """Writes the lines of the trainers in `recorded` in place of theirs before, and the table."""
    new = {line["trainer"] for line in recorded}
    lines = [line for line in read() if line["trainer"] not in new] + recorded
    lines.sort(key=lambda line: [*TRAINERS].index(line["trainer"]))
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines))
    README.write_text(replaced(README.read_text(), BEGIN, table(lines)))


def table(lines: list[dict[str, Any]]) -> str:
    rows = [("trainer", "version", "lines", "what ran", "loss", "weights", "module"), ("---",) * 7]
    for trainer, group in groupby(lines, key=lambda line: line["trainer"]):
        of_trainer = [*group]
        [version], [count] = ({line[name] for line in of_trainer} for name in ("version", "lines"))
        name, module = TRAINERS[trainer]
        worst = [_worst(of_trainer, distance) for distance in ("loss", "weights")]
        rows.append((name, version, count, _ran(of_trainer), *worst, f"[{Path(module).name}]({module})"))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _ran(lines: list[dict[str, Any]]) -> str:
    """The kinds of what ran, each with its cases."""
    cases: dict[str, list[str]] = {}
    for line in lines:
        kind, _, case = line["ran"].partition(", ")
        cases.setdefault(kind, []).append(case or "plain")
    texts = []
    for kind, of_kind in cases.items():
        listed = f" ({', '.join(of_kind)})" if of_kind != ["plain"] else ""
        texts.append(kind + (listed if len(of_kind) <= _LISTED else f" ({len(of_kind)} cases)"))
    return "; ".join(texts)


def _worst(lines: list[dict[str, Any]], distance: str) -> str:
    found = [line[distance] for line in lines if distance in line]
    return f"{max(found):.0e}" if found else ""
