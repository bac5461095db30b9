"""TAID (arXiv 2501.16937): the target moves from the student's own distribution to the teacher's as training goes on.

    L = KL(p_t || q),  p_t = softmax((1 - t) z + t z_teacher), a constant

t rises evenly from `t_start` to 1 over the run, and by up to `alpha` more per step while the loss falls. At the
authors' alpha the even rise is the faster of the two in runs of fewer than about 4,000 steps: the method is then plain
interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mind.batches.cross_entropy import cross_entropy, row_weights
from mind.errors import require
from mind.methods.kd import TeacherMethod, TeacherOptions, scored
from mind.methods.method import LossTerms, MethodContext, StepMetrics, StepPlan
from mind.records import MicroBatch
from mind.report.charts import Chart, Series
from mind_kernels import Head


@dataclass(frozen=True)
class TaidOptions(TeacherOptions):
    """Of TAID; the defaults are the authors'."""

    t_start: float = 0.4
    """The teacher's share in the first target."""
    alpha: float = 5e-4
    """How much t rises per step beyond the even rise, at most."""
    momentum: float = 0.99
    """Of the average of the loss's relative change."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.t_start <= 1, f"options.t_start is {self.t_start}: expected a number in [0, 1]")
        require(self.alpha >= 0, f"options.alpha is {self.alpha}: expected a number >= 0")
        require(0 <= self.momentum < 1, f"options.momentum is {self.momentum}: expected a number in [0, 1)")


class Taid(TeacherMethod):
    """The divergence alone, from a target that moves."""

    Options = TaidOptions
    title = "TAID"
    charts = (
        Chart(
            "interpolation",
            "The teacher's share in the target",
            "t",
            "It rises to 1, evenly unless the loss falls fast: the loss is measured from a target that moves away.",
            (Series("interpolation", brief="t {:.2f}"),),
            smooth=False,
            from_zero=True,
        ),
    )
    depends_on_length = True

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.schedule = Schedule(self.options, len(context.steps))

    def loss(self, hidden: Tensor, head: Head, batch: MicroBatch, plan: StepPlan) -> LossTerms:
        with torch.no_grad():
            _, rows = cross_entropy(hidden, head, batch, backend=self.context.config.objective.backend)
        weight = row_weights(plan.weights, batch, hidden)
        loss = self.divergence(hidden, head, batch, weight, kind="taid", interpolation=self.schedule.t)
        return LossTerms.of(loss, rows, batch, teacher_scored=scored(batch))

    def finish_step(self, plan: StepPlan, totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
        used = self.schedule.t
        self.schedule.update(totals["loss"])
        return StepMetrics(latest={"interpolation": used})

    def state_dict(self) -> dict[str, Any]:
        return self.schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.schedule.load_state_dict(state)


class Schedule:
    """t, and what it depends on. It is updated once per optimizer step, with the loss of all processes."""

    def __init__(self, options: TaidOptions, steps: int) -> None:
        self._options, self._steps = options, steps
        self.t, self._average, self._loss, self._step = options.t_start, 0.0, math.inf, 0

    def update(self, loss: float) -> None:
        """The loss of the step that has just been computed; `t` is that of the next one from now on."""
        options = self._options
        if not math.isinf(self._loss):
            change = (self._loss - loss) / (self._loss + 1e-15)
            self._average = options.momentum * self._average + (1 - options.momentum) * change
            even = options.t_start + (1 - options.t_start) * self._step / self._steps
            rise = options.alpha / (1 + math.exp(-self._average)) * (1 - self.t)
            self.t = min(1.0, max(even, self.t + rise))
        self._loss = loss
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        return {"t": self.t, "average": self._average, "loss": self._loss, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.t, self._average, self._loss, self._step = (state[name] for name in ("t", "average", "loss", "step"))
