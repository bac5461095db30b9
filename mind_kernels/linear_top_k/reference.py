"""The definition of linear_top_k, computed from all logits at once."""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_top_k.contract import TopK


def top_k(hidden: Tensor, head: Head, k: int) -> TopK:
    """The k most likely tokens of each row of hidden (N, D)."""
    logits = head.logits(hidden)
    log_prob, ids = torch.log_softmax(logits, -1).topk(k)
    return TopK(ids, log_prob, torch.logsumexp(logits, -1))
