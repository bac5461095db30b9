"""Plans which questions each optimizer step trains on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from mind.batches.packing import prompts_of
from mind.config import MAX_STEPS, TrainConfig
from mind.errors import MindError, require
from mind.records import TokenizedQuestion


def question_tokens(question: TokenizedQuestion) -> int:
    """Tokens of a question, independent of packing and selection: each prompt once, and every sequence after it."""
    return sum(map(len, prompts_of(question))) + sum(len(branch.ids) for branch in question.branches.values())


def within_budget(questions: Sequence[TokenizedQuestion], config: TrainConfig, parameters: int) -> TrainConfig:
    """`config` with as many epochs as its budget could pay for at most; unchanged without a budget.

    A step reads at least the prompts of its questions, in a forward pass (with a backward pass if the budget is in
    trained tokens), through the student's `parameters`. Its actual cost is only known after it.
    """
    if config.budget is None:
        return config
    least = sum(len(question.prompt) for question in questions) * (1 if config.flops is None else 2 * parameters)
    return dataclasses.replace(config, max_steps=-1, epochs=math.ceil(config.budget / least) + 1)


def plan_steps(questions: Sequence[TokenizedQuestion], config: TrainConfig) -> list[list[int]]:
    """The questions of every optimizer step of a run, as indices: the same for the same questions and seed.

    Each epoch is a permutation of the questions, cut into steps; its last step has the rest. Questions join a step in
    order as long as they fit into `tokens_per_step`, and at least one; if `questions_per_step` is set, a step has that
    many.

    Raises MindError for a prompt that alone exceeds the budget, and for more steps than can be planned.
    """
    if config.questions_per_step is None:
        for question in questions:
            if len(question.prompt) > config.tokens_per_step:
                raise MindError(
                    f"question {question.id}: its prompt alone has {len(question.prompt)} tokens; "
                    f"train.tokens_per_step is {config.tokens_per_step}"
                )
    costs = [question_tokens(question) for question in questions]
    generator = torch.Generator().manual_seed(config.seed)
    steps: list[list[int]] = []
    epoch = 0
    while len(steps) < config.max_steps if config.max_steps > 0 else epoch < math.ceil(config.epochs):
        share = 1.0 if config.max_steps > 0 else min(1.0, config.epochs - epoch)
        order = torch.randperm(len(questions), generator=generator)[: math.ceil(share * len(questions))]
        steps += _cut(order.tolist(), costs, config)
        epoch += 1
        require(len(steps) <= MAX_STEPS + len(order), f"train.epochs is {config.epochs}: more than {MAX_STEPS:,} steps")
    return steps[: config.max_steps] if config.max_steps > 0 else steps


def _cut(order: list[int], costs: list[int], config: TrainConfig) -> list[list[int]]:
    if config.questions_per_step is not None:
        return [
            order[start : start + config.questions_per_step]
            for start in range(0, len(order), config.questions_per_step)
        ]
    steps: list[list[int]] = []
    room = -1
    for index in order:
        if costs[index] > room:
            steps.append([])
            room = config.tokens_per_step
        steps[-1].append(index)
        room -= costs[index]
    return steps
