"""Keeps what an experiment came to: the comparison, the choices of its tuning, and each answer's verdict.

    python -m bench.experiment_results FOLDER bench/results/experiments/NAME

It runs nothing: `mind experiment` and `mind compare` wrote FOLDER. The new folder holds comparison.json, comparison.md
and, if a label was tuned, tuning.json as they are, and plan.json, which is experiment.json without the machine's paths.
verdicts.jsonl has one character per question for each run and set, in the order of the ids in questions.json: 1 right,
0 wrong, - if no answer was found.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

ALIKE = ("comparison.json", "comparison.md")


def verdicts(folder: Path, ids: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Of all runs, in the order of their folders' names. `ids` gets the ids of a set with the first run that has it;
    raises ValueError if another run answered other questions."""
    found = []
    for answers in sorted(folder.glob("outcomes/**/*.jsonl")):
        rows = [json.loads(line) for line in answers.read_text().splitlines()]
        these = [row["id"] for row in rows]
        if ids.setdefault(answers.stem, these) != these:
            raise ValueError(f"{answers}: expected the questions that the other runs answered, in their order")
        marks = "".join("1" if row["correct"] else "0" if row["parsed"] else "-" for row in rows)
        place = answers.parent.relative_to(folder / "outcomes")
        found.append({"run": str(place), "set": answers.stem, "verdicts": marks})
    return found


def without_paths(plan: dict[str, Any]) -> dict[str, Any]:
    """The record of the inputs names files as the plan does, by their last part."""
    inputs = {name: {**one, "source": Path(one["source"]).name} for name, one in plan["inputs"].items()}
    return {**plan, "inputs": inputs}


def keep(folder: Path, output: Path) -> None:
    plan = without_paths(json.loads((folder / "experiment.json").read_text()))
    tuned = any(method["grid"] for method in plan["methods"].values())
    output.mkdir(parents=True, exist_ok=True)
    for name in (*ALIKE, "tuning.json") if tuned else ALIKE:
        shutil.copyfile(folder / name, output / name)
    (output / "plan.json").write_text(json.dumps(plan, indent=2) + "\n")
    ids: dict[str, list[str]] = {}
    rows = verdicts(folder, ids)
    (output / "verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (output / "questions.json").write_text(json.dumps(ids, indent=0) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="of an experiment that mind compare was called for")
    parser.add_argument("output", type=Path, help="a folder under bench/results/experiments")
    options = parser.parse_args()
    keep(options.folder, options.output)


if __name__ == "__main__":
    main()
