"""Computes the weights of pairs of rationales whose distributions are compared at aligned positions."""

from __future__ import annotations

import torch
from torch import Tensor

from mind.records import MicroBatch


def pair_weights(
    weights: Tensor,  # (Q, K, K)
    batch: MicroBatch,
    hidden: Tensor,  # (N, D)
) -> Tensor:  # (P, K, K) float32, float64 for float64 hidden states; on their device
    """The weight w_qij / (P_qij Q) for each of the P_qij positions that rationales i and j of question q both have.

    The weighted sum over positions is then the mean over the step's Q questions of sum_{i<j} w_qij mean_p D_pij.
    """
    exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    question = batch.answer_question.to(hidden.device)
    there = batch.answer_rows.to(hidden.device) >= 0
    both = (there[:, :, None] & there[:, None, :]).to(exact)
    weights = weights.to(hidden.device, exact)
    positions = torch.zeros_like(weights).index_add_(0, question, both)
    return (weights / positions.clamp(min=1) / len(weights))[question]
