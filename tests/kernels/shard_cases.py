"""Shards of a vocabulary in one process, joined as the processes of a group join theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from mind_kernels.linear_cross_entropy.contract import RowSpec
from mind_kernels.linear_cross_entropy.shard_contract import RowSums
from mind_kernels.linear_cross_entropy.shard_rows import JoinedRows, gather, join
from mind_kernels.shards import Shard


class _Alone(Shard):
    """A shard whose process is not there: what it gathers is for the test to bring together."""

    def gather(self, part: Tensor) -> Any:
        return part


def shards_of(sizes: Sequence[int], device: str | torch.device = "cpu") -> list[Shard]:
    """One for each process, of these sizes."""
    stops = torch.tensor(sizes, device=device).cumsum(0)
    starts = stops - torch.tensor(sizes, device=device)
    return [_Alone(cast(Any, None), rank, tuple(sizes), starts, stops) for rank in range(len(sizes))]


def columns(shard: Shard) -> slice:
    """The entries of the vocabulary that it has."""
    return slice(shard.start, shard.start + shard.size)


def joined(shards: Sequence[Shard], sums: Sequence[RowSums], target: Tensor, spec: RowSpec) -> list[JoinedRows]:
    """Whole rows as each process knows them, from the sums of each; targets (n,) of the whole vocabulary."""
    packed = [cast(Tensor, gather(of_shard, shard)) for shard, of_shard in zip(shards, sums, strict=True)]
    return [join(torch.stack(packed), target, spec, shard) for shard in shards]
