"""The loop over groups of rows that linear_pairwise_jsd and linear_mind_loss share; a backend supplies the kernels.

For each chunk of whole groups: logits in float32 (float64 for float64 input) whatever the input's dtype, the group
kernel, and the gradient products. Absent rows are left out if `index` is on the CPU, and rows without weight are left
out of the gradient products if the weights are. Peak memory: one chunk, shared by all that `_bytes_per_logit` counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mind_kernels.head import Head, HeadGradients, scale_
from mind_kernels.linear_pairwise_jsd.forms import GroupForm, form_of, spoilt_rows
from mind_kernels.row_chunks import chunks, rows_per_chunk
from mind_kernels.shards import Shard


@dataclass(frozen=True)
class GroupChunk:
    """n rows of whole groups, their logits, and the gradient of the divergences."""

    rows: Tensor  # (n,) row indices of hidden; 0 if absent
    present: Tensor  # (n,) bool
    weighted: Tensor  # (n,) bool: rows with a gradient
    hidden: Tensor  # (n, D)
    logits: Tensor  # (n, V), softcap and temperature applied
    gradient: Tensor | None  # (n, V), with respect to `logits`
    spoilt: Tensor  # (n,) bool: rows that no divergence's weight reaches, computed with 0: see `spoilt_rows`

    def add_gradient(self, dlogits: Tensor, needed: Tensor, gradients: HeadGradients) -> None:
        """Adds the products of dlogits (n, V) for the rows that are `needed` (n,) bool; for all rows if the host does
        not know them."""
        if needed.device.type == "cpu" and not bool(needed.all()):
            gradients.add(self.rows[needed], self.hidden[needed], dlogits[needed])
        else:
            gradients.add(self.rows, self.hidden, dlogits)


def run_groups(
    kernels: Any,  # GroupKernels; with a shard ShardKernels
    hidden: Tensor,  # (N, D)
    index: Tensor,  # (P, K), rows of hidden, -1 if absent; on the CPU or on the device of hidden
    head: Head,
    weight: Tensor,  # (P, K, K) of pairs or (P, K) of a mixture, accumulation dtype
    gradients: HeadGradients,
    finish: Callable[[GroupChunk], None],
    *,
    smallest: int = 1,
    alone: bool = False,
    used: Tensor | None = None,  # (N,) bool: rows that another loss depends on
    shard: Shard | None = None,
) -> Tensor:
    """Divergences shaped as `weight`; calls `finish` for each chunk. Groups of fewer than `smallest` rows are left out
    if the host knows them. `alone`: nothing else adds to the gradients."""
    form, divergence, in_unit = form_of(weight), torch.zeros_like(weight), gradients.in_unit(weight)
    for groups, places in _same_size(index >= 0, smallest):
        count, itemsize = places.shape[1], weight.element_size()
        if shard is None:
            bytes_per_row = head.vocabulary * _bytes_per_logit(hidden, head, itemsize)
            size = gradients.rows_per_chunk(places.numel(), bytes_per_row, alone=alone) // count
        else:  # F' in float64 is kept until the sums of all shards are known
            size = rows_per_chunk(shard.largest, hidden.device, itemsize) // (4 * count)
        size, memory = max(1, size), None
        if weight.device.type == "cpu":  # all chunks use the same memory, since fresh pages would cost time
            memory = weight.new_empty(min(size, len(groups)) * count, head.vocabulary)
        for part in chunks(len(groups), size):
            rows = index[groups[part, None], places[part]].to(hidden.device)
            at = form.entries(groups[part].to(hidden.device), places[part].to(hidden.device))
            divergence[at], chunk = _chunk(
                kernels, form, hidden, rows, head, in_unit[at], gradients.wanted, used, shard, memory
            )
            finish(chunk)
            del chunk  # else its logits would exist beside those of the next one
    return divergence


def _bytes_per_logit(hidden: Tensor, head: Head, itemsize: int) -> int:
    """Of a chunk: the logit and its gradient, the slope of a softcap, and the gradient as the products read it."""
    rounded = 0 if hidden.element_size() == itemsize else hidden.element_size()
    return (2 if head.softcap is None else 3) * itemsize + rounded


def _chunk(
    kernels: Any,
    form: GroupForm,
    hidden: Tensor,  # (N, D)
    index: Tensor,  # (G, n)
    head: Head,
    weight: Tensor,  # (G, n, n) or (G, n)
    with_gradient: bool,
    used: Tensor | None,  # (N,) bool
    shard: Shard | None,
    memory: Tensor | None,  # (G n or more, V) for the logits, accumulation dtype
) -> tuple[Tensor, GroupChunk]:
    """The divergences, shaped as `weight`, and the chunk."""
    present, rows = index >= 0, index.clamp(min=0).flatten()
    part = hidden[rows]
    spoilt = spoilt_rows(part.view(*index.shape, hidden.shape[1]), weight, present)
    if used is not None:  # infinite hidden states may have a cross-entropy, under a softcap; nan has none
        spoilt &= (~used[rows] | part.isnan().any(1)).view(index.shape)
    part = torch.where((present & ~spoilt).flatten()[:, None], part, 0)
    logits = head.to_logits_(head.project_wide(part, None if memory is None else memory[: len(part)]))
    if index.shape[1] == 1:  # nothing to compare a row with
        values, gradient = torch.zeros_like(weight), torch.zeros_like(logits) if with_gradient else None
    else:
        columns = logits
        if shard is not None and not shard.size:  # an excluded token replaces no token
            columns = logits.new_full((len(logits), 1), -torch.inf)
        grouped = columns.view(*index.shape, -1)
        joined = () if shard is None else (shard,)
        values, gradient = form.divergences(kernels, grouped, weight, present & ~spoilt, with_gradient, *joined)
        values = form.with_spoilt(values, weight, present, spoilt)
        gradient = None if gradient is None else gradient[..., : head.vocabulary]
    gradient = None if gradient is None else gradient.view(logits.shape)
    weighted = form.weighted_rows(weight, present).flatten()
    return values, GroupChunk(rows, present.flatten(), weighted, part, logits, gradient, spoilt.flatten())


def _same_size(present: Tensor, smallest: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each n, the groups (G,) with n present rows, and the positions (G, n) of these rows; on a GPU all groups and
    positions."""
    groups, count = present.shape
    device = present.device
    if device.type != "cpu":
        yield torch.arange(groups, device=device), torch.arange(count, device=device).expand(groups, count)
        return
    sizes = present.sum(1)
    for size in sizes.unique().tolist():
        if size >= smallest:
            chosen = (sizes == size).nonzero().squeeze(1)
            yield chosen, present[chosen].nonzero()[:, 1].view(-1, size)


