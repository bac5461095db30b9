"""TAID (arXiv 2501.16937): the target moves from the student's own distribution to the teacher's as training goes on.

    L = KL(p_t || q),  p_t = softmax((1 - t) z + t z_teacher), a constant

t rises evenly from `t_start` to 1 over the run, or by a share of up to `alpha` of what is left to 1 per step, which is
the larger the faster the loss falls, if that is more. At the authors' alpha the even rise is the faster of the two in
runs of fewer than about 4,000 steps: the method is then plain interpolation. With `alpha` "auto", which is 4 over the
number of steps, t rises twice as fast as evenly at first while the loss stands still, whatever the run's length, and
the even rise takes over after four fifths of it [ours].

The loss is the mean over the tokens of a sequence; the authors take that over all tokens (`objective.normalize`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mind.batches.cross_entropy import cross_entropy
from mind.errors import require
from mind.methods.kd import TeacherMethod, TeacherOptions, scored
from mind.methods.method import MethodContext
from mind.methods.step import LossTerms, StepMetrics, StepPlan
from mind.records import MicroBatch
from mind.report.charts import Chart, Series
from mind_kernels import Head


@dataclass(frozen=True)
class TaidOptions(TeacherOptions):
    """Options of TAID; the defaults are the authors'."""

    t_start: float = 0.4
    """The teacher's share in the first target."""
    alpha: float | Literal["auto"] = 5e-4
    """Largest rise of t per step, as a share of 1 - t; "auto" follows from the number of steps [ours]."""
    momentum: float = 0.99
    """Momentum of the average of the loss's relative change."""
    momentum_of: Literal["kl", "ce"] = "kl"
    """The loss whose change is averaged: the divergence, as in the paper, or the cross-entropy under p_t, as in the
    authors' code; the latter is larger by the entropy of p_t, so its relative change is smaller."""

    BOUNDS = {
        **TeacherOptions.BOUNDS,
        "t_start": "a number in [0, 1]",
        "momentum": "a number in [0, 1)",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.alpha == "auto" or self.alpha >= 0, f"options.alpha is {self.alpha}: expected a number >= 0, or auto"
        )


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
        weight = self.row_weights(plan, batch, hidden)
        loss, stats = self.divergence(
            hidden, head, batch, weight, kind="taid", interpolation=self.schedule.t, return_stats=True
        )
        target_entropy = (weight * stats.target_entropy).sum()
        return LossTerms.of(loss, rows, batch, teacher_scored=scored(batch), target_entropy=target_entropy)

    def finish_step(self, plan: StepPlan, totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
        used = self.schedule.t
        entropy = totals["target_entropy"]
        self.schedule.update(totals["loss"] + (entropy if self.options.momentum_of == "ce" else 0))
        return StepMetrics({"target_entropy": entropy}, latest={"interpolation": used})

    def state_dict(self) -> dict[str, Any]:
        return self.schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.schedule.load_state_dict(state)


class Schedule:
    """t, and what it depends on. It is updated once per optimizer step, with the loss of all processes."""

    def __init__(self, options: TaidOptions, steps: int) -> None:
        self._options, self._steps = options, steps
        self._alpha = 4 / steps if options.alpha == "auto" else options.alpha
        self.t, self._average, self._loss, self._step = options.t_start, 0.0, math.inf, 0

    def update(self, loss: float) -> None:
        """The loss of the step that has just been computed; `t` is that of the next one from now on."""
        options = self._options
        if not math.isinf(self._loss):
            change = (self._loss - loss) / (self._loss + 1e-15)
            self._average = options.momentum * self._average + (1 - options.momentum) * change
            even = options.t_start + (1 - options.t_start) * self._step / self._steps
            # Clamped: beside a loss of about 0 the change has no bound, and the sigmoid has reached 0 or 1 long before.
            speed = 1 / (1 + math.exp(-max(-50.0, min(50.0, self._average))))
            rise = self._alpha * speed * (1 - self.t)
            self.t = min(1.0, max(even, self.t + rise))
        self._loss = loss
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        return {"t": self.t, "average": self._average, "loss": self._loss, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.t, self._average, self._loss, self._step = (state[name] for name in ("t", "average", "loss", "step"))
