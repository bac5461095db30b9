"""REDI (arXiv 2505.24850): learn from a right rationale, and away from a wrong one, without a reference model.

    L = mean over pairs of CE(right) - alpha e^(-gamma CE(wrong)) CE(wrong)

CE is the mean over the tokens of rationale and suffix, as in the source. The source takes the first right and the first
wrong rationale of a question; here each epoch takes another pair. It is the second stage: the student is fine-tuned on
right ones first (the authors': 5 epochs at 5e-5, then one at 1e-6).

gamma is an option of the authors' code, off there too. The factor is no constant: with it the weight of a wrong
rationale's nll is -alpha e^(-gamma CE) (1 - gamma CE), which changes its sign at CE = 1 / gamma. Beyond that the wrong
rationale is learned, so gamma bounds how far it is pushed away.

The loss has no lower bound at gamma 0: the wrong rationales' own losses, `wrong_loss`, tell how far it has gone. What
that may cost is bounded: the run stops if the right rationales have become less likely by `max_drop` nats per token. It
does not only warn, since a student that gives right answers a third of the probability per token is of no use, every
further step makes it worse, and the checkpoint before is still good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mind.batches.cross_entropy import cross_entropy, rationale_means
from mind.config import MethodOptions, MindConfig
from mind.errors import StoppedError
from mind.methods.method import MethodContext
from mind.methods.pairs import PairMethod
from mind.methods.stage import Stage
from mind.methods.step import LossTerms, Step, StepMetrics, StepPlan, slot_means, turn_of
from mind.records import MicroBatch
from mind_kernels import Head

_DECAY = 0.8
"""Of the average over steps of the right rationales' loss: one step has few pairs."""


@dataclass(frozen=True)
class RediOptions(MethodOptions):
    """Options of REDI; alpha and gamma are the authors'."""

    alpha: float = 0.8
    """Weight of the wrong rationale's cross-entropy, which is subtracted; 0 is fine-tuning on the right ones."""
    gamma: float = 0.0
    """How fast that weight falls as the wrong rationale becomes less likely; 0: it stays constant."""
    max_drop: float | None = 1.0
    """The run stops if the log-probability per token of the right rationales, averaged over the latest steps, is this
    many nats below that of the first step; None: it never stops for that [ours]."""

    BOUNDS = {
        "alpha": "a number in [0, 1]",
        "gamma": "a number >= 0",
        "max_drop": "a positive number, or null",
    }


class Redi(PairMethod):
    """One pair per question and step."""

    Options = RediOptions
    title = "REDI"
    learning_rate = 1e-6

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self._first: float | None = None
        self._average = math.nan

    @classmethod
    def stages(cls, config: MindConfig) -> Sequence[Stage]:
        return [Stage("sft", learning_rate=5e-5)]

    @property
    def slots(self) -> tuple[str, ...]:
        return ("right", "wrong")

    def prepare(self, step: Step) -> StepPlan:
        def chosen(name: str):
            pairs = self._pairs[name]
            return [pairs[turn_of(name, step.epoch, len(pairs))]]

        return self.plan_of(step, 1, chosen, 1.0, -self.options.alpha)

    def loss(self, hidden: Tensor, head: Head, batch: MicroBatch, plan: StepPlan) -> LossTerms:
        gamma, weight = self.options.gamma, self.row_weights(plan, batch, hidden)
        if gamma == 0:
            loss, rows = self.cross_entropy(hidden, head, batch, weight)
            return LossTerms.of(loss, rows, batch)
        with torch.no_grad():
            _, rows = cross_entropy(hidden, head, batch, backend=self.context.config.objective.backend)
        scaled = gamma * rationale_means(rows, batch)
        scaled[:, 0::2] = 0  # right rationales have no factor
        scaled = scaled.flatten()[batch.segment.to(hidden.device)]  # (N,)
        factor = (-scaled).exp()
        # A sequence lies in one micro-batch, so its loss is known, and the derivative of CE e^(-gamma CE) is a weight.
        loss, rows = self.cross_entropy(hidden, head, batch, weight * factor * (1 - scaled))
        rest = (weight * factor * scaled * rows.nll).sum()
        return LossTerms.of(loss + rest, rows, batch)

    def finish_step(self, plan: StepPlan, totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
        losses = slot_means(l_real, {"right_loss": 0, "wrong_loss": 1})
        self._check_right(losses["right_loss"])
        return StepMetrics(losses)

    def _check_right(self, loss: float) -> None:
        """Raises StoppedError if the right rationales' loss has risen too far."""
        if self._first is None:
            self._first = self._average = loss
        self._average = _DECAY * self._average + (1 - _DECAY) * loss
        drop, most = self._average - self._first, self.options.max_drop
        if most is not None and drop > most:
            raise StoppedError(
                f"the right rationales' log-probability has fallen by {drop:.2f} nats per token since the first step, "
                f"more than options.max_drop {most:g}: a new run with a smaller train.learning_rate or options.alpha "
                "keeps them"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "average": self._average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._first, self._average = state["first"], state["average"]
