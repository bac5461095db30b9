"""Linear top-k in plain PyTorch, a chunk of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_top_k.contract import TopK
from mind_kernels.row_chunks import accumulation_dtype, chunks, rows_per_chunk


def top_k(hidden: Tensor, head: Head, k: int) -> TopK:
    """Of hidden (N, D)."""
    rows, dtype = hidden.shape[0], accumulation_dtype(hidden.dtype)
    found = TopK(
        hidden.new_empty(rows, k, dtype=torch.int64),
        hidden.new_empty(rows, k, dtype=dtype),
        hidden.new_empty(rows, dtype=dtype),
    )
    for chunk in chunks(rows, rows_per_chunk(head.vocabulary, hidden.device, dtype.itemsize)):
        logits = head.to_logits_(head.project_wide(hidden[chunk]))
        lse = torch.logsumexp(logits, -1)
        largest, found.ids[chunk] = logits.topk(k)
        found.log_prob[chunk], found.lse[chunk] = largest - lse[:, None], lse
    return found
