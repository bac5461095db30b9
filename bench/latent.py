"""Experts of each perspective, null experts, and `mind latent` on them: does a student internalise its perspective?

    python -m bench.latent --student FOLDER [--folder runs/latent] [--levels one-step two-step] [--questions 200]
        [--heldout 100] [--seeds 0 1] [--null-seeds 0 1] [--steps N] [--learning-rate 1e-3] [--output folder]

Trains the student once for each of the eight perspectives and seeds on built-in word problems, and null experts on the
same with the perspectives dealt out anew within each question, runs in `--folder`; those that are there and finished
are left as they are, so that a stopped call goes on. Then the analysis of other questions, in FOLDER/analysis.

    new student   accuracy of the probe on students of a seed, and on questions, that it has not seen; interval over
                  perspectives; p from perspectives that are dealt out among the students
    by question   the same on the students that it knows, which is fooled by whatever sets them apart
    NMI, clusters of the mixture with the perspectives

Each in its row for experts and null experts. Writes latent.jsonl; the page is FOLDER/analysis/latent.html.
"""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import Any

from bench import command
from bench.measure import print_table, write_results
from mind import word_problems
from mind.config import DataConfig, EvaluationConfig, MindConfig, StudentConfig, TrainConfig
from mind.data.questions import save_questions
from mind.latent.analyze import Analysis, analyze
from mind.latent.config import LatentConfig
from mind.perspectives import PAPER_PERSPECTIVES
from mind.run.train import train
from mind.run_folder import RunFolder

NAME = "latent"
COLUMNS = ("view", "group", "questions", "new_student", "low", "high", "chance", "p", "by_question", "nmi", "clusters",
           "silhouette")  # fmt: skip


def experts(options: Namespace) -> list[MindConfig]:
    """The run of each expert and null expert."""
    kinds = [("expert", None, options.seeds), ("null", options.deal, options.null_seeds)]
    return [
        MindConfig(
            output=str(options.folder / "runs" / f"{kind}-{name}-{seed}"),
            method="single",
            student=StudentConfig(str(options.student), max_length=512),
            data=DataConfig(
                train=str(options.folder / "train.jsonl"),
                heldout=str(options.folder / "nll.jsonl"),
                only=name,
                shuffle_perspectives=deal,
            ),
            train=TrainConfig(
                tokens_per_step=options.tokens_per_step,
                epochs=options.epochs,
                max_steps=options.steps or -1,
                learning_rate=options.learning_rate,
                save_steps=100_000,
                report_to="none",
                seed=seed,
            ),
            evaluation=EvaluationConfig(max_new_tokens=options.max_new_tokens),
        )
        for kind, deal, seeds in kinds
        for seed in seeds
        for name in PAPER_PERSPECTIVES
    ]


def write_data(options: Namespace) -> None:
    """Questions to train on, a few for the held-out NLL of the runs, and those of the analysis."""
    options.folder.mkdir(parents=True, exist_ok=True)
    training = word_problems.generate(options.questions, 0, levels=options.levels)
    others = word_problems.generate(options.heldout + 8, 1, levels=options.levels, apart_from=training)
    sets = {"train": training, "heldout": others[8:], "nll": others[:8]}
    for name, questions in sets.items():
        save_questions(questions, options.folder / f"{name}.jsonl")


def rows_of(analysis: Analysis) -> list[dict[str, Any]]:
    """A row for each view of the experts, and for each of the null experts."""
    rows = []
    for name, view in analysis.views.items():
        for group, found in (("experts", view.experts), ("null experts", view.null)):
            if found is None:
                continue
            probe, known = found.new_student, found.by_question
            told = {} if probe is None else dataclasses.asdict(probe.accuracy)
            rows.append(
                {
                    "view": name,
                    "group": group,
                    "questions": found.questions,
                    "new_student": told.pop("value", None),
                    **told,
                    "by_question": None if known is None else known.accuracy.value,
                    "nmi": found.clusters.nmi.value,
                    "clusters": found.clusters.count.value,
                    "silhouette": found.clusters.silhouette.value,
                }
            )
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "")
    parser.add_argument("--student", type=Path, required=True, help="folder of the student that is trained")
    parser.add_argument("--folder", type=Path, default=Path("runs/latent"), help="of data, runs and analysis")
    parser.add_argument("--levels", nargs="+", default=["one-step", "two-step"])
    parser.add_argument("--questions", type=command.count, default=200, help="to train on")
    parser.add_argument("--heldout", type=command.count, default=100, help="questions of the analysis")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--null-seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--deal", type=int, default=0, help="seed of the null experts' data.shuffle_perspectives")
    parser.add_argument("--epochs", type=command.positive, default=2.0)
    parser.add_argument("--tokens-per-step", type=command.count, default=1024)
    parser.add_argument("--steps", type=command.count, default=None, help="in place of epochs")
    parser.add_argument("--learning-rate", type=command.positive, default=1e-3)
    parser.add_argument("--max-new-tokens", type=command.count, default=100)
    parser.add_argument("--draws", type=command.count, default=200)
    parser.add_argument("--permutations", type=command.count, default=100)
    options, file = command.parse(parser, lambda _: NAME, arguments)
    if not (options.folder / "nll.jsonl").exists():
        write_data(options)
    configs = experts(options)
    for config in configs:
        folder = RunFolder(config.output)
        if not folder.finished:
            train(config, resume=folder.begun is not None)
    analysis = analyze(
        LatentConfig(
            runs=tuple(config.output for config in configs),
            questions=str(options.folder / "heldout.jsonl"),
            output=str(options.folder / "analysis"),
            max_new_tokens=options.max_new_tokens,
            draws=options.draws,
            permutations=options.permutations,
        )
    )
    rows = rows_of(analysis)
    print_table(rows, COLUMNS)
    print(analysis.claim.sentence)
    setting = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    for name in ("output", "overwrite", "folder", "student"):
        setting.pop(name)
    write_results(file, [{**row, **setting, "claim": analysis.claim.sentence} for row in rows])


if __name__ == "__main__":
    command.program(NAME, main)
