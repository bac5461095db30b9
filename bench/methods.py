"""Every method and preset trains the same student on the same records for a few steps: losses and work.

    python -m bench.methods [--student FOLDER] [--data records.jsonl] [--methods sft mind ...] [--questions 4]
        [--steps 8] [--learning-rate 5e-5] [--output folder] [--overwrite]

Records are built-in word problems, each with a wrong rationale in which the result has slipped, or those of a file that
`mind data import --keep-wrong 8` wrote: the shortest of the tenth of the questions whose right and wrong rationales are
most alike, since edit needs such pairs; with `--knowledge FOLDER` of a teacher for lorid and nesycd. Each question
keeps three rationales, and two questions make a step, so that the first and the last epoch see the same questions.
Whatever wants a teacher model gets the student that sft has trained.

    loss first, last   mean of the first and of the last epoch; each method's own objective
    nll before, after  mean over the rationales of two other questions, the same for all methods
    wall_s, cpu_s      of the whole run, from records to report
    trained ...        tokens of the trunk by kind, over all stages

A method that refuses has its reason in the row. Writes methods.jsonl, or methods-NAME.jsonl for NAME.jsonl.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import command
from bench.measure import print_table, write_results
from bench.real_rows import perspectives_of
from mind import word_problems
from mind.config import DataConfig, EvaluationConfig, MindConfig, StudentConfig, TrainConfig
from mind.data.questions import load_questions, save_questions
from mind.errors import MindError
from mind.methods import METHODS, PRESETS, method_class
from mind.methods.presets import replaced
from mind.records import Question, WrongRationale
from mind.report.reading import Metrics
from mind.run.train import train
from mind.run_folder import RunFolder, metric_rows
from mind.similarity import ngram_sets, similarities

NAME = "methods"
COLUMNS = ("method", "first", "last", "nll_before", "nll_after", "wall_s", "cpu_s", "trained", "observed",
           "generated", "teacher_scored", "report", "refused")  # fmt: skip
ALL = [*sorted(METHODS), *sorted(PRESETS)]
RATIONALES = 3
HELD_OUT = 2
PER_STEP = 2
OF_A_NAIVE_STEP = ("padded", "packed", "shared")
"""Kinds of work that are computed for comparison, and not done."""


def wanted(name: str, perspectives: Sequence[str]) -> dict[str, Any]:
    """What a method wants of the configuration beside its defaults, nested as there."""
    others: dict[str, dict[str, Any]] = {
        "mode-cotd": {"student": {"lora": True}},
        "single": {"data": {"only": perspectives[0]}},
    }
    return others.get(name, {})


def slipped(question: Question) -> Question:
    """The question with a wrong rationale: the first right one, in which its result is one more."""
    wrong = re.sub(r"\d+$", lambda found: str(int(found[0]) + 1), question.answer)
    first = question.rationales[0]
    text = re.sub(rf"(?<!\d){re.escape(question.answer)}(?!\d)", wrong, first.text)
    if text == first.text:  # the rationale ends in other words
        text = f"{first.text} That makes {wrong}."
    return dataclasses.replace(question, wrong_rationales=(WrongRationale(first.perspective, text, wrong),))


def likeness(question: Question) -> float:
    """The similarity of the right and the wrong rationale that are most alike; -1 without both."""
    rights, wrongs = question.rationales, question.wrong_rationales
    table = similarities(ngram_sets([one.text for one in (*rights, *wrongs)], 1))
    return max((table[r][w] for r in range(len(rights)) for w in range(len(rights), len(table))), default=-1.0)


def records_of(data: Path | None, count: int) -> tuple[list[Question], list[Question], list[str]]:
    """Those to train on, held-out ones, and the perspectives of both."""
    if data is None:
        questions = [slipped(one) for one in word_problems.generate(count + HELD_OUT, 0, levels=["one-step"])]
    else:
        questions = load_questions(data, require_rationales=True, minimum_rationales=2)
    names = perspectives_of(questions, data)[:RATIONALES]
    cut = []
    for question in questions:
        kept = tuple(one for one in question.rationales if one.perspective in names)
        wrong = tuple(dataclasses.replace(one, perspective=names[0]) for one in question.wrong_rationales)
        if len(kept) >= 2:
            cut.append(dataclasses.replace(question, rationales=kept, wrong_rationales=wrong))
    if data is not None:
        alike = sorted(cut, key=likeness, reverse=True)[: max(count + HELD_OUT, len(cut) // 10)]
        cut = sorted(alike, key=lambda question: sum(len(one.text) for one in question.rationales))
    if len(cut) < count + HELD_OUT:
        raise MindError(f"{data}: {len(cut)} questions with two rationales: expected at least {count + HELD_OUT}")
    return cut[:count], cut[count : count + HELD_OUT], names


def config_of(folder: Path, name: str, options: Any, perspectives: Sequence[str], teacher: str | None) -> MindConfig:
    """The run of a method on the records in `folder`."""
    config = MindConfig(
        output=str(folder / name),
        student=StudentConfig(model=options.student) if options.student else StudentConfig(),
        data=DataConfig(
            train=str(folder / "train.jsonl"), heldout=str(folder / "heldout.jsonl"), perspectives=tuple(perspectives)
        ),
        train=TrainConfig(
            questions_per_step=PER_STEP,
            max_steps=options.steps,
            learning_rate=options.learning_rate,
            save_steps=options.steps,
            report_to="none",
        ),
        evaluation=EvaluationConfig(questions=1, max_new_tokens=1),
    )
    config = replaced(dataclasses.replace(config, method=name), wanted(name, perspectives))
    own: Any = method_class(name).Options
    given = {"teacher": teacher, "few_shot": PER_STEP}  # of those methods that have it
    taken = {field.name: given[field.name] for field in dataclasses.fields(own) if field.name in given}
    return dataclasses.replace(config, options=own(**taken)) if taken else config


def _wants_teacher(name: str) -> bool:
    return any(field.name == "teacher" for field in dataclasses.fields(method_class(name).Options))


def measured(config: MindConfig, epoch: int) -> dict[str, Any]:
    """One run: its row. `epoch` is the steps of one."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        folder = train(config)
        metrics = Metrics(folder.metrics)
    except MindError as error:
        return {"method": config.method, "refused": str(error)}
    spent = {"wall_s": round(time.perf_counter() - wall, 1), "cpu_s": round(time.process_time() - cpu, 1)}
    losses, evaluation = metrics.series("loss"), folder.read_evaluation()
    return {
        "method": config.method,
        "first": round(float(losses[:epoch].mean()), 4),
        "last": round(float(losses[-epoch:].mean()), 4),
        **{f"nll_{when}": round(evaluation[when]["heldout"]["nll"], 4) for when in ("before", "after")},
        **spent,
        **work_of(folder),
        "report": folder.report.is_file(),
        "losses": [round(float(loss), 4) for loss in losses],
    }


