"""What a run warns of: options that have no effect, and questions that are trained on and measured."""

from __future__ import annotations

import warnings
from functools import partial

from mind.config import DataConfig, MetaNetConfig, MindConfig, ObjectiveConfig, StudentConfig, TrainConfig
from mind.records import Question
from mind.run.data import RunData, warn_of_overlap
from mind.run.unused import warn_of_unused_options


def said(warn, about) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn(about)
    return [str(warning.message) for warning in caught]


UNUSED = {
    MindConfig(): [],
    MindConfig(method="sft", metanet=MetaNetConfig(width=64, ema=0.5)): [
        "metanet.width, metanet.ema have no effect: method is sft"
    ],
    MindConfig(method="sft", objective=ObjectiveConfig(beta=0.5, gradient_threshold=0.1)): [
        "objective.beta has no effect: method is sft"
    ],
    MindConfig(student=StudentConfig(lora_rank=4, lora_targets=("q_proj",))): [
        "student.lora_rank, student.lora_targets have no effect: student.lora is off"
    ],
    MindConfig(student=StudentConfig(lora=True, lora_rank=4)): [],
    MindConfig(data=DataConfig(heldout="h.jsonl")): [
        "data.heldout has no effect: data.train is word-problems, which brings its own"
    ],
    MindConfig(data=DataConfig(train="t.jsonl", generated_questions=9)): [
        "data.generated_questions has no effect: data.train is t.jsonl"
    ],
    MindConfig(data=DataConfig(train="t.jsonl", heldout="h.jsonl", heldout_fraction=0.2)): [
        "data.heldout_fraction has no effect: data.heldout is set"
    ],
    MindConfig(train=TrainConfig(max_steps=3, epochs=2, questions_per_step=1, tokens_per_step=9)): [
        "train.tokens_per_step has no effect: train.questions_per_step is set",
        "train.epochs has no effect: train.max_steps is set",
    ],
    MindConfig(train=TrainConfig(lr_scheduler="constant", warmup_ratio=0.2)): [
        "train.warmup_ratio has no effect: train.lr_scheduler constant has no warm-up"
    ],
    MindConfig(train=TrainConfig(lr_scheduler="linear", warmup_ratio=0.2)): [],
    MindConfig(train=TrainConfig(shard="fsdp2")): [],  # in one process, too, the run is that of FSDP2
    MindConfig(metanet=MetaNetConfig(warmup_epochs=0, warmup_learning_rate=0.1)): [
        "metanet.warmup_learning_rate has no effect: metanet.warmup_epochs is 0"
    ],
}


def test_options_without_an_effect_are_told():
    for config, expected in UNUSED.items():
        assert said(warn_of_unused_options, config) == expected


def overlaps(train, heldout, **evaluation) -> list[str]:
    messages = said(partial(warn_of_overlap, config=DataConfig()), RunData(train, heldout, evaluation))
    return [message.partition(" are among")[0] for message in messages]


def asked(*texts: str) -> list[Question]:
    return [Question(str(n), text, "1") for n, text in enumerate(texts)]


def test_questions_that_are_trained_on_and_measured_are_counted():
    train = asked("What is 1 + 2?", "How many APPLES are left?", "x²  = 4?", "\uff11 apple?")
    same = asked("what  is 1 + 2?\n", "How many apples are left?", "x2 = 4?", "1 apple?", "Another one?")
    assert overlaps(train, same, a=same[:1], b=asked("What is 1 + 3?")) == [
        "held-out: 4 of 5 questions",
        "evaluation a: 1 of 1 questions",
    ]
    assert overlaps(train, asked("New?"), c=asked("What is 12?")) == []
