"""MCC-KD (arXiv 2310.14747): two rationales of a question, and the same answer distribution behind both.

    L = (CE_i + CE_j) / 2 + alpha / 2 mean_p [KL(P_p || Q_p) + KL(Q_p || P_p)]

P and Q are the student's distributions behind the two rationales at the positions p that predict the answer's tokens,
as in the source (`objective.answer_span` names others), at a temperature T and without a factor T^2; both sides are
trained. CE is the mean over the tokens of a sequence, as in the source. Each epoch draws another pair from the
rationales that are least alike; the source draws one and the same. (Its released code compares the positions of the
answer's input tokens, which predict the ones after them: off by one.)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from mind.config import MethodOptions
from mind.data.questions import TO_COMPARE
from mind.methods.comparing import symmetric_kl
from mind.methods.heads import at_temperature
from mind.methods.method import OF_MIND, Method, MethodContext
from mind.methods.step import LossTerms, Step, StepMetrics, StepPlan
from mind.records import MicroBatch
from mind.report.charts import Chart, Series
from mind.similarity import most_diverse, ngram_sets, similarities
from mind_kernels import Head

_WORDS = 3
"""Of the n-grams by which rationales are compared."""


@dataclass(frozen=True)
class MccKdOptions(MethodOptions):
    """Options of MCC-KD; alpha and temperature are those of the authors' script."""

    alpha: float = 0.01
    """Weight of the divergence."""
    temperature: float = 1.3
    """T, the temperature of the distributions that are compared."""
    pool: int = 5
    """Rationales per question from which pairs are drawn, at most: the least similar ones."""

    BOUNDS = {
        "alpha": "a number >= 0",
        "temperature": "a positive number",
        "pool": "at least 2",
    }


class MccKd(Method):
    """Two rationales per question and step."""

    Options = MccKdOptions
    title = "MCC-KD"
    unread = OF_MIND
    fewest_rationales, lesson = TO_COMPARE, "two rationales of a question"
    learning_rate = 1e-5
    answer_span = "answer"
    charts = (
        Chart(
            "symmetric_kl",
            "Divergence between the two rationales",
            "KL both ways, nats per position",
            "It should fall: the answers agree more, whichever rationale led to them. It is small beside the loss.",
            (Series("symmetric_kl", brief="KL {:.3f}"),),
            from_zero=True,
        ),
    )

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        slots = {name: k for k, name in enumerate(context.config.data.perspectives)}
        self._pools = {}
        for question in context.questions:
            similarity = similarities(ngram_sets([one.text for one in question.rationales], _WORDS))
            every = range(len(similarity))
            pool = most_diverse(similarity, every, every, self.options.pool)
            self._pools[question.id] = sorted(slots[question.rationales[index].perspective] for index in pool)

    def prepare(self, step: Step) -> StepPlan:
        trained = torch.zeros(len(step.questions), self.context.perspectives, dtype=torch.bool)
        for q, question in enumerate(step.questions):
            trained[q, list(self._pair(question.id, step.epoch))] = True
        return StepPlan.training(step.questions, trained.double() / 2)

    def _pair(self, name: str, epoch: int) -> tuple[int, int]:
        """Every pair of the pool comes once before one comes again, in an order that is the question's own."""
        pairs = list(itertools.combinations(self._pools[name], 2))
        start = crc32(f"{self.context.config.train.seed}:{name}".encode())
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(start))
        return pairs[int(order[epoch % len(pairs)])]

    def loss(self, hidden: Tensor, head: Head, batch: MicroBatch, plan: StepPlan) -> LossTerms:
        options = self.options
        terms = super().loss(hidden, head, batch, plan)
        one = torch.ones(*plan.weights.shape, plan.weights.shape[1])
        divergence = symmetric_kl(
            hidden, at_temperature(head, options.temperature), batch, one, self.context.config.objective.backend
        )
        loss = terms.loss + options.alpha / 2 * divergence
        return terms._replace(loss=loss, sums={**terms.sums, "symmetric_kl": divergence.detach()})

    def finish_step(self, plan: StepPlan, totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
        return StepMetrics({"symmetric_kl": totals["symmetric_kl"]})
