"""Computes the learning rate of each step of a run."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, get_scheduler

from mind.config import TrainConfig
from mind.display import meant
from mind.errors import MindError


def rate_factors(train: TrainConfig, steps: int) -> Callable[[int], float]:
    """The learning rate of step 0, 1, ... of a run of `steps` steps, as a share of `train.learning_rate`.

    With w = ceil(warmup_ratio steps) it is (i + 1) / w in step i < w; then it follows transformers' schedule. Raises
    MindError for an unknown schedule, and for one that needs further options.
    """
    try:
        return _factors(train, train.lr_scheduler, steps)
    except (ValueError, TypeError) as error:
        there = [kind.value for kind in SchedulerType if _works(train, kind.value)]
        name = train.lr_scheduler
        raise MindError(
            f"train.lr_scheduler is {name!r}: expected one of {', '.join(there)}{meant(name, there)}"
        ) from error


class BudgetRates(LambdaLR):
    """The learning rates of a run with a budget: `rate_factors` at the share of the budget that is spent by the middle
    of each step."""

    RESOLUTION = 10_000
    """Steps of the schedule from which the rates are read."""

    def __init__(self, optimizer: torch.optim.Optimizer, train: TrainConfig) -> None:
        factors = rate_factors(train, self.RESOLUTION)
        self.spent = 0.0
        super().__init__(optimizer, lambda _: factors(int(self.spent * self.RESOLUTION)))

    def follow(self, spent: float) -> None:
        """Sets the rates for a step, given the share in [0, 1) that is spent by its middle; call it before the
        optimizer's step."""
        self.spent = spent
        self._last_lr = [rate * self.lr_lambdas[0](0) for rate in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def _factors(train: TrainConfig, name: str, steps: int) -> Callable[[int], float]:
    warmup = math.ceil(train.warmup_ratio * steps)
    skipped = int(warmup > 0)  # transformers' warm-up starts at 0, so its first step would train nothing
    optimizer = torch.optim.SGD([torch.zeros(())], lr=1.0)
    shape = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps + skipped)
    if not isinstance(shape, LambdaLR):  # it follows a metric instead of the steps
        raise TypeError(f"{name} is not a function of the step")
    (factor,) = shape.lr_lambdas
    return lambda step: factor(step + skipped)


def _works(train: TrainConfig, name: str) -> bool:
    try:
        _factors(train, name, steps=10)
    except (ValueError, TypeError):
        return False
    return True