def forward(
    kernels: Any,
    hidden: Tensor,  # (P, K, D)
    head: Head,
    weight: Tensor,  # (P, K, K) or (P, K)
    mask: Tensor,  # (P, K)
    needs: list[bool],
    *,
    with_stats: bool,
    shard: Shard | None = None,
) -> tuple[Tensor, HeadGradients]:
    """(divergences shaped as `weight`, the gradients that are needed of hidden (P K, D), weight and bias).

    For a shard, the gradient of the hidden states is the shard's part. Without statistics, rows that the loss does not
    depend on are left out if the host knows them.
    """
    groups, count, size = hidden.shape
    flat = hidden.reshape(groups * count, size)
    gradients = HeadGradients(flat, head, needs)
    gradients.choose_unit(weight)
    wanted = mask if with_stats else form_of(weight).weighted_rows(weight, mask)
    index = torch.where(wanted, torch.arange(groups * count, device=hidden.device).view(groups, count), -1)

    def finish(chunk: GroupChunk) -> None:
        if chunk.gradient is not None:
            chunk.add_gradient(scale_(chunk.gradient, head.slope(chunk.logits)), chunk.weighted, gradients)

    divergence = run_groups(kernels, flat, index, head, weight, gradients, finish, smallest=2, alone=True, shard=shard)
    return divergence, gradients
