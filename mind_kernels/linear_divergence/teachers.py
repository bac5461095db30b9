"""The two forms of a teacher: a head with the same vocabulary, or a list of its most likely tokens per row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mind_kernels import checks
from mind_kernels.head import Head
from mind_kernels.row_chunks import Rows

# Replaces a log-probability of minus infinity: its exponential is 0, and 0 times it is 0 and not nan.
LOWEST = -1e38
# Replaces the logit of a listed token, before a softcap. A logit may be any number, also infinite, so this is one that
# no mask has; float32 holds it exactly.
LISTED = float.fromhex("0x1.6a09e6p-100")
TAILS = ("bucket", "renormalize")
# By how much the probabilities of a teacher's list may sum to more than 1: servers round them, and float16 rounds a
# log-probability above -8 by at most 2^-9.
_TOLERANCE = 2e-3


@dataclass(frozen=True)
class HeadTeacher:
    """A teacher that is a head with the same vocabulary."""

    hidden: Tensor  # (N, D')
    head: Head


@dataclass(frozen=True)
class ListTeacher:
    """A teacher for which at most T tokens per row are known.

    The events of a row are each of these tokens and, for the tail "bucket", all other tokens together. An entry with a
    log-probability of minus infinity is padding: its id has no meaning, and the token counts among the others.
    """

    ids: Tensor  # (N, T) int64
    log_prob: Tensor  # (N, T)
    tail: str  # of TAILS

    def distinct_ids(self, rows: Rows) -> Tensor:
        """The ids (n, T), contiguous, all distinct within a row: padding is replaced by tokens that the row does not
        list.

        This is possible since, of the first T tokens of the vocabulary, a row with k entries of padding lists at most T
        - k.
        """
        ids, padding = self.ids[rows], self.log_prob[rows] == -torch.inf
        count = ids.shape[1]
        outside = padding | (ids >= count)
        listed = torch.zeros(len(ids), count + 1, dtype=torch.uint8, device=ids.device)
        listed.scatter_(1, ids.masked_fill(outside, count), 1)
        unlisted_first = listed[:, :count].argsort(dim=1, stable=True)
        replacements = unlisted_first.gather(1, padding.cumsum(1).sub_(1).clamp_(min=0))
        return torch.where(padding, replacements, ids).contiguous()  # `where` keeps the strides of a caller's list

    def log_p(self, rows: Rows, vocabulary: int, dtype: torch.dtype) -> Tensor:
        """Log-probabilities of the events (n, T + 1), the others last; minus infinity for no event.

        All others together have the rest of the probability, at least the rounding of the list's dtype, since it is not
        known more exactly. If a list is renormalized, they are no event, except in a row that consists of padding,
        where they are the only one.
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
        """Raises ValueError unless the ids are distinct, apart from padding, and log_prob is part of a distribution."""
        ids, listed = self.ids, self.log_prob != -torch.inf
        inside = (ids >= 0) & (ids < vocabulary) | ~listed
        checks.values(inside, f"teacher_ids: expected values in [0, {vocabulary})", ids)
        others = torch.arange(-ids.shape[1], 0, device=ids.device)  # distinct numbers that are no ids
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
        """The part of `check_values` that needs only log_prob, and not the vocabulary."""
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
        """Everything that `check_values` depends on, beyond `check_log_prob`: see shards.agree."""
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
