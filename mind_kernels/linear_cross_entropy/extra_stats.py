"""Statistics of rows that are computed if they are named: mean logit, log sum of squared probabilities, prediction.

They are read from a chunk of projected logits, whatever the backend, in blocks that stay in the cache of a CPU. Peak
memory: one block (n, V) in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy.tiles import maxima
from mind_kernels.row_chunks import Rows, accumulation_dtype, chunks, rows_per_block


class ExtraStats(NamedTuple):
    """(N,) each, or empty for one that is not named. Their names, joined by commas, are an operator's argument."""

    mean_logit: Tensor
    log_sum_sq: Tensor
    predicted: Tensor  # int64

    @classmethod
    def zeros(cls, rows: int, like: Tensor, names: str) -> ExtraStats:
        """Zeros for those that are named, on the device of `like` and in its accumulation dtype."""

        def zeros(name: str) -> Tensor:
            dtype = torch.int64 if name == "predicted" else accumulation_dtype(like.dtype)
            return torch.zeros(rows * (name in names.split(",")), dtype=dtype, device=like.device)

        return cls(*map(zeros, cls._fields))

    def named(self, names: str) -> dict[str, Tensor]:
        """Those that are named, by name."""
        return {name: value for name, value in self._asdict().items() if name in names.split(",")}

    def read(self, rows: Rows, logits: Tensor, head: Head, names: str) -> None:
        """Writes those that are named into their places, of these rows' projected logits (n, V)."""
        if not names:
            return
        places = self.named(names)
        blocks = chunks(logits.shape[0], rows_per_block(logits.shape[1], logits.device))
        found = [_of_block(logits[block], head, places.keys()) for block in blocks]
        for name, place in places.items():
            place[rows] = torch.cat([of_block[name] for of_block in found])


def _of_block(logits: Tensor, head: Head, names: Collection[str]) -> dict[str, Tensor]:
    """Of a few rows (n, V)."""
    z = head.to_logits_(logits.to(accumulation_dtype(logits.dtype), copy=True))
    largest, predicted, _ = maxima(z)
    found = {"predicted": predicted}
    if "mean_logit" in names:
        found["mean_logit"] = z.mean(1)
    if "log_sum_sq" in names:
        # Beside a probability near 1 the others would lose their digits in either sum.
        others = z.sub_(largest[:, None]).exp_().scatter_(1, predicted[:, None], 0)
        log_total = others.sum(1).log1p_()
        found["log_sum_sq"] = others.square_().sum(1).log1p_() - 2 * log_total
    return found


def checked_names(names: Sequence[str], return_stats: bool) -> str:
    """The names in the order of `ExtraStats`, joined by commas.

    Raises TypeError for a single string and for what is no sequence, ValueError for a name that there is not, and
    without statistics to hold them.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        example = names if isinstance(names, str) else "predicted"
        raise TypeError(f"extra_stats is {names!r}: expected a sequence of names, such as ({example!r},)")
    names = tuple(names)
    for name in names:
        if name not in ExtraStats._fields:
            raise ValueError(f"extra_stats has {name!r}: expected {', '.join(map(repr, ExtraStats._fields))}")
    if names and not return_stats:
        raise ValueError("extra_stats: expected return_stats=True, since RowStats hold them")
    return ",".join(name for name in ExtraStats._fields if name in names)