def work_of(folder: RunFolder) -> Counter[str]:
    """Tokens by kind, over all steps of a run and of the stages before it, which are runs in its folder."""
    total: Counter[str] = Counter()
    for file in (*folder.path.glob("stages/*/metrics.jsonl"), folder.metrics):
        for _, row in metric_rows(file):
            total.update(row.get("work", {}) if row is not None else {})
    for kind in OF_A_NAIVE_STEP:
        del total[kind]
    return total


def measure(options: Any, file: Path) -> list[dict[str, Any]]:
    """The rows, each written to `file` as soon as it is there: a run of all methods takes long."""
    rows: list[dict[str, Any]] = []
    train_on, held_out, perspectives = records_of(options.data, options.questions)
    source = options.data.name if options.data else "word problems"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_questions(train_on, folder / "train.jsonl")
        save_questions(held_out, folder / "heldout.jsonl")
        teacher = None
        # The student of sft teaches the others.
        for method in sorted(options.methods, key=lambda one: one != "sft"):
            if _wants_teacher(method) and teacher is None:
                teacher = str(train(config_of(folder, "sft", options, perspectives, None)).student)
            row = measured(config_of(folder, method, options, perspectives, teacher), options.questions // PER_STEP)
            if method == "sft" and "refused" not in row:
                teacher = str(folder / "sft" / "student")
            elif method != "sft":
                shutil.rmtree(folder / method, ignore_errors=True)  # half a gigabyte per student
            rows.append({"data": source, "student": options.student or "SmolLM2-135M-Instruct", **row})
            write_results(rows, file)
            print_table(rows[-1:], COLUMNS)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "")
    parser.add_argument("--student", help="a model folder or name (default: the embedded SmolLM2-135M-Instruct)")
    parser.add_argument("--data", type=command.readable_file, help="training records (default: word problems)")
    parser.add_argument("--methods", nargs="+", choices=ALL, default=ALL, metavar="NAME", help="default: all")
    parser.add_argument("--questions", type=command.count, default=4, help="to train on (default 4)")
    parser.add_argument("--steps", type=command.count, default=8, help=f"of {PER_STEP} questions (default 8)")
    parser.add_argument("--learning-rate", type=command.positive, default=5e-5, help="of the student (default 5e-5)")
    options, file = command.parse(
        parser, lambda options: f"{NAME}-{options.data.stem}" if options.data else NAME, arguments
    )
    if options.questions % PER_STEP:
        parser.error(f"--questions {options.questions}: expected a multiple of {PER_STEP}, the questions of a step")
    print_table(measure(options, file), COLUMNS)


if __name__ == "__main__":
    command.program(NAME, main)
