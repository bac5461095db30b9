"""The arguments and outputs of linear_mind_loss; its kernels are those of the losses that it joins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from mind_kernels.linear_cross_entropy.contract import RowSpec, RowStats, RowTerms, Segments
from mind_kernels.linear_pairwise_jsd.contract import MixtureStats, PairStats
from mind_kernels.shards import Group


class MindArguments(NamedTuple):
    """The arguments of the operator, in the order of its schema."""

    hidden: Tensor  # (N, D)
    spec: RowSpec
    target: Tensor  # (N,), on the CPU or on the device of hidden
    row_weight: Tensor  # (N,)
    answer_rows: Tensor  # (P, K), -1 if absent; on the CPU or on the device of hidden
    group_weight: Tensor  # (P, K, K) of pairs or (P, K) of a mixture: see linear_pairwise_jsd.forms
    segment: Tensor | None  # (N,), on the CPU or on the device of hidden
    num_segments: int
    ignore_index: int
    backend: str
    group: Group | None = None  # the processes among which the head is split


class MindOutputs(NamedTuple):
    """The outputs of the operator."""

    loss: Tensor  # ()
    cross_entropy: Tensor  # ()
    consistency: Tensor  # ()
    rows: RowTerms
    segments: Segments
    divergence: Tensor  # as group_weight


@dataclass(frozen=True)
class MindStats:
    """Statistics of a batch, without a gradient; float32 (float64 for float64 input)."""

    cross_entropy: Tensor
    """() sum_r row_weight[r] nll[r], in nats."""
    consistency: Tensor
    """() the weighted sum of the divergences, in nats."""
    rows: RowStats
    """Statistics of the N rows, including the answer rows, which have kept_entries V and dropped_mass 0."""
    pairs: PairStats | MixtureStats
    """Statistics of the P groups of answer rows; MixtureStats with `mixture_weight`."""
