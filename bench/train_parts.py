"""Where the time of `mind train` goes on a CPU, part by part: the small student and word problems, as `make train` has.

    python -m bench.train_parts [--questions 16] [--steps 3] [--answers 50] [--new-tokens 200] [--batch-size N]
        [--output folder] [--overwrite]

Features of MetaNet, its warm-up (the student's loss on every rationale once, then the epochs over that table), greedy
answers, and steps of four questions as MethodTrainer takes them, of which the first is not counted: it warms up.
Processor time of all threads beside wall time, so that a busy machine tells as much as a quiet one. "digest" is that of
the answers, "loss" that of the steps: two versions of the code whose numbers agree have done the same work.

Writes train_parts.jsonl.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from transformers import TrainerCallback

from bench import command
from bench.measure import print_table, write_results
from mind import word_problems
from mind.config import DataConfig, EvaluationConfig, MindConfig, TrainConfig
from mind.evaluation.evaluate import evaluation_prompts
from mind.evaluation.generation import generate_responses
from mind.methods.method import MethodContext
from mind.methods.mind.method import Mind
from mind.run.trainer import MethodTrainer
from mind.student.model import load_student
from mind.student.probe import trunk_of

NAME = "train_parts"
COLUMNS = ("part", "cpu_s", "wall_s", "share", "count", "per_cpu_s", "unit", "loss", "digest")
STEP = {
    "step": "the whole step",
    "scores": "MetaNet's scores",
    "observed trunk": "trunk, without a graph",
    "trained trunk": "trunk, with a graph",
    "loss": "losses, forward",
    "loss backward": "losses, backward",
    "trunk backward": "trunk, backward",
    "calibration": "MetaNet's loss and step",
    "clip": "clipping",
    "optimizer": "AdamW",
}


@dataclass
class Clock:
    """Seconds of this process by part."""

    seconds: dict[str, list[float]] = field(default_factory=dict)  # cpu, wall

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = now()
        try:
            yield
        finally:
            self.add(part, start)

    def add(self, part: str, start: tuple[float, float]) -> None:
        spent = self.seconds.setdefault(part, [0.0, 0.0])
        for i, (begin, end) in enumerate(zip(start, now(), strict=True)):
            spent[i] += end - begin

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            with self(part):
                return function(*arguments, **options)

        return timed


def now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


class Optimizer(TrainerCallback):
    """Times AdamW, and forgets what the first step took."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.start = now()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.clock.add("optimizer", self.start)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            self.clock.seconds.clear()


def watch_step(trainer: Any, clock: Clock) -> None:
    """Every part of a step reports to the clock."""
    method, backward, loss = trainer.method, trainer.accelerator.backward, trainer.method.loss
    trainer.training_step = clock.around("step", trainer.training_step)
    trainer._clip_grad_norm = clock.around("clip", trainer._clip_grad_norm)
    method.prepare = clock.around("scores", method.prepare)
    method.finish_step = clock.around("calibration", method.finish_step)
    began: list[tuple[float, float]] = []

    def timed_loss(hidden: torch.Tensor, *rest: Any) -> Any:
        with clock("loss"):
            terms = loss(hidden, *rest)
        hidden.register_hook(lambda _: (clock.add("loss backward", began.pop()), began.append(now()))[0])
        return terms

    def timed_backward(*arguments: Any, **options: Any) -> None:
        began.append(now())
        backward(*arguments, **options)
        clock.add("trunk backward", began.pop())

    method.loss, trainer.accelerator.backward = timed_loss, timed_backward
    trunk = trunk_of(trainer.context.model)
    trunk.register_forward_pre_hook(lambda *_: began.append(now()))

    def after_trunk(module: nn.Module, given: Any, output: Any) -> None:
        clock.add("trained trunk" if torch.is_grad_enabled() else "observed trunk", began.pop())

    trunk.register_forward_hook(after_trunk)


def measure(options: Any) -> list[dict[str, Any]]:
    clock, rows = Clock(), []
    data = DataConfig(generated_levels=("one-step", "two-step"))
    names, levels = data.perspectives, data.generated_levels
    questions = word_problems.generate(options.questions, 0, perspectives=names, levels=levels)
    asked = word_problems.generate(options.answers, 1, perspectives=names, levels=levels)
    training = TrainConfig(questions_per_step=4, max_steps=options.steps + 1, learning_rate=1.5e-4, log_steps=1)
    evaluation = EvaluationConfig(max_new_tokens=options.new_tokens)

    def row(part: str, unit: str, count: int, name: str | None = None, **more: Any) -> None:
        cpu, wall = clock.seconds[part]
        rate = {"count": count, "per_cpu_s": round(count / cpu, 2)} if count else {}
        rows.append(
            {"part": name or part, "cpu_s": round(cpu, 3), "wall_s": round(wall, 3), "unit": unit} | rate | more
        )

    with tempfile.TemporaryDirectory() as output:
        config = MindConfig(output=output, data=data, train=training, evaluation=evaluation)
        with clock("load the student"):
            model, tokenizer = load_student(config.student)
        row("load the student", "", 0)
        torch.manual_seed(0)
        with clock("tokens and steps"):
            context = MethodContext.build(config, model, tokenizer, questions)
        row("tokens and steps", "", 0)
        with clock("features"):
            method = FreshFeatures(context)
        row("features", "texts", sum(1 + len(question.rationales) for question in questions))
        with clock("warm-up"):
            warmup = list(method.before_training())
        labels = sum(len(ids) + len(q.suffix) for q in context.tokenized for ids in q.rationales.values())
        row("warm-up", "supervision tokens", labels, loss=round(warmup[-1]["meta_loss"], 6))
        prompts = evaluation_prompts(model, tokenizer, asked, evaluation)
        batch_size = options.batch_size or evaluation.batch_size
        with clock("answers"):
            given = generate_responses(
                model, tokenizer, prompts, max_new_tokens=options.new_tokens, batch_size=batch_size
            )
        digest = hashlib.sha256("\0".join(reply.text for reply in given).encode()).hexdigest()[:12]
        row("answers", "answers", len(given), digest=digest)
        trainer = MethodTrainer(context, method, callbacks=[Optimizer(clock)])
        watch_step(trainer, clock)
        trainer.train()
        logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        labels = sum(
            len(ids) + len(context.tokenized[q].suffix)
            for step in context.steps[1:]
            for q in step
            for ids in context.tokenized[q].rationales.values()
        )
        for part, name in STEP.items():
            whole = part == "step"
            share = round(clock.seconds[part][0] / clock.seconds["step"][0], 4)
            losses = {"loss": [round(value, 6) for value in logged]} if whole else {}
            row(part, "supervision tokens", labels, name=f"step: {name}", share=share, **losses)
    return rows


class FreshFeatures(Mind):
    """Its features are computed, whatever the cache holds."""

    def __init__(self, context: MethodContext) -> None:
        with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, MIND_CACHE=folder):
            super().__init__(context)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "")
    parser.add_argument("--questions", type=command.count, default=16, help="to train on (default 16)")
    parser.add_argument("--steps", type=command.count, default=3, help="of four questions (default 3)")
    parser.add_argument("--answers", type=command.count, default=50, help="that are generated (default 50)")
    parser.add_argument("--new-tokens", type=command.count, default=200, help="of an answer, at most (default 200)")
    parser.add_argument("--batch-size", type=command.count, help="answers at once (default: as configured)")
    options, file = command.parse(parser, lambda _: NAME, arguments)
    rows = measure(options)
    write_results(rows, file)
    print_table(rows, COLUMNS)


if __name__ == "__main__":
    command.program(NAME, main)
