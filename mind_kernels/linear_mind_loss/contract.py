"""What the joint loss takes and gives; its kernels are those of linear_cross_entropy and linear_pairwise_jsd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from mind_kernels.linear_cross_entropy.contract import RowSpec, RowStats, RowTerms, Segments
from mind_kernels.linear_pairwise_jsd.contract import MixtureStats, PairStats
from mind_kernels.shards import Group


class MindArguments(NamedTuple):
    """What the operator takes, in the order of its schema."""

    hidden: Tensor  # (N, D)
    spec: RowSpec
    target: Tensor  # (N,), on the CPU or where hidden is
    row_weight: Tensor  # (N,)
    answer_rows: Tensor  # (P, K), -1 where absent; on the CPU or where hidden is
    group_weight: Tensor  # (P, K, K) of pairs or (P, K) of a mixture: see linear_pairwise_jsd.forms
    segment: Tensor | None  # (N,), on the CPU or where hidden is
    num_segments: int
    ignore_index: int
    backend: str
    group: Group | None  # the processes among which the head is split


class MindOutputs(NamedTuple):
    """What the operator gives."""

    loss: Tensor  # ()
    cross_entropy: Tensor  # ()
    consistency: Tensor  # ()
    rows: RowTerms
    segments: Segments
    divergence: Tensor  # as group_weight


@dataclass(frozen=True)
class MindStats:
    """Statistics of one batch, without a gradient; float32 (float64 for float64 input)."""

    cross_entropy: Tensor
    """() sum_r row_weight[r] nll[r], in nats."""
    consistency: Tensor
    """() the weighted sum of the divergences, in nats."""
    rows: RowStats
    """Of the N rows, answer rows among them: kept_entries is V and dropped_mass 0 there."""
    pairs: PairStats | MixtureStats
    """Of the P groups of answer rows: MixtureStats with `mixture_weight`."""
