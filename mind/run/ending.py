"""Decides when a run ends or pauses. A budget is in floating-point operations or in tokens with a backward pass, as
counted by mind/run/work.py.

Methods are compared at equal budgets, but the cost of a step is only known after it: MIND's depends on what it selects.
So training continues until the budget is spent, and the first step that reaches it is the last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from mind import processes


class Budget:
    """Counts what a run, or a stage of it, has spent of its budget."""

    def __init__(self, total: float, cost: Callable[[Mapping[str, int]], int]) -> None:
        """`total` is in the unit of `cost`, which computes the cost of tokens by kind."""
        self.total, self.cost = total, cost
        self.spent = 0
        self._before = 0  # when the latest step began

    def add(self, work: Mapping[str, int]) -> None:
        """Adds the tokens, by kind, of a step or of the work before the first one."""
        self._before = self.spent
        self.spent += self.cost(work)

    @property
    def reached(self) -> bool:
        """Whether the budget is spent."""
        return self.spent >= self.total

    def steps(self, taken: int) -> int:
        """An estimate of the number of steps that the budget pays for, given that `taken` steps cost what has been
        spent."""
        return taken if self.reached or not self.spent else round(taken * self.total / self.spent)

    @property
    def middle(self) -> float:
        """The share of the budget that was spent by the middle of the latest step, in [0, 1)."""
        return (self._before + min(self.spent, self.total)) / 2 / self.total if self._before < self.total else 0.9999


class LastStep(TrainerCallback):
    """Makes the last step write a line of metrics, even between two regular lines. If the budget ends the run or the
    run pauses, the step also leaves a checkpoint."""

    def __init__(self, budget: Budget | None, pause_at: float | None) -> None:
        self._budget, self._pause_at = budget, pause_at
        self.paused = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        spent = self._budget is not None and self._budget.reached
        if spent or state.global_step >= state.max_steps:
            control.should_log = True
        elif self._pause_at is not None:
            pause_at = self._pause_at
            # the main process's clock decides for all
            self.paused = processes.agreed(lambda: time.monotonic() >= pause_at)
        if spent or self.paused:
            control.should_save = control.should_training_stop = True
