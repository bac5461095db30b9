"""REDI (arXiv 2505.24850): learn from a right rationale, and away from a wrong one, without a reference model.

    L = mean over pairs of CE(right) - alpha CE(wrong)

CE is the mean over the tokens of rationale and suffix. The source takes the first right and the first wrong rationale
of a question; here each epoch takes another pair. It is the second stage: the student is fine-tuned on right ones
first (the authors': 5 epochs at 5e-5, then one at 1e-6).

The loss has no lower bound: the wrong rationales' own losses, `wrong_loss`, tell how far it has gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

from torch import Tensor

from mind.config import MethodOptions, MindConfig
from mind.errors import require
from mind.methods.method import Step, StepMetrics, StepPlan
from mind.methods.pairs import PairMethod
from mind.methods.stage import Stage


@dataclass(frozen=True)
class RediOptions(MethodOptions):
    """Of REDI; the default is the authors'."""

    alpha: float = 0.8
    """Weight of the wrong rationale's cross-entropy, which is subtracted; 0 is fine-tuning on the right ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.alpha <= 1, f"options.alpha is {self.alpha}: expected a number in [0, 1]")


class Redi(PairMethod):
    """One pair per question and step."""

    Options = RediOptions
    title = "REDI"
    learning_rate = 1e-6

    @classmethod
    def stages(cls, config: MindConfig) -> Sequence[Stage]:
        return [Stage("sft", learning_rate=5e-5)]

    @property
    def slots(self) -> tuple[str, ...]:
        return ("right", "wrong")

    def prepare(self, step: Step) -> StepPlan:
        def chosen(name: str):
            pairs = self._pairs[name]
            return [pairs[(step.epoch + crc32(name.encode())) % len(pairs)]]

        return self.plan_of(step, 1, chosen, 1.0, -self.options.alpha)

    def finish_step(self, plan: StepPlan, totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
        return StepMetrics({f"{name}_loss": float(l_real[:, slot].mean()) for slot, name in enumerate(self.slots)})
