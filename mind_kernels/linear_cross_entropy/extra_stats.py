"""Optional statistics of rows, `extra_stats`: mean logit, log sum of squared probabilities, prediction.

Every backend computes them from a chunk of projected logits, in blocks that stay in a CPU's cache. Peak memory: one
block (n, V) in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy.tiles import maxima
from mind_kernels.row_chunks import Rows, accumulation_dtype, chunks, rows_per_block


class ExtraStats(NamedTuple):
    """The statistics, (N,) each, or empty if not named. An operator gets their names as a string, joined by commas."""

    mean_logit: Tensor
    log_sum_sq: Tensor
    predicted: Tensor  # int64

    @classmethod
    def zeros(cls, rows: int, like: Tensor, names: str) -> ExtraStats:
        """Zeros for the named statistics, on the device of `like` and in its accumulation dtype."""

        def zeros(name: str) -> Tensor:
            dtype = torch.int64 if name == "predicted" else accumulation_dtype(like.dtype)
            return torch.zeros(rows if name in names.split(",") else 0, dtype=dtype, device=like.device)

        return cls(*map(zeros, cls._fields))

    def named(self, names: str) -> dict[str, Tensor]:
        """The named statistics, by name."""
        return {name: value for name, value in self._asdict().items() if name in names.split(",")}

    def read(self, rows: Rows, logits: Tensor, head: Head, names: str) -> None:
        """Computes the named statistics of these rows from their projected logits (n, V), and stores them."""
        if not names:
            return
        blocks = chunks(logits.shape[0], rows_per_block(logits.shape[1], logits.device))
        found = [_of_block(logits[block], head, self.named(names).keys()) for block in blocks]
        joined = {name: torch.cat([of_block[name] for of_block in found]) for name in self.named(names)}
        self.write(rows, joined, names)

    def write(self, rows: Rows, found: Mapping[str, Tensor], names: str) -> None:
        """Stores the named statistics of these rows."""
        for name, place in self.named(names).items():
            place[rows] = found[name]


def _of_block(logits: Tensor, head: Head, names: Collection[str]) -> dict[str, Tensor]:
    """The named statistics of a few rows of projected logits (n, V)."""
    z = head.to_logits_(logits.to(accumulation_dtype(logits.dtype), copy=True))
    largest, predicted, _ = maxima(z)
    found = {"predicted": predicted}
    if "mean_logit" in names:
        found["mean_logit"] = z.mean(1)
    if "log_sum_sq" in names:
        others, squares = _powers(z, largest, predicted)
        found["log_sum_sq"] = (squares.log1p_() - 2 * others.log1p_()).masked_fill_(~largest.isfinite(), torch.nan)
    return found


def _powers(z: Tensor, largest: Tensor, predicted: Tensor) -> list[Tensor]:
    """The sums (n,) of e^d and of e^2d over all entries but the largest, d the distance from it; overwrites z (n, V).
    The largest is left out since, if its probability is near 1, the others would lose their digits in either sum."""
    others = z.sub_(largest[:, None]).exp_().scatter_(1, predicted[:, None], 0)
    return [others.sum(1), others.square_().sum(1)]


def sums_of_shard(logits: Tensor, head: Head, names: str) -> list[Tensor]:
    """The sums that `join` needs for the named statistics, (n,) each, from a shard's projected logits (n, V_r), V_r >=
    0."""
    if not {"mean_logit", "log_sum_sq"} & set(names.split(",")):
        return []
    found: list[list[Tensor]] = []
    for block in chunks(logits.shape[0], rows_per_block(max(1, logits.shape[1]), logits.device)):
        z = head.to_logits_(logits[block].to(accumulation_dtype(logits.dtype), copy=True))
        found.append([z.sum(1)] if "mean_logit" in names else [])
        if "log_sum_sq" in names:
            found[-1] += _powers(z, *maxima(z)[:2]) if z.shape[1] else [z.sum(1), z.sum(1)]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def join(sums: Tensor, maximum: Tensor, vocabulary: int, names: str) -> dict[str, Tensor]:
    """The named statistics except `predicted`, (n,) each, from `sums_of_shard` of all processes (processes, k, n) and
    the maxima of their shards (processes, n)."""
    found, rest = {}, list(sums.unbind(1))
    if "mean_logit" in names:
        found["mean_logit"] = rest.pop(0).sum(0) / vocabulary
    if "log_sum_sq" in names:
        scale = (maximum - maximum.amax(0)).exp()
        has_largest = torch.arange(len(maximum), device=maximum.device)[:, None] == maximum.argmax(0)
        others, squares = (torch.where(scale == 0, 0, torch.where(has_largest, p, p + 1)) for p in rest)
        found["log_sum_sq"] = (scale.square() * squares).sum(0).log1p() - 2 * (scale * others).sum(0).log1p()
    return found


def checked_names(names: Sequence[str], return_stats: bool) -> str:
    """The names in the order of `ExtraStats`, joined by commas.

    Raises TypeError for a string or anything else that is not a sequence of names; ValueError for an unknown name, and
    if there are names but no `return_stats`.
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
