"""The student's objective: computes I_dyn and alpha from scores, and L_total of a micro-batch through mind_kernels.

    I_dyn   = {k : s_k >= beta max_j s_j}
    alpha_k = exp(s_k / tau_student) / sum_{j in I_dyn} exp(s_j / tau_student) in I_dyn, else 0
    L_total = sum_k alpha_k CE(r_k | x) + lambda sum_{i<j} alpha_i alpha_j JSD(P_i || P_j)

(arXiv 2601.03717.) CE is the mean over the tokens of rationale and suffix, JSD the mean over the positions of
`objective.answer_span`, by default the suffix.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from mind.batches.answer_pairs import pair_weights
from mind.config import ObjectiveConfig
from mind.methods.step import LossTerms
from mind.records import MicroBatch
from mind_kernels import Head, PairStats, linear_mind_loss


def select(
    scores: Tensor,  # (Q, K), positive
    present: Tensor,  # (Q, K) bool
    beta: float,
    tau_student: float,
) -> tuple[Tensor, Tensor]:  # I_dyn (Q, K) bool, alpha (Q, K)
    """The selected rationales and their weights, without a graph; each row of alpha sums to 1.

    The largest score of each question is always selected. A missing perspective never is.
    """
    scores = torch.where(present, scores.detach(), 0)
    selected = present & (scores >= beta * scores.amax(dim=1, keepdim=True))
    logits = torch.where(selected, scores / tau_student, -torch.inf)
    return selected, torch.softmax(logits, dim=1)


def anchored(
    scores: Tensor,  # (Q, K)
    present: Tensor,  # (Q, K) bool
) -> Tensor:  # (Q, K)
    """s - max_j s_j + 1: scores shifted so that the largest is 1. This changes neither L_meta nor, for a given I_dyn,
    alpha."""
    highest = torch.where(present, scores, -torch.inf).amax(1, keepdim=True)
    return torch.where(present, scores - highest + 1, 0)


def student_loss(
    hidden: Tensor,  # (N, D)
    head: Head,
    batch: MicroBatch,
    alpha: Tensor,  # (Q, K)
    row_weight: Tensor,  # (N,)
    config: ObjectiveConfig,
) -> LossTerms:
    """A micro-batch's share of the mean of L_total over the Q questions of its step.

    In addition to the sums of LossTerms.of it returns "sft" and "consistency", the shares of the cross-entropy and of
    the consistency (without lambda), and "pairs" and "jsd", the number of pairs of answer distributions and the
    unweighted sum of their JSD in nats.

    Args:
        hidden: the student's last hidden states of the micro-batch's labeled rows, in its order.
        head: its LM head.
        batch: the selected rationales of some of the step's questions.
        alpha: the weights of the rationales, 0 for those that are not selected.
        row_weight: the weights of the rows in the cross-entropy, from `Method.row_weights`.
        config: sets lambda, the threshold of the sparse gradient, and the backend.
    """
    alpha = alpha.to(row_weight)
    pair_weight = pair_weights(alpha[:, :, None] * alpha[:, None, :], batch, hidden)
    loss, stats = linear_mind_loss(
        hidden,
        head,
        batch.target,
        row_weight,
        batch.answer_rows,
        config.consistency_weight * pair_weight,
        segment=batch.segment,
        num_segments=alpha.numel(),
        gradient_threshold=config.gradient_threshold,
        return_stats=True,
        backend=config.backend,
    )
    there = batch.answer_rows.to(hidden.device) >= 0
    jsd = cast(PairStats, stats.pairs).jsd  # this weight applies to a pair, not to a member of a mixture
    return LossTerms.of(
        loss,
        stats.rows,
        batch,
        sft=stats.cross_entropy,
        consistency=(jsd * pair_weight).triu(1).sum(),
        pairs=(there[:, :, None] & there[:, None, :]).triu(1).sum(),
        jsd=jsd.triu(1).sum(),
    )
