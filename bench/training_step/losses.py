"""The losses of a micro-batch: by definition in plain PyTorch, with Liger's cross-entropy, and MIND's own.

All compute, from the hidden states of the labeled rows, the share of L_total in the step's mean and L_real.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.linear_pairwise_jsd.providers import two_rows, upcast
from mind.batches.cross_entropy import cross_entropy, rationale_means, row_weights
from mind.config import ObjectiveConfig
from mind.methods.mind.objective import student_loss
from mind.methods.step import LossTerms
from mind.records import MicroBatch
from mind_kernels import Head

CONSISTENCY = ObjectiveConfig().consistency_weight  # lambda


class Terms(NamedTuple):
    """As the fields of LossTerms."""

    loss: Tensor  # ()
    l_real: Tensor  # (Q, K), nan where a rationale is not in the micro-batch


@dataclass(frozen=True)
class Losses:
    """How a packed variant computes them; hidden (N, D) are those of a micro-batch's labeled rows."""

    train: Callable[[Tensor, Head, MicroBatch, Tensor], Terms | LossTerms]
    """(hidden, head, batch, alpha (Q, K)) -> loss with a gradient, and L_real."""
    observe: Callable[[Tensor, Head, MicroBatch], Tensor]
    """(hidden, head, batch) -> L_real (Q, K), called without a graph."""
    logits: bool = True
    """The logits of all labeled rows exist at once."""


class AnswerRows:
    """Where the answers of each question are among the rows of a micro-batch or of a padded batch; on the host."""

    def __init__(
        self,
        rows: Tensor,  # (P, K), -1 where a rationale is absent
        question: Tensor,  # (P,)
    ):
        self.blocks = []
        for q in question.unique().tolist():
            block = rows[question == q]
            there = (block[0] >= 0).nonzero().flatten()
            self.blocks.append((q, there.tolist(), block[:, there]))
        self.flat = torch.cat([block.flatten() for *_, block in self.blocks]) if self.blocks else rows.new_empty(0)

    @property
    def pairs(self) -> int:
        """Pairs of rows that are compared."""
        return sum(block.shape[0] * math.comb(block.shape[1], 2) for *_, block in self.blocks)

    def consistency(
        self,
        logits: Tensor,  # (len(flat), V), those of the rows `flat`
        alpha: Tensor,  # (Q, K)
    ) -> Tensor:
        """sum_q sum_{i<j} alpha_i alpha_j JSD(P_i, P_j), the mean over the positions of an answer; pair by pair."""
        total = alpha.new_zeros(())
        for (q, ks, block), part in zip(
            self.blocks, logits.split([block.numel() for *_, block in self.blocks]), strict=True
        ):
            log_p = upcast(part).log_softmax(-1).view(*block.shape, -1)
            log_p, p = log_p.unbind(1), log_p.exp().unbind(1)
            for i, j in combinations(range(len(ks)), 2):
                total = total + alpha[q, ks[i]] * alpha[q, ks[j]] * two_rows(p[i], p[j], log_p[i], log_p[j]).mean()
        return total


def combine(
    nll_sum: Tensor,  # (Q, K), over the tokens of each rationale
    tokens: Tensor,  # (Q, K)
    consistency: Tensor,  # ()
    alpha: Tensor,  # (Q, K)
) -> Terms:
    mean = nll_sum / tokens.clamp(min=1)
    loss = ((alpha * mean).sum() + CONSISTENCY * consistency) / len(alpha)
    return Terms(loss, mean.detach().masked_fill(tokens == 0, torch.nan))


def nll_sums(nll: Tensor, batch: MicroBatch) -> Tensor:
    """(Q, K), 0 where a rationale is not in the micro-batch; nll (N,)."""
    sums = nll.new_zeros(batch.tokens.numel()).index_add(0, batch.segment.to(nll.device), nll)
    return sums.view(batch.tokens.shape)


def eager(hidden: Tensor, head: Head, batch: MicroBatch, alpha: Tensor) -> Terms:
    logits = F.linear(hidden, head.weight, head.bias)
    nll = F.cross_entropy(upcast(logits), batch.target.to(hidden.device), reduction="none")
    answers = AnswerRows(batch.answer_rows, batch.answer_question)
    return packed_terms(nll, answers, logits[answers.flat.to(hidden.device)], batch, alpha)


def liger(hidden: Tensor, head: Head, batch: MicroBatch, alpha: Tensor) -> Terms:
    """One call for all rows: its loss a row takes any weights, with the right gradient from version 0.8.1 on."""
    from liger_kernel.transformers.functional import (  # pyright: ignore[reportMissingImports]
        liger_fused_linear_cross_entropy,
    )

    nll = liger_fused_linear_cross_entropy(hidden, head.weight, batch.target.to(hidden.device), reduction="none")
    answers = AnswerRows(batch.answer_rows, batch.answer_question)
    logits = F.linear(hidden[answers.flat.to(hidden.device)], head.weight)
    return packed_terms(nll, answers, logits, batch, alpha)


def packed_terms(nll: Tensor, answers: AnswerRows, answer_logits: Tensor, batch: MicroBatch, alpha: Tensor) -> Terms:
    """From the losses of all rows (N,) and the logits of the answer rows (R, V)."""
    alpha = alpha.to(nll)
    return combine(nll_sums(nll, batch), batch.tokens.to(nll.device), answers.consistency(answer_logits, alpha), alpha)


def observe_eagerly(hidden: Tensor, head: Head, batch: MicroBatch) -> Tensor:
    nll = F.cross_entropy(
        upcast(F.linear(hidden, head.weight, head.bias)), batch.target.to(hidden.device), reduction="none"
    )
    tokens = batch.tokens.to(nll.device)
    return (nll_sums(nll, batch) / tokens).masked_fill(tokens == 0, torch.nan)


def product(gradient_threshold: float | None = None) -> Losses:
    """What mind.methods.mind calls."""
    config = ObjectiveConfig(gradient_threshold=gradient_threshold)

    def train(hidden: Tensor, head: Head, batch: MicroBatch, alpha: Tensor) -> LossTerms:
        return student_loss(hidden, head, batch, alpha, row_weights(alpha, batch, hidden), config)

    def observe(hidden: Tensor, head: Head, batch: MicroBatch) -> Tensor:
        return rationale_means(cross_entropy(hidden, head, batch)[1], batch)

    return Losses(train, observe, logits=False)


EAGER = Losses(eager, observe_eagerly)
LIGER = Losses(liger, observe_eagerly, logits=False)
