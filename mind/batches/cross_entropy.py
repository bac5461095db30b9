"""Computes the student's cross-entropy on the rationales of a micro-batch, and on whole questions without a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mind import processes
from mind.batches.packing import micro_batches
from mind.batches.steps import question_tokens
from mind.batches.trunk import labeled_hidden
from mind.errors import NotFiniteError
from mind.finite import named_questions
from mind.records import MicroBatch, PackOptions, TokenizedQuestion
from mind.student.model import head_of
from mind_kernels import Head, RowStats, linear_cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUESTIONS_AT_ONCE = 8
"""Number of questions that are packed together between two progress reports."""


def cross_entropy(
    hidden: Tensor,  # (N, D)
    head: Head,
    batch: MicroBatch,
    row_weight: Tensor | None = None,  # (N,)
    *,
    gradient_threshold: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, RowStats]:
    """The weighted sum () of the labeled rows' losses, and their statistics; segment q K + k is rationale k of question
    q.

    Args:
        hidden: the student's last hidden states of the rows of `batch`, in its order.
        head: its LM head.
        batch: says what the rows predict, and which rationale each belongs to.
        row_weight: the weight of each row, a constant; None: 1.
        gradient_threshold: threshold of the sparse gradient, a share of each row's gradient; None: the exact gradient.
        backend: the name of a backend of mind_kernels.
    """
    return linear_cross_entropy(
        hidden,
        head,
        batch.target,
        row_weight=row_weight,
        reduction="sum",
        gradient_threshold=gradient_threshold,
        segment=batch.segment,
        num_segments=batch.tokens.numel(),
        return_stats=True,
        backend=backend,
    )


def row_weights(
    weights: Tensor,  # (Q, K)
    batch: MicroBatch,
    hidden: Tensor,  # (N, D)
) -> Tensor:  # (N,) float32, float64 for float64 hidden states; on their device
    """w_qk / (T_qk Q) for each labeled row. With these weights `cross_entropy` is the mean over the step's Q questions
    of sum_k w_qk CE_qk, where CE_qk is the mean over the T_qk tokens of rationale and suffix. If the tokens have
    weights of their own, each row's weight is multiplied by its token's."""
    exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    each = weights.to(hidden.device, exact) / batch.tokens.to(hidden.device).clamp(min=1)
    rows = each.flatten()[batch.segment.to(hidden.device)] / len(weights)
    return rows if batch.token_weight is None else rows * batch.token_weight.to(rows)


def token_mean(
    weights: Tensor,  # (Q, K)
    tokens: Tensor,  # (Q, K), of all sequences of the step
    terms: Sequence[int],  # K numbers
) -> Tensor:  # (Q, K)
    """The weights that turn means over the tokens of each sequence into a mean over all tokens of a term.

    A term consists of the slots with the same number in `terms`; all its weights have the same sign. Each weight is
    multiplied by its sequence's number of tokens and divided by the weighted mean of these numbers in the term. With
    `row_weights` every token of a term then has the weight of its sequence, and the total weight of the term does not
    change.
    """
    out = torch.zeros_like(weights)
    for term in set(terms):
        slots = [slot for slot, its in enumerate(terms) if its == term]
        w, t = weights[:, slots], tokens[:, slots].to(weights)
        whole = (w * t).sum()
        out[:, slots] = torch.where(whole == 0, 0, w * t * w.sum() / whole)
    return out


def rationale_losses(
    model: PreTrainedModel,
    questions: Sequence[TokenizedQuestion],
    perspectives: int,
    pack_options: PackOptions,
    progress: Callable[[int], object] = lambda _: None,
) -> tuple[Tensor, Tensor]:  # (Q, K) float32, (Q, K) int64; on the CPU
    """L_real, the mean NLL in nats per token of each rationale with its suffix, nan for a missing one; and the number
    of its tokens. Several processes share the questions.

    Args:
        model: the student; its mode (train or eval) is left as it is.
        questions: the Q questions.
        perspectives: K.
        pack_options: how the questions are packed into rows of the trunk.
        progress: called with the number of finished questions.

    Raises NotFiniteError with the questions whose loss is nan or infinite.
    """

    def computed(mine: Sequence[TokenizedQuestion]) -> list[tuple[list[float], list[int]]]:
        rows: list[tuple[list[float], list[int]]] = []
        tell = processes.for_all(progress, len(mine), len(questions))
        for some in _parts(mine):
            table = torch.full((len(some), perspectives), torch.nan)
            count = torch.zeros(len(some), perspectives, dtype=torch.int64)
            for batch in micro_batches(some, perspectives, pack_options):
                with torch.no_grad():
                    _, stats = cross_entropy(labeled_hidden(model, batch), head_of(model), batch)
                table = torch.where(batch.present, rationale_means(stats, batch).float().cpu(), table)
                count += batch.tokens
            if bad := [some[q].id for q in ((count > 0) & ~table.isfinite()).any(1).nonzero().flatten().tolist()]:
                raise NotFiniteError(f"the loss of {named_questions(bad)} is not finite")
            rows += zip(table.tolist(), count.tolist(), strict=True)
            tell(len(rows))
        return rows

    rows = processes.spread(questions, computed, [question_tokens(question) for question in questions])
    losses, tokens = zip(*rows, strict=True)
    return torch.tensor(losses, dtype=torch.float32), torch.tensor(tokens)


def losses_work(questions: Sequence[TokenizedQuestion], perspectives: int, pack_options: PackOptions) -> int:
    """Tokens of the trunk that `rationale_losses` computes for the same arguments."""
    parts = (micro_batches(some, perspectives, pack_options) for some in _parts(questions))
    return sum(batch.total_tokens for part in parts for batch in part)


def _parts(questions: Sequence[TokenizedQuestion]) -> Iterator[Sequence[TokenizedQuestion]]:
    return (questions[start : start + QUESTIONS_AT_ONCE] for start in range(0, len(questions), QUESTIONS_AT_ONCE))


def rationale_means(stats: RowStats, batch: MicroBatch) -> Tensor:  # (Q, K), nan for what is not in the micro-batch
    """L_real, computed from the statistics of a micro-batch's rows, whose segments are its rationales."""
    assert stats.segment_nll is not None, "the call had no segments"
    return stats.segment_nll.view(batch.tokens.shape)
