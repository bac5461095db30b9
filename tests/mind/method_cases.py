"""What the tests of the methods share: the example's question through plan, packs and loss, and short runs of sums."""

from __future__ import annotations

import dataclasses

import torch
from tiny import NAMES, build_model, build_questions, build_tokenizer
from worked_example import QUESTION, head, hidden_of

from mind.batches.packing import micro_batches
from mind.config import DataConfig, EvaluationConfig, MindConfig, ObjectiveConfig, StudentConfig, TrainConfig
from mind.data.questions import save_questions
from mind.methods import METHODS, with_options
from mind.methods.method import MethodContext
from mind.methods.step import Step
from mind.records import PackOptions, WrongRationale

PACKINGS = [PackOptions(length, share) for length in (12, 64) for share in (True, False)]


def build(kind, options, name="", **fields):
    """A method of the example's question, without a model."""
    config = MindConfig(method=name or kind.__name__.lower(), data=DataConfig(perspectives=NAMES), options=options)
    built = kind.__new__(kind)
    built.context = MethodContext(with_options(config), None, None, [], [QUESTION], [[0]], "sdpa", PACKINGS[0])
    built.options = options
    built.made = {QUESTION.id: QUESTION}
    for field, value in fields.items():
        setattr(built, field, value)
    return built


def by_tokens(built):
    """The same method with the mean over all tokens of a step."""
    config = dataclasses.replace(built.context.config, objective=ObjectiveConfig(normalize="token"))
    built.context = dataclasses.replace(built.context, config=config)
    return built


def total(built, first_rows, packing, epoch=0):
    """The loss of a step with the example's question alone, and the gradient of all its rows."""
    plan = built.prepare(Step(0, epoch, [QUESTION], lambda chosen: chosen))
    loss, gradients = 0.0, {}
    for batch in micro_batches(plan.questions, plan.weights.shape[1], packing, plan.trained):
        hidden = hidden_of(batch, first_rows)
        terms = built.loss(hidden, head(), batch, plan)
        terms.loss.backward()
        loss += float(terms.loss.detach())
        for row, gradient in zip(batch.segment.tolist(), hidden.grad, strict=True):
            gradients.setdefault(row, []).append(gradient)
    return plan, loss, {slot: torch.stack(rows) for slot, rows in gradients.items()}


def slipped(question):
    """A rationale of its own with an answer that is one too large."""
    wrong = str(int(question.answer) + 1)
    return WrongRationale("first", question.rationales[0].text.replace(question.answer, wrong), wrong)


def with_wrong(count=10):
    """Sums, two of three with a wrong rationale."""
    return [
        dataclasses.replace(question, wrong_rationales=(slipped(question),) if number % 3 else ())
        for number, question in enumerate(build_questions(count))
    ]


def config_of(tmp_path, model_folder, method, **changes):
    save_questions(with_wrong(), tmp_path / "train.jsonl")
    return MindConfig(
        output=str(tmp_path / "run"),
        method=method,
        student=StudentConfig(model=str(model_folder), max_length=512),
        data=DataConfig(train=str(tmp_path / "train.jsonl"), perspectives=NAMES, **changes),
        train=TrainConfig(questions_per_step=2, max_steps=4, save_steps=2, learning_rate=1e-3, report_to="none"),
        evaluation=EvaluationConfig(max_new_tokens=2),
    )


def short(config, **options):
    """The run with one step, and with these options of its method."""
    changes = {"train": dataclasses.replace(config.train, max_steps=1)}
    if options:
        changes["options"] = METHODS[config.method].Options(**options)
    return dataclasses.replace(config, **changes)


def context_of_run(config, questions, student=None):
    """What a run of these questions gives to its method."""
    student, method = student or build_model(), METHODS[config.method]
    return MethodContext.build(with_options(config), student, build_tokenizer(), questions, method=method)
