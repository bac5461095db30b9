"""COMPACT, multi-teacher distillation: rationales weigh by what the student makes of them, and their answers agree.

    L = mean over the questions of sum_k alpha_k CE_k + lambda sum_{i<j} alpha_i alpha_j mean_p [KL_ij + KL_ji]
    alpha = softmax((b1 z(information) + b2 z(agreement) - b3 z(CE)) / T),   z(x) = (x - mean) / (std + 1e-4)

over the rationales of a question, of which each is a teacher's in the source and a perspective's here. From the student
as it is, without a gradient:

    information_k   sum over the rationale's tokens t of m_t relu(a_t - a_{t-1}), where a_t is the mean logit of the
                    answer's tokens behind t, and m_t 1 at connectives ("Therefore", "Wait", ...) and .1 elsewhere
    agreement_k     column sums of softmax(Q K^T / sqrt(d)), its diagonal 0, of the last attention layer's projections
                    of the rationales' last states
    CE_k            the mean over the tokens of rationale and suffix

Formulas and defaults are those of the authors' released code (sister work of MIND). It compares distributions at every
position that two sequences have in common, counted from their start: span "all", where prompts are left out, which are
the same for all rationales, [ours]. Where it leaves freedom or is bound to one model, [ours] too: information is of the
rationale alone, without its answer line, which states the answer in any case; the last state is the one that predicts
the end of the turn; keys of grouped-query attention count once per query head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mind.batches.cross_entropy import cross_entropy, rationale_means, row_weights
from mind.config import MethodOptions
from mind.data.questions import TO_COMPARE
from mind.errors import MindError
from mind.methods.comparing import symmetric_kl
from mind.methods.method import OF_MIND, MethodContext
from mind.methods.sft import Sft
from mind.methods.step import LossTerms, Step, StepMetrics, StepPlan
from mind.records import MicroBatch, TokenizedQuestion
from mind.report.charts import Chart, Series
from mind_kernels import Head

_ELSEWHERE = 0.1
"""Weight of a token that is no connective."""
_SMALLEST_PAIR = 1e-4
"""Pairs with a smaller alpha_i alpha_j are not compared."""
_SPREAD = 1e-4
"""What is added to a standard deviation."""


@dataclass(frozen=True)
class CompactOptions(MethodOptions):
    """Options of COMPACT; the defaults are the authors'."""

    information_weight: float = 1.0
    """b1."""
    agreement_weight: float = 1.0
    """b2."""
    loss_weight: float = 0.5
    """b3: rationales that the student finds hard weigh less."""
    temperature: float = 1.0
    """T, the temperature of alpha."""
    consistency_weight: float = 0.1
    """lambda."""
    connectives: tuple[str, ...] = (
        "Therefore",
        "Thus",
        "Hence",
        "So",
        "Because",
        "Since",
        "However",
        "Wait",
        "First",
        "Next",
        "Then",
        "Finally",
    )
    """Words at which a rise of the answer counts fully, if they are one token of the student, with or without a space
    in front. The authors publish a part of their list only [ours]."""

    BOUNDS = {
        "information_weight": "a number >= 0",
        "agreement_weight": "a number >= 0",
        "loss_weight": "a number >= 0",
        "consistency_weight": "a number >= 0",
        "temperature": "a positive number",
    }


