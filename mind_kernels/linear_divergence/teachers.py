"""What is known of a teacher: a head of the same vocabulary, or a list of its most likely tokens per row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mind_kernels import checks
from mind_kernels.head import Head
from mind_kernels.row_chunks import Rows

# A log-probability in place of minus infinity: its exponential is 0, and so is 0 times it, which would be nan.
LOWEST = -1e18
TAILS = ("bucket", "renormalize")
# By which the probabilities of a teacher's list may sum to more than 1: servers round them, and float16 rounds a
# log-probability above -8 by at most 2^-9.
_TOLERANCE = 2e-3


@dataclass(frozen=True)
class HeadTeacher:
    """A teacher that is a head of the same vocabulary."""

    hidden: Tensor  # (N, D')
    head: Head


@dataclass(frozen=True)
class ListTeacher:
    """A teacher of which at most T tokens per row are known.

    The events of a row are each of them and, for the tail "bucket", all other tokens together. An entry whose
    log-probability is minus infinity is padding: its id means nothing, and its token is one of the others.
    """

    ids: Tensor  # (N, T) int64
    log_prob: Tensor  # (N, T)
    tail: str  # of TAILS

    def distinct_ids(self, rows: Rows) -> Tensor:
        """The ids (n, T), in the place of padding a token that the row does not list: all of a row's are distinct.

        Of the first T tokens of the vocabulary, a row with k entries of padding leaves out at least k.
        """
        ids, padding = self.ids[rows], self.log_prob[rows] == -torch.inf
        count = ids.shape[1]
        outside = padding | (ids >= count)
        listed = torch.zeros(len(ids), count + 1, dtype=torch.uint8, device=ids.device)
        listed.scatter_(1, ids.masked_fill(outside, count), 1)
        unlisted_first = listed[:, :count].argsort(dim=1, stable=True)
        return torch.where(padding, unlisted_first.gather(1, padding.cumsum(1).sub_(1).clamp_(min=0)), ids)

    def log_p(self, rows: Rows, vocabulary: int, dtype: torch.dtype) -> Tensor:
        """Log-probabilities of the events (n, T + 1), the others last; minus infinity where there is no event.

        All others have the rest of the probability, which is known to the rounding of the list: that is its floor. If a
        list is renormalized, they are no event, but of a row of padding alone they are the only one.
        """
        listed = self.log_prob[rows].double()
        count = (listed > -torch.inf).sum(1, keepdim=True)
        if self.tail == "renormalize":
            others = torch.where(count > 0, -torch.inf, 0.0).to(listed)
        else:
            rest = 1 - listed.exp().sum(1, keepdim=True)
            others = rest.clamp_(min=torch.finfo(self.log_prob.dtype).eps).log_()
            others.masked_fill_(count == vocabulary, -torch.inf)
        log_p = torch.log_softmax(torch.cat([listed, others], 1), 1)
        return torch.where(log_p == -torch.inf, log_p, log_p.clamp(min=LOWEST)).to(dtype)

    def check_values(self, vocabulary: int) -> None:
        """Raises ValueError unless what is no padding has distinct ids, and log_prob is part of a distribution."""
        ids, listed = self.ids, self.log_prob != -torch.inf
        inside = (ids >= 0) & (ids < vocabulary) | ~listed
        checks.values(inside, f"teacher_ids: expected values in [0, {vocabulary})", ids)
        others = torch.arange(-ids.shape[1], 0, device=ids.device)  # distinct, and no ids
        in_order = torch.where(listed, ids, others).sort(1).values
        checks.values(
            in_order.diff(dim=1) != 0,
            "teacher_ids: expected distinct ids in each row, save for padding (log-probability -inf, or teacher_mask)",
            in_order[:, 1:],
        )
        self.check_log_prob()
        if self.tail == "bucket":
            checks.values(
                self._is_all() | (listed.sum(1) < vocabulary),
                f"teacher_log_prob: expected probabilities of all tokens to sum to 1 (to {_TOLERANCE})",
                self._total(),
            )

    def check_log_prob(self) -> None:
        """The part of `check_values` that concerns log_prob alone, whatever the vocabulary."""
        if self.tail == "renormalize":
            message = "teacher_log_prob: expected numbers, or -inf for padding"
            checks.values(self.log_prob < torch.inf, message, self.log_prob)
            return
        total = self._total()
        checks.values(
            total <= 1 + _TOLERANCE,
            f"teacher_log_prob: expected probabilities that sum to at most 1 in each row (to {_TOLERANCE})",
            total,
        )

    def facts(self) -> dict[str, object]:
        """All on which `check_values` depends beside `check_log_prob`: see shards.agree."""
        padding = self.log_prob == -torch.inf
        return {
            "teacher_ids": self.ids.masked_fill(padding, 0),
            "teacher_log_prob (which of it is -inf)": padding,
            "teacher_log_prob (which rows sum to 1)": self._is_all(),
        }

    def _total(self) -> Tensor:
        """(N,) the probability of the listed tokens."""
        return self.log_prob.exp().sum(1)

    def _is_all(self) -> Tensor:
        return self._total() >= 1 - _TOLERANCE


Teacher = HeadTeacher | ListTeacher
