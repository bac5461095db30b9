"""Distilling step-by-step (arXiv 2305.02301): the answer and the rationale as two tasks, told apart by the prompt.

    L = mean over the questions of a CE(answer | predict, x) + (1 - a) CE(rationale | explain, x)

CE is the mean over the tokens of a sequence; the source takes it over all tokens of the batch, which
`--objective.normalize token` does for each of the two. A question with K_q
rationales trains on one of them per epoch, in turn. The source asks for an answer by "predict: " alone, without any
reasoning. `explain_with_answer` [ours] lets the answer line follow the rationale, so that a student can be asked as any
other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from mind.config import MethodOptions, MindConfig
from mind.errors import require
from mind.methods.method import OF_ANSWERS, OF_MIND, Method, MethodContext
from mind.methods.sequences import Sequences
from mind.methods.step import Step, StepMetrics, StepPlan
from mind.records import Question, TokenizedQuestion
from mind.report.charts import AMBER, BLUE, Chart, Series


@dataclass(frozen=True)
class SbsOptions(MethodOptions):
    """Of distilling step-by-step; the defaults are the authors'."""

    alpha: float = 0.5
    """a: the weight of the answer."""
    explain_with_answer: bool = False
    """The answer line follows the rationale too [ours]."""
    label_prefix: str = "predict: "
    """What precedes the question where the answer alone is asked for."""
    rationale_prefix: str = "explain: "
    """What precedes it where the rationale is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.alpha <= 1, f"options.alpha is {self.alpha}: expected a number in [0, 1]")
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

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        made = {one.id: list(one.others.values()) for one in context.sequences}
        self._answers = {name: branches[0] for name, branches in made.items()}
        self._explanations = {name: branches[1:] for name, branches in made.items()}

    @classmethod
    def choose(
        cls,
        config: MindConfig,
        questions: Sequence[Question],
        tokenized: Sequence[TokenizedQuestion],
        sequences: Sequences,
    ) -> dict[int, TokenizedQuestion]:
        """All questions, each with its answer and then its explanations."""
        options = cls.options_in(config)
        assert isinstance(options, SbsOptions)
        chosen = {}
        for q, question in enumerate(questions):
            answer = sequences.answered(question, options.label_prefix)
            explanations = [
                sequences.explained(question, one, options.rationale_prefix, answered=options.explain_with_answer)
                for one in question.rationales
            ]
            others = dict(enumerate([answer, *explanations]))
            chosen[q] = TokenizedQuestion(question.id, answer.prompt, {}, (), others)
        return chosen

    @property
    def slots(self) -> tuple[str, ...]:
        return ("answer", "rationale")

    def term_of(self, slot: int) -> int:
        return slot

    def prepare(self, step: Step) -> StepPlan:
        questions = [self._pair(question.id, step.epoch) for question in step.questions]
        weights = torch.tensor([[self.options.alpha, 1 - self.options.alpha]], dtype=torch.float64)
        weights = weights.expand(len(questions), 2)
        return StepPlan(questions, weights, trained=weights > 0, observed=torch.zeros_like(weights, dtype=torch.bool))

    def _pair(self, name: str, epoch: int) -> TokenizedQuestion:
        answer, explanations = self._answers[name], self._explanations[name]
        explanation = explanations[(epoch + crc32(name.encode())) % len(explanations)]
        return TokenizedQuestion(name, answer.prompt, {}, (), {0: answer, 1: explanation})

    @classmethod
    def asks_with(cls, config: MindConfig) -> str:
        options = cls.options_in(config)
        assert isinstance(options, SbsOptions)
        return options.rationale_prefix if options.explain_with_answer else options.label_prefix

    def finish_step(self, plan: StepPlan, totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
        means = {f"{name}_loss": float(l_real[:, slot].nanmean()) for slot, name in enumerate(self.slots)}
        return StepMetrics({name: value for name, value in means.items() if value == value})
