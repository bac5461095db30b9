"""Whether a result is right that replaces another one: judged by what is replaced, computed in float64.

The budget is at most twice the error of what is replaced, or of that with inputs that are off by a rounding, plus the
dtype's floor, plus a rounding of the largest terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from mind_kernels.row_chunks import accumulation_dtype
from tests.fuzz.judge import result_fault
from tests.fuzz.public import Tensors

PEERS = 8


@dataclass
class Case:
    """A result and what it replaces."""

    found: Tensors
    """By name; gradients begin with "d_"."""
    replaced: Callable[[torch.dtype | None, int], Tensors]
    """The results of what is replaced: in a wider dtype, or None for its own; with inputs that are off by a rounding,
    by this seed, or 0 for the inputs as they are."""
    dtype: torch.dtype
    """In which it was computed."""
    sizes: dict[str, float]
    """The largest number that is a term of a result, by its name; "": of others, "d_": of gradients."""
    said: str
    """The arguments."""

    def check(self) -> None:
        """Raises AssertionError unless the results are within their budget."""
        truth, peers = self.replaced(torch.float64, 0), [self.replaced(None, 0)]
        missing = self.found.keys() ^ peers[0].keys()
        assert not missing, f"only one of both has {sorted(missing)}\n{self.said}"
        if not [*self._faults(truth, peers)]:  # by a single peer, which may be lucky
            return
        peers += [self.replaced(None, seed) for seed in range(1, PEERS + 1)]
        if faults := [*self._faults(truth, peers)]:
            raise AssertionError("; ".join(faults) + f"\n{self.said}")

    def _faults(self, truth: Tensors, peers: list[Tensors]) -> Iterator[str]:
        for name, value in self.found.items():
            if value.shape != truth[name].shape:
                yield f"{name} has shape {tuple(value.shape)}: expected {tuple(truth[name].shape)}"
                continue
            is_rounded = name.startswith("d_") or name == "logits"
            dtype = self.dtype if is_rounded else accumulation_dtype(self.dtype)
            size = self.sizes.get(name, self.sizes["d_" if name.startswith("d_") else ""])
            floor = 4 * torch.finfo(self.dtype).eps * size
            of_peers = [peer[name] for peer in peers]
            if fault := result_fault(name, value, truth[name], of_peers, dtype, floor, all_finite=False):
                yield fault
