"""One page of each kind, with made-up numbers: of a run, a data set, a comparison and a latent analysis."""

from __future__ import annotations

import json
from pathlib import Path

from sample_experiment import write_experiment
from sample_run import write_run

from mind.comparison.write import write_comparison
from mind.curation.report import ReportInput, write_dataset_report
from mind.records import Key, Question, Rationale, Response, Verdict
from mind.report.page import write_latent_page
from mind.run.report import write_run_report
from mind.run_folder import RunFolder


def write_pages(folder: Path) -> dict[str, Path]:
    """Their paths by kind."""
    run = write_run_report(RunFolder(write_run(folder / "run")))
    experiment = write_experiment(
        folder / "experiment",
        {"mind": 0.4, "sft": 0.0, "base": -0.5},
        methods={"mind": "mind", "sft": "sft"},
        metrics=True,
    )
    write_comparison(experiment, draws=50)
    latent = folder / "latent"
    latent.mkdir()
    (latent / "latent.json").write_text(json.dumps(analysis()))
    return {
        "run": run,
        "dataset": write_dataset_report(dataset(), folder / "dataset.html"),
        "comparison": experiment / "comparison.html",
        "latent": write_latent_page(latent),
    }


def dataset() -> ReportInput:
    question = Question("q1", "How many?", "3", {}, (Rationale("planning", "First count, then add."),))
    key = Key("q1", "planning", 0)
    response = Response(key, "prompt", "hash", "teacher", "4", 10, None, 1, 0.5, "stop")
    perspectives = {
        "planning": {"read": 5, "right": 3, "kept": 3, "checked": 4, "adherent": 3},
        "analogy": {"read": 4, "right": 3, "kept": 2, "checked": 4, "adherent": 4},
    }
    teachers = {"teacher": {"read": 9, "right": 6, "kept": 5, "characters": 120, "tokens": 40}}
    rationales = {
        "read": 9,
        "kept": 5,
        "dropped": {"wrong answer": 4},
        "perspectives": perspectives,
        "teachers": teachers,
    }
    return ReportInput(
        title="word problems",
        summary=rationales | {"questions": {"kept": 3, "no right rationale": 1}},
        kept_lengths=[90, 120, 130, 200, 210],
        dropped_lengths=[20, 30, 500, 510],
        pass_rates=[0.0, 0.5, 1.0, 1.0],
        tokens={"prompt": 100, "completion": 400, "uncounted_responses": 0},
        cost={"amount": 1.25, "currency": "USD"},
        kept=[question],
        dropped={"wrong answer": [(question, response, Verdict(key, "wrong", "4", "rules", "it is 3"))]},
    )


def analysis() -> dict:
    """As `mind latent` writes it, of two views."""

    def measured(value: float) -> dict:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    def group(value: float) -> dict:
        probe = {"accuracy": measured(value)}
        clusters = {name: measured(value) for name in ("nmi", "ari", "silhouette")} | {"count": measured(3.0)}
        widths = {"8": {"count": 3, "nmi": value}}
        return {
            "questions": 40,
            "new_student": probe,
            "by_question": probe,
            "clusters": clusters | {"by_width": widths},
        }

    def view(what: str) -> dict:
        return {"what": what, "experts": group(0.6), "null": group(0.3)}

    names = ["planning", "analogy", "socratic"]
    points = [[[place + 0.1 * i, i / 9] for i in range(9)] for place in range(3)]
    return {
        "student": "models/tiny", "perspectives": names, "questions": {"count": 40},
        "runs": {"experts": {"seeds": [0, 1]}, "null": {"seeds": [0, 1]}},
        "views": {"V1": view("hidden states"), "V4": view("own answers")},
        "claim": {"sentence": "It cannot be said.", "conditions": [
            {"name": "experts above null experts", **measured(0.2), "holds": True},
            {"name": "above the text", "p": 0.4, "holds": None},
        ]},
        "missing": ["V6 is left out: there is no encoder."],
        "coverage": [{"student": "base", "method": "none", "coverage": 0.5, "low": 0.4, "high": 0.6,
                      "shares": [0.5, 0.3, 0.2]}],
        "coverage_view": "V4", "uniform_coverage": 0.9,
        "maps": [{"view": "V1", "group": "experts", "seed": seed, "points": points} for seed in (0, 1)],
    }  # fmt: skip
