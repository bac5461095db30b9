"""A small experiment: its student, questions and plan, a place for its jobs in the process of the test,
and what must come out of it."""

from __future__ import annotations

import json
from pathlib import Path

from small_run import content, train_rows, write_student
from tiny import NAMES, build_model, build_questions

from mind.data.questions import save_questions
from mind.errors import MindError, PausedError
from mind.experiment.folder import ExperimentFolder
from mind.experiment.job import perform
from mind.experiment.runner import Ending
from mind.experiment.tuning import tuned

TUNED = {
    "methods": {
        "plain": {"method": "sft", "grid": {"train.learning_rate": [1e-3, 3e-2]}},
        "ours": {"method": "mind", "options": {"metanet": {"warmup_epochs": 2}}},
    },
    "budget": {"of": "ours", "epochs": 0.5},
    "tuning": {"share": 0.5, "max_new_tokens": 2},
    "seeds": [3, 4],
}
"""Fields of a plan with a job of every kind."""


def write_plan(place: Path, **changes) -> Path:
    """Two methods, two seeds, two sets, three steps; fields of the plan with `changes` in their places."""
    questions = build_questions(16)
    if not (place / "model").exists():
        write_student(place / "model", build_model())
        save_questions(questions[:10], place / "train.jsonl")
        save_questions(questions[10:12], place / "validation.jsonl")
        save_questions(questions[12:14], place / "near.jsonl")
        save_questions(questions[14:], place / "far.jsonl")
    plan = {
        "student": {"model": "model", "max_length": 512},
        "data": {"train": "train.jsonl", "heldout": "validation.jsonl", "perspectives": list(NAMES)},
        "config": {"train": {"questions_per_step": 2, "save_steps": 1, "learning_rate": 1e-3}},
        "methods": {"plain": {"method": "sft"}, "ours": {"method": "mind"}},
        "evaluation": {
            "near": {"file": "near.jsonl", "group": "id", "max_new_tokens": 3},
            "far": {"file": "far.jsonl", "group": "ood", "max_new_tokens": 2},
        },
        "budget": {"unit": "trained_tokens", "amount": 500},
        "seeds": [0, 1],
        "reference": "ours",
        "baselines": ["plain"],
        **changes,
    }
    file = place / "plan.json"
    file.write_text(json.dumps(plan))
    return file


def here(folder, pause_at=None):
    """Does the jobs in this process."""

    def place(job) -> Ending:
        try:
            perform(folder.path, job.name, pause_at)
        except PausedError:
            return Ending("paused")
        except MindError as error:
            return Ending("failed", str(error))
        return Ending("done")

    return place


def result_of(folder: ExperimentFolder) -> dict:
    """What a kill must not change: answers, what was spent, and every step, without times."""
    files = content(folder.path / "outcomes")
    runs = sorted({path.parent for path in folder.path.glob("*/**/config.json")})
    steps = {str(run.relative_to(folder.path)): train_rows(run) for run in runs}
    nll = {str(run.relative_to(folder.path)): (run / "evaluation.json").read_text() for run in runs}
    table = tuned(folder)
    for entry in table.values():
        for tried in entry["configurations"]:
            tried.pop("wall_s", None)
    return {"answers": files, "steps": steps, "nll": nll, "tuning": table, "budget": folder.budget.read_text()}
