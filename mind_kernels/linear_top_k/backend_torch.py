"""Linear top-k in plain PyTorch, one chunk of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_top_k.contract import TopK
from mind_kernels.row_chunks import accumulation_dtype, chunks, rows_per_chunk
from mind_kernels.shards import Shard


def top_k(hidden: Tensor, head: Head, k: int) -> TopK:
    """The k most likely tokens of each row of hidden (N, D)."""
    found = _empty(hidden, k)
    for chunk in chunks(len(hidden), rows_per_chunk(head.vocabulary, hidden.device, found.lse.itemsize)):
        logits = head.to_logits_(head.project_wide(hidden[chunk]))
        lse = torch.logsumexp(logits, -1)
        largest, found.ids[chunk] = logits.topk(k)
        found.log_prob[chunk], found.lse[chunk] = _log_prob(largest, lse), lse
        del logits  # frees the memory before the next chunk is projected
    return found


def shard_top_k(hidden: Tensor, head: Head, k: int, shard: Shard) -> TopK:
    """See `contract.TopKShardKernels`."""
    found, dtype = _empty(hidden, k), accumulation_dtype(hidden.dtype)
    for chunk in chunks(len(hidden), rows_per_chunk(shard.largest, hidden.device, dtype.itemsize)):
        logits = head.to_logits_(head.project_wide(hidden[chunk]))
        gathered = shard.gather(_candidates(logits, k, shard.start)).wait()
        del logits  # frees the memory before the next chunk is projected
        lses, candidates, ids = gathered.split([1, k, k], -1)
        lse = lses.squeeze(-1).logsumexp(0)
        order, places = candidates.movedim(0, 1).flatten(1).topk(k)  # (n, processes k)
        found.ids[chunk] = ids.movedim(0, 1).flatten(1).gather(1, places).long()
        largest = torch.where(order <= torch.finfo(dtype).min, -torch.inf, order)
        found.log_prob[chunk], found.lse[chunk] = _log_prob(largest, lse), lse
    return found


def _candidates(logits: Tensor, k: int, start: int) -> Tensor:
    """(n, 1 + 2 k) float64 of a shard's logits (n, V_r): their log-sum-exp, the k largest, and the ids of those."""
    count = min(k, logits.shape[1])
    out = logits.new_full((len(logits), 1 + 2 * k), -torch.inf, dtype=torch.float64)
    if count:
        out[:, 0] = torch.logsumexp(logits, -1)  # a float64 copy would have twice the size of the chunk
        largest, ids = logits.topk(count)
        # An excluded token still counts as a token; if a shard has fewer than k, minus infinity means no token.
        out[:, 1 : 1 + count] = largest.clamp(min=torch.finfo(logits.dtype).min)
        out[:, 1 + k : 1 + k + count] = ids + start
    return out


def _log_prob(largest: Tensor, lse: Tensor) -> Tensor:
    """(n, k) of logits (n, k); nan for a row with an infinite logit, as in a softmax."""
    return (largest - lse[:, None]).masked_fill_((lse == torch.inf)[:, None], torch.nan)


def _empty(hidden: Tensor, k: int) -> TopK:
    rows, dtype = len(hidden), accumulation_dtype(hidden.dtype)
    of_tokens = hidden.new_empty(rows, k, dtype=dtype)
    return TopK(torch.empty_like(of_tokens, dtype=torch.int64), of_tokens, hidden.new_empty(rows, dtype=dtype))
