"""Distilling step-by-step (arXiv 2305.02301): the answer and the rationale as two tasks, told apart by the prompt.

    L = mean over the questions of a CE(answer | predict, x) + (1 - a) CE(rationale | explain, x)

CE is the mean over the tokens of a sequence; the source takes it over all tokens of the batch, which
`--objective.normalize token` does for each of the two. A question with K_q
rationales trains on one of them per epoch, in turn. The source asks for an answer by "predict: " alone, without any
reasoning. `explain_with_answer` [ours] lets the answer line follow the rationale, so that a student can be asked as any
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mind.config import MethodOptions, MindConfig
from mind.errors import require
from mind.methods.method import OF_ANSWERS, OF_MIND, Method
from mind.methods.sequences import Sequences
from mind.methods.step import Step, StepMetrics, StepPlan, slot_means, turn_of
from mind.records import Question, TokenizedQuestion
from mind.report.charts import AMBER, BLUE, Chart, Series


@dataclass(frozen=True)
class SbsOptions(MethodOptions):
    """Options of distilling step-by-step; the defaults are the authors'."""

    alpha: float = 0.5
    """a: weight of the answer."""
    explain_with_answer: bool = False
    """The answer line follows the rationale too [ours]."""
    label_prefix: str = "predict: "
    """Text in front of the question if the answer alone is asked for."""
    rationale_prefix: str = "explain: "
    """Text in front of the question if the rationale is asked for."""

    BOUNDS = {
        "alpha": "a number in [0, 1]",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.label_prefix != self.rationale_prefix,
            f"options.label_prefix and options.rationale_prefix are both {self.label_prefix!r}: the prompt tells the "
            "tasks apart",
        )


class Sbs(Method):
    """Two sequences per question: slot 0 has the answer, slot 1 a rationale."""

    Options = SbsOptions
    title = "Distilling step-by-step"
    charts = (
        Chart(
            "l_real",
            "Loss of both tasks",
            "nats per token",
            "Both should fall; the answer has few tokens, so its line is the noisier one.",
            (
                Series("answer_loss", "answer alone", AMBER, brief="answer {:.2f}"),
                Series("rationale_loss", "rationale", BLUE, brief="rationale {:.2f}"),
            ),
        ),
    )
    unread = (*OF_MIND, *OF_ANSWERS)

    @classmethod
    def sequences_of(
        cls, config: MindConfig, question: Question, tokens: TokenizedQuestion, sequences: Sequences
    ) -> TokenizedQuestion:
        """Its answer, and then its explanations."""
        options = cls.options_in(config)
        answer = sequences.answered(question, options.label_prefix)
        explanations = [
            sequences.explained(question, one, options.rationale_prefix, answered=options.explain_with_answer)
            for one in question.rationales
        ]
        return TokenizedQuestion.of_sequences(question.id, dict(enumerate([answer, *explanations])))

    @property
    def slots(self) -> tuple[str, ...]:
        return ("answer", "rationale")

    def term_of(self, slot: int) -> int:
        return slot

    def prepare(self, step: Step) -> StepPlan:
        weights = torch.tensor([[self.options.alpha, 1 - self.options.alpha]], dtype=torch.float64)
        weights = weights.expand(len(step.questions), 2)
        return StepPlan.training([self._pair(question.id, step.epoch) for question in step.questions], weights)

    def _pair(self, name: str, epoch: int) -> TokenizedQuestion:
        answer, *explanations = self.made[name].others.values()
        explanation = explanations[turn_of(name, epoch, len(explanations))]
        return TokenizedQuestion.of_sequences(name, {0: answer, 1: explanation})

    @classmethod
    def asks_with(cls, config: MindConfig) -> str:
        options = cls.options_in(config)
        return options.rationale_prefix if options.explain_with_answer else options.label_prefix

    def finish_step(self, plan: StepPlan, totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
        return StepMetrics(slot_means(l_real, {"answer_loss": 0, "rationale_loss": 1}))
