"""What is known of a teacher: a head of the same vocabulary, or a list of its most likely tokens per row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mind_kernels import checks
from mind_kernels.head import Head
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.row_chunks import Rows

# A log-probability in place of minus infinity: its exponential is 0, and so is 0 times it, which would be nan.
LOWEST = -1e18
_TOLERANCE = 1e-3  # by which the probabilities of a teacher's list may sum to more than 1: servers round them


@dataclass(frozen=True)
class HeadTeacher:
    """A teacher that is a head of the same vocabulary."""

    hidden: Tensor  # (N, D')
    head: Head


@dataclass(frozen=True)
class ListTeacher:
    """A teacher of which T tokens per row are known: its events are those, and all others together."""

    ids: Tensor  # (N, T) int64
    log_prob: Tensor  # (N, T)

    def whole(self, vocabulary: int) -> bool:
        """Whether every token is listed: then there are no others."""
        return self.ids.shape[1] == vocabulary

    def log_p(self, rows: Rows, vocabulary: int, dtype: torch.dtype) -> Tensor:
        """Log-probabilities of the events (n, T + 1), the others last; (n, T) where every token is listed.

        All others have the rest of the probability, which is known to the rounding of the list: that is its floor.
        """
        listed = self.log_prob[rows].double().clamp(min=LOWEST)
        if not self.whole(vocabulary):
            rest = 1 - listed.exp().sum(1, keepdim=True)
            listed = torch.cat([listed, rest.clamp_(min=torch.finfo(self.log_prob.dtype).eps).log_()], 1)
        return torch.log_softmax(listed, 1).to(dtype)

    def check_values(self, vocabulary: int, divergence: Divergence) -> None:
        """Raises ValueError unless ids are distinct tokens and log_prob is part of a distribution."""
        ids, log_prob = self.ids, self.log_prob
        checks.values((ids >= 0) & (ids < vocabulary), f"teacher_ids: expected values in [0, {vocabulary})")
        checks.values(ids.sort(1).values.diff(dim=1) != 0, "teacher_ids: expected distinct ids in each row")
        total = log_prob.exp().sum(1)
        checks.values(
            total <= 1 + _TOLERANCE,
            f"teacher_log_prob: expected probabilities that sum to at most 1 in each row (to {_TOLERANCE})",
        )
        if self.whole(vocabulary):
            checks.values(
                total >= 1 - _TOLERANCE,
                f"teacher_log_prob: expected probabilities of all tokens to sum to 1 (to {_TOLERANCE})",
            )
        if divergence.mixture == 1:
            checks.values(
                log_prob > -torch.inf,
                "teacher_log_prob: expected finite values, since kind 'reverse_kl' is "
                "infinite where the teacher has no probability",
            )


Teacher = HeadTeacher | ListTeacher
