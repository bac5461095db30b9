"""An experiment's folder by its contract, as `mind experiment` leaves it, with made-up answers, costs and metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

METHODS = {"mind": "mind", "sft": "sft", "mind-shuffled": "mind-shuffled", "sbs": "sbs", "edit": "edit"}
SETS = {"near": "id", "far": "ood"}
HASH = "ab" * 32


def write_experiment(
    path: Path,
    levels: Mapping[str, float],
    *,
    sets: Mapping[str, str] = SETS,
    seeds: Sequence[int] = (0, 1, 2),
    questions: int = 60,
    methods: Mapping[str, str] = METHODS,
    metrics: bool = False,
    student: str = "models/tiny",
    **plan,
) -> Path:
    """A folder in which a method of level x gives a right answer to a question of ease e if x + e + noise > 0.

    Args:
        path: where.
        levels: by label, "base" among them for the untrained student.
        sets: group by name.
        seeds: of every trained method.
        questions: per set.
        methods: label -> method.
        metrics: whether the runs have metrics.jsonl.
        student: the model or its folder, for which the plan has a variable, as for the data.
        plan: fields of the plan in the places of these.
    """
    rng = np.random.default_rng(0)
    path.mkdir(parents=True)
    content = {
        "student": {"model": "${STUDENT}"},
        "data": {"train": "${TRAIN}", "perspectives": ["a", "b", "c", "d"]},
        "inputs": {"student": {"source": student}, "train": {"source": "data/train.jsonl"}},
        "methods": {label: {"method": method} for label, method in methods.items()},
        "evaluation": {name: {"file": f"{name}.jsonl", "group": group} for name, group in sets.items()},
        "budget": {"amount": 1e12},
        "seeds": list(seeds),
        "reference": "mind",
        "baselines": [label for label in ("sbs", "edit") if label in methods],
        "hash": HASH,
        **plan,
    }
    (path / "experiment.json").write_text(json.dumps(content))
    ease = {name: rng.normal(0, 1, questions) for name in sets}
    for label, level in levels.items():
        for seed in (None,) if label == "base" else seeds:
            folder = path / "outcomes" / label / ("" if seed is None else f"seed-{seed}")
            luck = 0.0 if seed is None else rng.normal(0, 0.05)
            for name in sets:
                write_answers(folder / f"{name}.jsonl", level + luck + ease[name] + rng.normal(0, 0.4, questions) > 0)
            (folder / "answers.json").write_text(json.dumps({"hash": content["hash"], "threads": [1]}))
            run = path / ("base" if seed is None else f"runs/{label}/seed-{seed}")
            run.mkdir(parents=True)
            write_record(run, label, seed, metrics)
    return path


def write_answers(file: Path, right: Sequence[bool], **changes) -> None:
    """A row per question: all parsed, the first cut off; `changes` go into each row."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"q{i}", "correct": bool(good), "parsed": True, "cut_off": i == 0, "response": "<b>", **changes}
        for i, good in enumerate(right)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_record(run: Path, label: str, seed: int | None, metrics: bool) -> None:
    """evaluation.json and, of a trained student, status.json and metrics.jsonl."""
    heldout = {"heldout": {"nll": 1.5 if seed is None else 1.0 + 0.01 * seed}, "files": {}}
    sides = (heldout, None) if seed is None else (None, heldout)
    (run / "evaluation.json").write_text(json.dumps(dict(zip(("before", "after"), sides, strict=True))))
    if seed is None:
        return
    status = {"wall_s": 12.0 + seed, "flops": 10**12 + seed, "work": {"trained": 5000, "observed": 100}}
    (run / "status.json").write_text(json.dumps(status))
    if metrics:
        selects = label.startswith("mind")
        lines = [
            {
                "phase": "train",
                "step": step,
                "loss": 2 / step,
                "accuracy": 1 - 1 / step,
                "work": {"trained": 100 * step},
            }
            | ({"selected": 4 - step / 10, "alpha_entropy": 1.2} if selects else {})
            for step in range(1, 11)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
