"""The consistency loss of the methods that compare the student's distributions after two rationales of a question."""

from __future__ import annotations

from torch import Tensor

from mind.batches.answer_pairs import pair_weights
from mind.records import MicroBatch
from mind_kernels import Head, linear_pairwise_jsd


def symmetric_kl(
    hidden: Tensor,  # (N, D)
    head: Head,
    batch: MicroBatch,
    weights: Tensor,  # (Q, K, K)
    backend: str = "auto",
) -> Tensor:
    """A micro-batch's share () of the mean over the step's questions of sum_{i<j} w_ij mean_p [KL(P_i || P_j) + KL(P_j
    || P_i)], at the positions p of the answer span. Gradients flow into both distributions.

    Args:
        hidden: the student's last hidden states of the micro-batch's labeled rows.
        head: its LM head, at the temperature of the distributions.
        batch: says which rows are compared.
        weights: w, the weight of each pair, a constant; only the upper triangle is used.
        backend: the name of a backend of mind_kernels.
    """
    rows = batch.answer_rows.to(hidden.device)
    weight = pair_weights(weights, batch, hidden)
    return linear_pairwise_jsd(
        hidden[rows.clamp(min=0)], head, weight, kind="jeffreys", mask=rows >= 0, backend=backend
    )
