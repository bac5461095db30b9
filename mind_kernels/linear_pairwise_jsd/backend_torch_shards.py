"""Group kernels for a shard in plain PyTorch, on any device: the steps of backend_torch, with collectives between them.

Three passes over the chunk, in the same blocks of groups: normalizers, and which rows differ; a collective; divergences
and F'; a collective; the gradient. Peak memory: that of backend_torch, and F' of the chunk in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mind_kernels.linear_pairwise_jsd import backend_torch, backend_torch_jeffreys
from mind_kernels.linear_pairwise_jsd.backend_torch import (
    Buffers,
    Run,
    Steps,
    differing,
    mixture_by,
    row_sums,
    store,
    without_softmax,
)
from mind_kernels.row_chunks import chunks
from mind_kernels.shards import Shard

PairsBy = Callable[[Run, Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


class TorchShards:
    """See `shard_contract.ShardKernels`; `pairs_by` is the function of the divergence of pairs."""

    def __init__(self, pairs_by: PairsBy) -> None:
        self._pairs_by = pairs_by

    def pair_divergences(
        self, logits: Tensor, pair_weight: Tensor, mask: Tensor, with_gradient: bool, shard: Shard
    ) -> tuple[Tensor, Tensor | None]:
        softmax, differ = _joined(logits, differing(logits), shard)
        return self._pairs_by(partial(_run, softmax, shard), differ, logits, pair_weight, mask, with_gradient)

    def mixture_divergences(
        self, logits: Tensor, mixture_weight: Tensor, mask: Tensor, with_gradient: bool, shard: Shard
    ) -> tuple[Tensor, Tensor | None]:
        softmax, _ = _joined(logits, mask[:, :0], shard)
        return mixture_by(partial(_run, softmax, shard), logits, mixture_weight, mask, with_gradient)


TORCH = TorchShards(backend_torch.pairs_by)
TORCH_JEFFREYS = TorchShards(backend_torch_jeffreys.pairs_by)


def _joined(logits: Tensor, differ: Tensor, shard: Shard) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Maximum and sum of e^(z - maximum) of whole rows, (G, K, 1) float64 each; and `backend_torch.distinct` of them,
    given whether the rows of each pair differ in this shard (G, pairs)."""
    count = logits.shape[1]
    maximum = logits.amax(-1).double()
    # A shard whose entries are all excluded adds nothing: any finite number can be used.
    shift = torch.where(maximum == -math.inf, 0, maximum)
    size = Buffers(logits, 0).groups
    total = [(logits[g].double() - shift[g, :, None]).exp_().sum(-1) for g in chunks(len(logits), size)]
    gathered = shard.gather(torch.cat([maximum, torch.cat(total), differ.double()], 1)).wait()
    maxima, totals, differs = gathered.split([count, count, differ.shape[1]], -1)
    top = maxima.amax(0)
    whole = ((maxima - top).exp() * totals).sum(0)  # nan if all logits of a row are minus infinity
    distinct = differs.amax(0) > 0
    if differs.shape[2]:
        distinct |= without_softmax(top)
    return (top[..., None], whole[..., None]), distinct


def _run(
    softmax: tuple[Tensor, Tensor],
    shard: Shard,
    logits: Tensor,
    pairs: int,
    steps_of: Callable[[Buffers], Steps],
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """`backend_torch.run` for a shard."""
    buffers = Buffers(logits, pairs)
    steps, blocks = steps_of(buffers), list(chunks(len(logits), buffers.groups))
    slopes = torch.empty_like(logits, dtype=torch.float64) if with_gradient else None

    def fill(part: slice) -> tuple[Tensor, Tensor, Tensor]:
        return buffers.fill(logits[part], steps.least, (softmax[0][part], softmax[1][part]))

    sums = []
    for part in blocks:
        log_p, p, buffer = fill(part)
        derivative = buffer if slopes is None else slopes[part]
        of_divergences = steps.sums(part, log_p, p, derivative)
        sums.append(torch.cat([of_divergences, *row_sums(p, derivative)], 1))
    count = logits.shape[1]
    found = shard.gather(torch.cat(sums)).wait().sum(0)
    of_divergences, weighted, mass = found.split([found.shape[1] - 2 * count, count, count], 1)
    values = steps.values(of_divergences)
    if slopes is None:
        return values, None
    gradient, scalar = torch.empty_like(logits), (weighted / mass)[..., None]
    for part in blocks:
        _, p, _ = fill(part)
        store(gradient[part], steps.gradient_(part, p, slopes[part], scalar[part], values[part]))
    return values, gradient
