"""Linear top-k in plain PyTorch, one chunk of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_top_k.contract import TopK
from mind_kernels.row_chunks import accumulation_dtype, chunks, rows_per_chunk
from mind_kernels.shards import Shard

# Stands for the logit of an excluded token among the candidates; no logit but a float64 one is as low.
_EXCLUDED = torch.finfo(torch.float64).min


def top_k(hidden: Tensor, head: Head, k: int) -> TopK:
    """The k most likely tokens of each row of hidden (N, D)."""
    found = _empty(hidden, k)
    for chunk in chunks(len(hidden), rows_per_chunk(head.vocabulary, hidden.device, found.lse.itemsize)):
        logits = head.to_logits_(head.project_wide(hidden[chunk]))
        largest, found.ids[chunk] = logits.topk(k)
        log_total = _log_total_(logits, largest[:, :1])
        del logits  # frees the memory before the next chunk is projected
        found.log_prob[chunk], found.lse[chunk] = _results(largest, log_total)
    return found


def shard_top_k(hidden: Tensor, head: Head, k: int, shard: Shard) -> TopK:
    """See `contract.TopKShardKernels`."""
    found, dtype = _empty(hidden, k), accumulation_dtype(hidden.dtype)
    for chunk in chunks(len(hidden), rows_per_chunk(shard.largest, hidden.device, dtype.itemsize)):
        logits = head.to_logits_(head.project_wide(hidden[chunk]))
        gathered = shard.gather(_candidates_(logits, k, shard.start)).wait()
        del logits  # frees the memory before the next chunk is projected
        log_totals, candidates, ids = gathered.split([1, k, k], -1)
        order, places = candidates.movedim(0, 1).flatten(1).topk(k)  # (n, processes k)
        found.ids[chunk] = ids.movedim(0, 1).flatten(1).gather(1, places).long()
        log_total = (candidates[..., :1] - order[:, :1] + log_totals).logsumexp(0)
        largest = torch.where(order == _EXCLUDED, -torch.inf, order)
        found.log_prob[chunk], found.lse[chunk] = _results(largest, log_total)
    return found


def _candidates_(logits: Tensor, k: int, start: int) -> Tensor:
    """(n, 1 + 2 k) float64 of a shard's logits (n, V_r): log sum e^(z - the largest), the k largest, and the ids of
    those. Overwrites the logits."""
    count = min(k, logits.shape[1])
    out = logits.new_full((len(logits), 1 + 2 * k), -torch.inf, dtype=torch.float64)
    if count:
        largest, ids = logits.topk(count)
        log_total = _log_total_(logits, largest[:, :1])
        out[:, :1] = torch.where(largest[:, :1] == -torch.inf, -torch.inf, log_total)
        # An excluded token still counts as a token; if a shard has fewer than k, minus infinity means no token.
        out[:, 1 : 1 + count] = largest.double().clamp_(min=_EXCLUDED)
        out[:, 1 + k : 1 + k + count] = ids + start
    return out


def _log_total_(logits: Tensor, maximum: Tensor) -> Tensor:
    """log sum e^(z - maximum) (n, 1) of logits z (n, V), which it overwrites; nan if the maximum (n, 1) is infinite."""
    return logits.sub_(maximum).exp_().sum(1, keepdim=True).log_()


def _results(largest: Tensor, log_total: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (n, k) and log-sum-exp (n,), from the largest logits (n, k) and log sum e^(z - the largest)
    (n, 1). A log-sum-exp of large logits, subtracted from them, would be rounded more than both.

    A row with an infinite logit, or of minus infinity alone, has no log-probabilities, as in a softmax.
    """
    maximum = largest[:, :1]
    lse = torch.where(maximum.isinf(), maximum, maximum + log_total)
    return (largest - maximum) - log_total, lse.squeeze(1)


def _empty(hidden: Tensor, k: int) -> TopK:
    rows, dtype = len(hidden), accumulation_dtype(hidden.dtype)
    of_tokens = hidden.new_empty(rows, k, dtype=dtype)
    return TopK(torch.empty_like(of_tokens, dtype=torch.int64), of_tokens, hidden.new_empty(rows, dtype=dtype))
