"""When a run ends or pauses, and its budget: floating-point operations, or tokens with a backward pass, by the counters
of mind/run/work.py.

Methods are compared at equal budgets, and what a step costs is known when it has been taken: MIND's depends on what it
selects. So training goes on until the budget is spent, and the first step that reaches it is the last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from mind import processes


class Budget:
    """What a run, or a stage of one, may still spend."""

    def __init__(self, total: float, cost: Callable[[Mapping[str, int]], int]) -> None:
        """`total` is in the unit of `cost`, which tells what tokens cost by their kind."""
        self.total, self.cost = total, cost
        self.spent = 0
        self._before = 0  # when the latest step began

    def add(self, work: Mapping[str, int]) -> None:
        """The tokens of a step, by kind, or of what came before the first one."""
        self._before = self.spent
        self.spent += self.cost(work)

    @property
    def reached(self) -> bool:
        """Whether it is spent."""
        return self.spent >= self.total

    def steps(self, taken: int) -> int:
        """How many it seems to pay for, `taken` being what has been spent for."""
        return taken if self.reached or not self.spent else round(taken * self.total / self.spent)

    @property
    def middle(self) -> float:
        """The share that was spent by the middle of the latest step, in [0, 1)."""
        return (self._before + min(self.spent, self.total)) / 2 / self.total if self._before < self.total else 0.9999


class LastStep(TrainerCallback):
    """The last step writes its line of metrics wherever it lies between two of them. If a budget says which is the
    last, it leaves a checkpoint as the last of all does. So does the one after which a run pauses."""

    def __init__(self, budget: Budget | None, pause_at: float | None) -> None:
        self._budget, self._pause_at = budget, pause_at
        self.paused = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        spent = self._budget is not None and self._budget.reached
        if spent or state.global_step >= state.max_steps:
            control.should_log = True
        elif self._pause_at is not None:
            pause_at = self._pause_at
            self.paused = processes.agreed(lambda: time.monotonic() >= pause_at)  # by one clock
        if spent or self.paused:
            control.should_save = control.should_training_stop = True
