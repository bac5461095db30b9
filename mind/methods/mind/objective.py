"""The student's objective: scores -> I_dyn and alpha; alpha and a micro-batch -> its L_total, through mind_kernels.

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
from mind.records import MicroBatch
from mind.student.model import Head
from mind_kernels import RowStats, linear_cross_entropy, linear_mind_loss

SUMS = (
    "loss",
    "sft",
    "consistency",
    "rows",
    "correct",
    "entropy",
    "dropped_mass",
    "pairs",
    "jsd",
    "trained_tokens",
    "observed_tokens",
)
"""What the micro-batches and processes of a step add up: shares of the step's mean loss, its SFT part and its
consistency (without lambda); labelled rows, those whose argmax is right, their entropies in nats and the probabilities
that the sparse gradient left out; pairs of answer distributions and their JSD in nats, unweighted; tokens of the trunk
with a backward pass and without."""


@dataclass(frozen=True)
class ObjectiveTerms:
    """What one micro-batch gives. Q questions in the step, K perspectives; only `loss` carries a gradient."""

    loss: Tensor
    """() its share of the step's loss."""
    sums: Tensor
    """(len(SUMS),) float64, in the order of SUMS."""
    l_real: Tensor
    """(Q, K) the student's CE on each of its rationales, nan elsewhere."""


@dataclass(frozen=True)
class StepTerms:
    """A step's means, on the host."""

    loss: float
    """Mean of L_total over its questions."""
    sft: float
    """Mean over the questions of sum_k alpha_k CE_k."""
    consistency: float
    """Mean over the questions of sum_{i<j} alpha_i alpha_j JSD_ij, without lambda."""
    jsd: float
    """Mean JSD over all pairs of trained rationales and all answer positions, unweighted, in nats."""
    accuracy: float
    """Share of labelled tokens whose argmax is right."""
    entropy: float
    """Mean entropy of the student's token distributions, in nats."""
    dropped_mass: float
    """Mean probability that the sparse gradient left out a token; 0 where the gradient is exact."""
    rows: int
    """Labelled tokens: what the step is supervised by."""
    trained_tokens: int
    """Tokens of the trunk with a forward and a backward pass."""
    observed_tokens: int
    """Tokens of the trunk with a forward pass alone."""
    l_real: Tensor
    """(Q, K) float64, the student's CE on each rationale; nan where it was not computed."""

    @classmethod
    def of(cls, totals: Tensor, l_real: Tensor) -> StepTerms:
        """From the totals of SUMS, on the host."""
        total = dict(zip(SUMS, totals.tolist(), strict=True))
        rows = total["rows"]
        return cls(
            total["loss"],
            total["sft"],
            total["consistency"],
            total["jsd"] / max(1, total["pairs"]),
            total["correct"] / rows,
            total["entropy"] / rows,
            total["dropped_mass"] / rows,
            int(rows),
            int(total["trained_tokens"]),
            int(total["observed_tokens"]),
            l_real,
        )


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
    head: Head,
    batch: MicroBatch,
    alpha: Tensor,
    config: ObjectiveConfig,
) -> ObjectiveTerms:
    """The share of a micro-batch in the mean of L_total over the Q questions of its step.

    hidden (N, D) are the hidden states of the batch's labelled rows, alpha (Q, K) the weights of the rationales.
    """
    device, questions = hidden.device, len(alpha)
    exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    alpha = alpha.to(device, exact)
    segment = batch.segment.to(device)
    row_weight = (alpha / batch.tokens.to(device).clamp(min=1)).flatten()[segment] / questions
    # One pair-weight matrix a question, shared by its answer positions and averaged over them.
    pairs = alpha[:, :, None] * alpha[:, None, :] / batch.answer_lengths.to(device)[:, None, None] / questions
    pair_weight = pairs[batch.answer_question.to(device)]
    loss, stats = linear_mind_loss(
        hidden,
        head.weight,
        batch.target,
        row_weight,
        batch.answer_rows,
        config.consistency_weight * pair_weight,
        segment=batch.segment,
        num_segments=alpha.numel(),
        bias=head.bias,
        softcap=head.softcap,
        temperature=head.temperature,
        gradient_threshold=config.gradient_threshold,
        return_stats=True,
        backend=config.backend,
    )
    there = batch.answer_rows.to(device) >= 0
    jsd = stats.pairs.jsd
    return ObjectiveTerms(
        loss,
        _sums(
            stats.rows,
            loss=loss.detach(),
            sft=stats.cross_entropy,
            trained_tokens=torch.tensor(batch.total_tokens),
            consistency=(jsd * pair_weight).triu(1).sum(),
            jsd=jsd.triu(1).sum(),
            pairs=(there[:, :, None] & there[:, None, :]).triu(1).sum(),
        ),
        stats.rows.segment_nll.view(alpha.shape),
    )


@torch.no_grad()
def observe(hidden: Tensor, head: Head, batch: MicroBatch, backend: str = "auto") -> ObjectiveTerms:
    """L_real of rationales that are not trained on, and their statistics; hidden (N, D) as in `student_loss`."""
    _, stats = linear_cross_entropy(
        hidden,
        head.weight,
        batch.target,
        bias=head.bias,
        softcap=head.softcap,
        temperature=head.temperature,
        segment=batch.segment,
        num_segments=batch.tokens.numel(),
        return_stats=True,
        backend=backend,
    )
    return ObjectiveTerms(
        hidden.new_zeros(()),
        _sums(stats, observed_tokens=torch.tensor(batch.total_tokens)),
        stats.segment_nll.view(batch.tokens.shape),
    )


def _sums(rows: RowStats, **others: Tensor) -> Tensor:
    dropped = {} if rows.dropped_mass is None else {"dropped_mass": rows.dropped_mass.sum()}
    known = {
        "rows": torch.tensor(len(rows.nll)),
        "correct": rows.correct.sum(),
        "entropy": rows.entropy.sum(),
        **dropped,
        **others,
    }
    zero = torch.zeros(())
    return torch.stack([known.get(name, zero).to(rows.nll.device, torch.float64) for name in SUMS])