class Compact(Sft):
    """All rationales of a question in each step that has it.

    alpha is found from the hidden states of the very pass that trains, micro-batch by micro-batch, or in one before.
    """

    Options = CompactOptions
    title = "COMPACT"
    learning_rate = 1e-5
    unread = OF_MIND
    fewest_rationales, lesson = TO_COMPARE, "two rationales of a question"
    answer_span = "all"
    reads_answers = True
    charts = (
        Chart(
            "terms",
            "The two terms of the objective",
            "nats",
            "The weighted cross-entropy, and the divergence between the rationales, without its weight.",
            (Series("sft_loss", "cross-entropy"), Series("consistency", "symmetric KL", brief="KL {:.3f}")),
        ),
        Chart(
            "alpha_entropy",
            "How evenly rationales weigh",
            "entropy of alpha, nats",
            "The logarithm of the number of rationales: all weigh the same; 0: one has all the weight.",
            (Series("alpha_entropy", brief="entropy of alpha {:.2f}"),),
            from_zero=True,
        ),
        Chart(
            "alpha",
            "Weight of each perspective",
            "mean alpha",
            "One line near 1: one perspective has nearly all the weight; equal lines: all weigh the same.",
            form="perspectives",
        ),
    )

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self._attention = last_attention(context.model)
        self._connectives = torch.tensor(sorted(_single_tokens(context.tokenizer, self.options.connectives)))

    def prepare(self, step: Step) -> StepPlan:
        plan = super().prepare(step)
        if not self._known:
            return plan

        def measure(hidden: Tensor, head: Head, batch: MicroBatch) -> Tensor:
            alpha = self.alpha(hidden, head, batch, plan.questions)
            return torch.where(batch.present.to(alpha.device), alpha, torch.nan)

        alpha = step.observe(plan.trained, plan.questions, measure=measure)
        return replace(plan, weights=alpha.nan_to_num(0))

    @property
    def _known(self) -> bool:
        """Whether alpha is known before the step: a mean over all tokens of a step needs that of every question, and a
        pass over them. The mean over sequences does not, and each micro-batch finds that of its own."""
        return self.context.config.objective.normalize == "token"

    def loss(self, hidden: Tensor, head: Head, batch: MicroBatch, plan: StepPlan) -> LossTerms:
        backend, options = self.context.config.objective.backend, self.options
        if self._known:
            alpha = torch.where(batch.present, plan.weights, 0).to(hidden.device)
            weights = self.sequence_weights(plan)
        else:
            weights = alpha = self.alpha(hidden, head, batch, plan.questions)
        cross, rows = self.cross_entropy(hidden, head, batch, row_weights(weights, batch, hidden))
        pairs = alpha[:, :, None] * alpha[:, None, :]
        pairs = torch.where(pairs >= _SMALLEST_PAIR, pairs, 0)
        consistency = symmetric_kl(hidden, head, batch, pairs, backend)
        shares = {f"alpha_{k}": share for k, share in enumerate(alpha.sum(0))}
        return LossTerms.of(
            cross + options.consistency_weight * consistency,
            rows,
            batch,
            sft=cross.detach(),
            consistency=consistency.detach(),
            alpha_entropy=torch.special.entr(alpha).sum(),
            **shares,
        )

    @torch.no_grad()
    def alpha(
        self,
        hidden: Tensor,  # (N, D)
        head: Head,
        batch: MicroBatch,
        questions: Sequence[TokenizedQuestion],
    ) -> Tensor:  # (Q, K) float64, 0 where a rationale is not here
        """The weights of the rationales of a micro-batch."""
        _, rows = cross_entropy(hidden, head, batch, backend=self.context.config.objective.backend)
        information, agreement = self.information(hidden, head, batch, questions), self.agreement(hidden, batch)
        return weights_of(information, agreement, rationale_means(rows, batch), self.options)

    def information(
        self,
        hidden: Tensor,  # (N, D)
        head: Head,
        batch: MicroBatch,
        questions: Sequence[TokenizedQuestion],
    ) -> Tensor:  # (Q, K) float64, 0 where a rationale is not here
        """How much the rationales raise the logits of the answer, token by token."""
        out = hidden.new_zeros(batch.tokens.shape, dtype=torch.float64)
        target, connectives = batch.target.to(hidden.device), self._connectives.to(hidden.device)
        for q, k, rows in _rationales(batch):
            question = questions[q]
            answer = [question.suffix[place] for place in question.answer]
            rows = rows[: len(rows) - len(question.suffix) + 1]  # from the end of the prompt to that of the rationale
            logits = (hidden[rows] @ head.weight[answer].mean(0).to(hidden)).double()
            rises = logits.diff().clamp(min=0)
            out[q, k] = torch.where(torch.isin(target[rows[:-1]], connectives), rises, _ELSEWHERE * rises).sum()
        return out

    def agreement(self, hidden: Tensor, batch: MicroBatch) -> Tensor:  # (Q, K) float64, 0 where a rationale is not here
        """How much the other rationales of a question attend to each, by their last states."""
        out = hidden.new_zeros(batch.tokens.shape, dtype=torch.float64)
        last: dict[int, dict[int, int]] = {}
        for q, k, rows in _rationales(batch):
            last.setdefault(q, {})[k] = int(rows[-1])
        for q, of_question in last.items():
            states = hidden[list(of_question.values())]
            with _without_dropout(self._attention):
                queries, keys = self._attention.q_proj(states), self._attention.k_proj(states)
            heads, size = keys.shape[1], self._attention.head_dim
            keys = keys.view(len(keys), heads // size, size)
            keys = keys.repeat_interleave(queries.shape[1] // heads, 1).flatten(1)
            scores = (queries @ keys.T).double() / math.sqrt(queries.shape[1])
            attended = torch.softmax(scores, 1).fill_diagonal_(0)
            out[q, list(of_question)] = attended.sum(0)
        return out

    def finish_step(self, plan: StepPlan, totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
        there = plan.trained.sum(0)
        means = torch.tensor([totals[f"alpha_{k}"] for k in range(len(there))], dtype=torch.float64) / there
        return StepMetrics(
            {
                "sft_loss": totals["sft"],
                "consistency": totals["consistency"],
                "alpha_entropy": totals["alpha_entropy"] / len(plan.questions),
            },
            {"alpha": torch.where(plan.trained, means, torch.nan)},
        )


def weights_of(
    information: Tensor,  # (Q, K)
    agreement: Tensor,  # (Q, K)
    losses: Tensor,  # (Q, K), nan where there is no rationale
    options: CompactOptions,
) -> Tensor:  # (Q, K) float64; 0 where there is no rationale
    """alpha; each row with rationales sums to 1."""
    there = losses.isfinite()
    score = (
        options.information_weight * _standard(information, there)
        + options.agreement_weight * _standard(agreement, there)
        - options.loss_weight * _standard(losses, there)
    )
    return torch.softmax(torch.where(there, score / options.temperature, -torch.inf), 1).nan_to_num(0)


def _standard(values: Tensor, there: Tensor) -> Tensor:
    """(x - mean) / (standard deviation + 1e-4) over the values of a row that are there, by their number less one."""
    values, count = torch.where(there, values.double(), 0), there.sum(1, keepdim=True)
    centered = torch.where(there, values - values.sum(1, keepdim=True) / count.clamp(min=1), 0)
    deviation = (centered.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centered / (deviation + _SPREAD)


def last_attention(model: nn.Module) -> Any:
    """The last attention of a model, with its projections; raises MindError for a model that has none of that kind."""
    found = [module for module in model.modules() if all(hasattr(module, n) for n in ("q_proj", "k_proj", "head_dim"))]
    if not found:
        raise MindError(
            f"method compact compares rationales by q_proj and k_proj of the last attention layer, which "
            f"{type(model).__name__} does not have"
        )
    return found[-1]


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    training = [each for each in module.modules() if each.training]
    module.eval()
    try:
        yield
    finally:
        for each in training:
            each.training = True


def _rationales(batch: MicroBatch) -> Iterator[tuple[int, int, Tensor]]:
    """Question, perspective and rows, in order, of each rationale of a micro-batch, which stand together."""
    slots = batch.tokens.shape[1]
    segments, counts = torch.unique_consecutive(batch.segment, return_counts=True)
    for segment, rows in zip(segments.tolist(), torch.arange(len(batch.segment)).split(counts.tolist()), strict=True):
        yield segment // slots, segment % slots, rows


def _single_tokens(tokenizer: Any, words: Sequence[str]) -> set[int]:
    """The ids of the words that are one token each, as they begin a text or follow a space."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for word in words for text in (word, f" {word}")]
    return {one[0] for one in ids if len(one) == 1}
