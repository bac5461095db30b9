"""The student's objective: scores -> I_dyn and alpha; alpha and the packed batch -> L_total, through mind_kernels.

    I_dyn   = {k : s_k >= beta max_j s_j}
    alpha_k = exp(s_k / tau_student) / sum_{j in I_dyn} exp(s_j / tau_student) in I_dyn, else 0
    L_total = sum_k alpha_k CE(r_k | x) + lambda sum_{i<j} alpha_i alpha_j JSD(P_i || P_j)

(arXiv 2601.03717.) CE is the mean over the tokens of rationale and suffix, JSD the mean over the suffix positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mind.config import ObjectiveConfig
from mind.records import HeadTensors, PackedBatch
from mind_kernels import linear_mind_loss


@dataclass(frozen=True)
class ObjectiveTerms:
    """L_total of a batch and what it is made of; all but `loss` without a gradient. Q questions, K perspectives."""

    loss: Tensor
    """() sum of L_total over the questions, divided by `questions`."""
    sft: Tensor
    """() mean over the questions of sum_k alpha_k CE_k."""
    consistency: Tensor
    """() mean over the questions of sum_{i<j} alpha_i alpha_j JSD_ij, without lambda."""
    jsd: Tensor
    """() mean JSD over all pairs of present rationales and all answer positions, unweighted, in nats."""
    l_real: Tensor
    """(Q, K) the student's CE on each rationale, selected or not; nan where there is none."""
    accuracy: Tensor
    """() share of labelled tokens whose argmax is right."""
    entropy: Tensor
    """() mean entropy of the student's token distributions, in nats."""
    dropped_mass: Tensor | None
    """() mean probability that the sparse gradient left out a token; None where the gradient is exact."""


def select(scores: Tensor, present: Tensor, beta: float, tau_student: float) -> tuple[Tensor, Tensor]:
    """(I_dyn (Q, K) bool, alpha (Q, K)) from scores (Q, K); alpha is detached, and each row of it sums to 1.

    The argmax of each question is always selected. A missing perspective never is.
    """
    scores = torch.where(present, scores.detach(), 0)
    selected = present & (scores >= beta * scores.amax(dim=1, keepdim=True))
    logits = torch.where(selected, scores / tau_student, -torch.inf)
    return selected, torch.softmax(logits, dim=1)


def student_loss(
    hidden: Tensor,
    head: HeadTensors,
    batch: PackedBatch,
    alpha: Tensor,
    config: ObjectiveConfig,
    questions: int,
) -> ObjectiveTerms:
    """L_total of the batch, summed over its questions and divided by `questions` (those of the optimiser step).

    hidden (N, D) are the hidden states of the batch's labelled rows, alpha (Q, K) the weights of the rationales.
    """
    device, shape = hidden.device, alpha.shape
    exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    alpha = alpha.to(device, exact)
    segment = batch.segment.to(device)
    row_weight = (alpha / batch.tokens.to(device).clamp(min=1)).flatten()[segment] / questions
    # One pair-weight matrix a question, shared by its answer positions and averaged over them.
    pairs = alpha[:, :, None] * alpha[:, None, :] / batch.answer_lengths.to(device)[:, None, None] / questions
    pair_weight = pairs[batch.answer_question.to(device)]
    loss, stats = linear_mind_loss(
        hidden, head.weight, batch.target, row_weight, batch.answer_rows, config.consistency_weight * pair_weight,
        segment=batch.segment, num_segments=alpha.numel(), bias=head.bias, softcap=head.softcap,
        temperature=head.temperature, gradient_threshold=config.gradient_threshold, return_stats=True,
        backend=config.backend)
    jsd = stats.pairs.jsd
    share = questions / shape[0]
    there = batch.answer_rows.to(device) >= 0
    pair_count = (there[:, :, None] & there[:, None, :]).triu(1).sum().clamp(min=1)
    return ObjectiveTerms(
        loss=loss,
        sft=stats.cross_entropy * share,
        consistency=(jsd * pair_weight).triu(1).sum() * share,
        jsd=jsd.triu(1).sum() / pair_count,
        l_real=stats.rows.segment_nll.view(shape),
        accuracy=stats.rows.correct.float().mean(),
        entropy=stats.rows.entropy.mean(),
        dropped_mass=None if stats.rows.dropped_mass is None else stats.rows.dropped_mass.mean(),
    )
