"""Experts of each perspective, null experts, and `mind latent` on them: does a student internalise its perspective?

    python -m bench.latent --student FOLDER [--folder runs/latent] [--levels one-step two-step] [--questions 200]
        [--heldout 100] [--seeds 0 1] [--null-seeds 0 1] [--steps N] [--learning-rate 1e-3] [--output folder]

Trains the student once for each perspective and seed on built-in word problems, and null experts on the same with the
perspectives dealt out anew within each question, runs in `--folder`; those that are there and finished are left as they
are, so that a stopped call goes on, with the same options. Then the analysis of other questions, in FOLDER/analysis.
Training questions are of the part "train" of all word problems, as are those that the testbed's student (bench.testbed)
has seen before, and those of the analysis of the part "test" (mind/word_problems/parts.py).

    analyzed      questions to which each student gave an answer with a text, of the views of these; all, of the others
    new student   accuracy of the probe on students of a seed, and on questions, that it has not seen; interval over
                  perspectives; p from perspectives that are dealt out among the students
    by question   the same on the students that it knows, which is fooled by whatever sets them apart
    NMI, clusters of the mixture with the perspectives

Each in its row for experts and null experts, with the options. Writes latent.jsonl; the page is
FOLDER/analysis/latent.html.
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
from mind.data.questions import load_questions, save_questions
from mind.errors import require
from mind.latent.analyze import Analysis, analyze
from mind.latent.config import LatentConfig
from mind.methods import with_options
from mind.perspectives import PAPER_PERSPECTIVES
from mind.run.resume import saved_config
from mind.run.train import train
from mind.run_folder import RunFolder

NAME = "latent"
HELD_OUT = 8
"""Questions for the NLL of the runs."""
COLUMNS = ("view", "group", "analyzed", "new_student", "low", "high", "chance", "p", "by_question", "nmi", "clusters",
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
                perspectives=tuple(options.perspectives),
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
        for name in options.perspectives
    ]


def check_runs(configs: list[MindConfig]) -> None:
    """Raises MindError for a run that is there and was begun with other options."""
    for config in configs:
        folder = RunFolder(config.output)
        if folder.begun is not None:
            saved_config(with_options(config), folder)


def write_data(options: Namespace) -> None:
    """Questions to train on, a few for the held-out NLL of the runs, and those of the analysis.

    Raises MindError if other questions are there.
    """
    options.folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        "train": ("train", options.questions),
        "nll": ("validation", HELD_OUT),
        "heldout": ("test", options.heldout),
    }
    for name, (part, count) in sizes.items():
        file = options.folder / f"{name}.jsonl"
        questions = word_problems.generate(
            count, 0, levels=options.levels, perspectives=options.perspectives, part=part
        )
        if not file.exists():
            save_questions(questions, file)
        require(
            load_questions(file) == questions,
            f"{file}: holds other questions than these options give: name another --folder",
        )


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
                    "analyzed": found.questions,
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
    parser.add_argument("--levels", nargs="+", choices=list(word_problems.LEVELS), default=["one-step", "two-step"])
    parser.add_argument("--perspectives", nargs="+", choices=PAPER_PERSPECTIVES, default=PAPER_PERSPECTIVES)
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
    parser.add_argument("--interval-draws", type=command.count, default=200, help="draws of `mind latent`")
    parser.add_argument("--permutations", type=command.count, default=100)
    options, file = command.parse(parser, lambda _: NAME, arguments)
    configs = experts(options)
    check_runs(configs)
    write_data(options)
    for config in configs:
        train(config, resume=RunFolder(config.output).begun is not None)
    analysis = analyze(
        LatentConfig(
            runs=tuple(config.output for config in configs),
            questions=str(options.folder / "heldout.jsonl"),
            output=str(options.folder / "analysis"),
            max_new_tokens=options.max_new_tokens,
            draws=options.interval_draws,
            permutations=options.permutations,
        )
    )
    rows = rows_of(analysis)
    print_table(rows, COLUMNS)
    print(analysis.claim.sentence)
    setting = {name: value for name, value in vars(options).items() if name not in ("output", "overwrite", "folder")}
    setting |= {"student": options.student.name, "claim": analysis.claim.sentence}
    write_results([row | setting for row in rows], file)


if __name__ == "__main__":
    command.program(NAME, main)
