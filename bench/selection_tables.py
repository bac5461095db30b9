"""The student's losses on every rationale, L_real, before and while it learns from the two easiest of each question.

    python -m bench.selection_tables [--data svamp.jsonl] [--questions 24] [--steps 24] [--every 8]
        [--learning-rate 1e-4] [--output folder] [--overwrite]

SmolLM2-135M-Instruct on the built-in word problems, or on a file of training records. After some steps the perspectives
are very unequal to it: it knows two rationales of a question and not the others. `bench.selection` replays the tables,
so that a choice of MIND's options costs seconds.

Writes selection_tables.jsonl, or selection_tables-NAME.jsonl for the records of NAME.jsonl: a line per table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from bench import command
from bench.measure import print_table, write_results
from bench.real_rows import perspectives_of
from mind import word_problems
from mind.batches.cross_entropy import rationale_losses
from mind.config import DataConfig, MindConfig, TrainConfig
from mind.data.questions import load_questions
from mind.methods.method import MethodContext
from mind.methods.mind.calibration import mean_variance
from mind.methods.sft import Sft
from mind.methods.step import Step, StepPlan
from mind.records import Question
from mind.run.trainer import MethodTrainer
from mind.student.model import load_student

NAME = "selection_tables"
COLUMNS = ("data", "step", "mean", "spread", "lowest", "highest")
EASIEST = 2


def questions_of(data: Path | None, count: int) -> tuple[list[Question], list[str]]:
    """The first `count` of a file, or so many word problems, and their perspectives."""
    if data is None:
        questions = word_problems.generate(count, 0, levels=("one-step", "two-step"))
    else:
        questions = load_questions(data, require_rationales=True)[:count]
    return questions, perspectives_of(questions, data)


class Easiest(Sft):
    """Trains on the rationales of each question that were the easiest at first."""

    chosen: dict[str, Tensor]
    """(K,) bool by question."""

    def prepare(self, step: Step) -> StepPlan:
        trained = torch.stack([self.chosen[question.id] for question in step.questions])
        weights = trained.double() / trained.sum(1, keepdim=True)
        return StepPlan(step.questions, weights, trained, observed=torch.zeros_like(trained))


def easiest(losses: Tensor) -> Tensor:
    """(Q, K) bool: the `EASIEST` lowest losses (Q, K) of each question."""
    ranks = losses.nan_to_num(torch.inf).argsort(1).argsort(1)
    return (ranks < EASIEST) & ~losses.isnan()


def tables(
    questions: Sequence[Question], perspectives: Sequence[str], steps: int, every: int, learning_rate: float
) -> Iterator[tuple[int, Tensor]]:
    """L_real (Q, K) before training, and after each `every` steps of it; nan where a rationale is missing."""
    found: list[tuple[int, Tensor]] = []
    with tempfile.TemporaryDirectory() as output:
        train = TrainConfig(
            questions_per_step=4, max_steps=steps, learning_rate=learning_rate, save_steps=steps, report_to="none"
        )
        config = MindConfig(output=output, data=DataConfig(perspectives=tuple(perspectives)), method="sft", train=train)
        model, tokenizer = load_student(config.student)
        context = MethodContext.build(config, model, tokenizer, questions)

        def measure(step: int) -> Tensor:
            model.eval()
            losses, _ = rationale_losses(model, context.tokenized, len(perspectives), context.pack_options)
            found.append((step, losses))
            return losses

        class Measure(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                control.should_save = False
                if state.global_step % every == 0:
                    measure(state.global_step)

        method = Easiest(context)
        chosen = easiest(measure(0))
        method.chosen = {question.id: row for question, row in zip(context.tokenized, chosen, strict=True)}
        torch.manual_seed(0)
        MethodTrainer(context, method, callbacks=[Measure()]).train()
    yield from found


def row(data: str, questions: Sequence[Question], perspectives: Sequence[str], step: int, losses: Tensor) -> dict:
    """A line of the results."""
    known = losses.nanmean(0)
    return {
        "data": data,
        "step": step,
        "mean": round(float(losses.nanmean()), 4),
        "spread": round(mean_variance(losses) ** 0.5, 4),
        "lowest": round(float(known.min()), 4),
        "highest": round(float(known.max()), 4),
        "perspectives": list(perspectives),
        "questions": [question.id for question in questions],
        "l_real": [[None if value != value else round(value, 4) for value in line] for line in losses.tolist()],
    }


def results_of(data: Path | None) -> str:
    """The name of the results for these records."""
    return NAME if data is None else f"{NAME}-{data.stem}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "")
    parser.add_argument("--data", type=command.readable_file, help="training records (default: word problems)")
    parser.add_argument("--questions", type=command.count, default=24)
    parser.add_argument("--steps", type=command.count, default=24, help="of four questions (default 24)")
    parser.add_argument("--every", type=command.count, default=8, help="steps from a table to the next (default 8)")
    parser.add_argument("--learning-rate", type=command.positive, default=1e-4, help="of the student (default 1e-4)")
    options, file = command.parse(parser, lambda options: results_of(options.data), arguments)
    questions, perspectives = questions_of(options.data, options.questions)
    source = options.data.name if options.data else "word problems"
    rows = [
        row(source, questions, perspectives, step, losses)
        for step, losses in tables(questions, perspectives, options.steps, options.every, options.learning_rate)
    ]
    write_results(rows, file)
    print_table(rows, COLUMNS)


if __name__ == "__main__":
    command.program(NAME, main)
