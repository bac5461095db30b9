"""Best-fit decreasing bin packing: which sequences share a packed row.

Items go in decreasing length, ties in input order; each goes to the fullest bin that still holds it, ties to the bin
opened first. Never more than 11/9 OPT + 6/9 bins (the bound of first-fit decreasing; Dosa 2007, Johnson 1974).

Two implementations with equal results: `mind._packer` (csrc/host/packer.cpp) and its Python twin below. `PACKER` says
which one "auto" takes, and `packer_unavailable_reason()` why the compiled one is not there.
"""

from __future__ import annotations

import bisect
import heapq
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mind.errors import MindError

try:
    from mind import _packer
except ImportError as error:
    _packer = None
    _unavailable_reason: str | None = f"{type(error).__name__}: {error}"
else:
    _unavailable_reason = None

PACKER: Literal["compiled", "python"] = "python" if _packer is None else "compiled"
"""What implementation="auto" uses."""

_warned = False


def packer_unavailable_reason() -> str | None:
    """Why the compiled packer could not be imported; None when it could."""
    return _unavailable_reason


def best_fit(
    lengths: Sequence[int] | np.ndarray,  # (n,)
    capacity: int,
    *,
    implementation: Literal["auto", "compiled", "python"] = "auto",
) -> np.ndarray:  # (n,) int64
    """The bin of every item, bins numbered from 0 in the order they were opened.

    Args:
        lengths: item sizes in tokens, each 1 to `capacity`.
        capacity: what a bin holds, in tokens.
        implementation: "compiled" or "python" by name, or "auto" for `PACKER`; where that is "python" the first call
            warns once, with the reason.

    Raises:
        MindError: a capacity below 1, a length outside 1 to capacity (its index and value are named), lengths that are
            not a flat list of integers, or implementation="compiled" where it is not available.
    """
    items = _checked(lengths, capacity)
    if implementation not in ("auto", "compiled", "python"):
        raise MindError(f'implementation is {implementation!r}: expected "auto", "compiled" or "python"')
    if implementation == "auto":
        implementation = PACKER
        if PACKER == "python":
            _warn_once()
    if implementation == "python":
        return _best_fit_python(items, capacity)
    if _packer is None:
        raise MindError(f"the compiled packer is not available ({_unavailable_reason}): reinstall with a C++ compiler")
    bins = np.empty_like(items)
    _packer.best_fit_decreasing(items, capacity, bins)
    return bins


def bins_of(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best fit: the items of each bin, in their order; one that is longer than `capacity` has a bin of its own."""
    capacity = max(1, capacity)
    members: dict[int, list[int]] = {}
    for item, number in enumerate(best_fit([min(length, capacity) for length in lengths], capacity)):
        members.setdefault(int(number), []).append(item)
    return [members[number] for number in sorted(members)]


def _checked(lengths: Sequence[int] | np.ndarray, capacity: int) -> np.ndarray:
    if capacity < 1:
        raise MindError(f"capacity is {capacity}: expected at least 1")
    try:
        items = np.asarray(lengths)
    except ValueError as error:  # rows of unequal length
        raise MindError(f"lengths is not a flat list of integers ({error})") from None
    if items.ndim != 1:
        raise MindError(f"lengths has {items.ndim} dimensions: expected 1")
    if len(items) == 0:
        return np.empty(0, dtype=np.int64)
    if items.dtype.kind not in "iu":
        raise MindError(f"lengths has dtype {items.dtype}: expected integers")
    outside = np.flatnonzero((items < 1) | (items > capacity))
    if len(outside):
        first = int(outside[0])
        raise MindError(f"lengths[{first}] is {items[first]}: expected 1 to {capacity} (the capacity)")
    return np.ascontiguousarray(items, dtype=np.int64)


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        message = f"packing with the Python twin, since the compiled packer is not available: {_unavailable_reason}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def _best_fit_python(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The compiled packer's algorithm, step by step: the residuals that occur, and a min-heap of bins for each."""
    residuals: list[int] = []  # ascending, those of `bins_of` and no others
    bins_of: dict[int, list[int]] = {}
    chosen = [0] * len(lengths)
    opened = 0
    sizes = lengths.tolist()
    for item in np.argsort(-lengths, kind="stable").tolist():
        size = sizes[item]
        at = bisect.bisect_left(residuals, size)
        if at == len(residuals):
            residual, bin_index = capacity, opened
            opened += 1
        else:
            residual = residuals[at]
            bins = bins_of[residual]
            bin_index = heapq.heappop(bins)
            if not bins:
                del residuals[at], bins_of[residual]
        chosen[item] = bin_index
        residual -= size
        if residual in bins_of:
            heapq.heappush(bins_of[residual], bin_index)
        elif residual > 0:
            bisect.insort(residuals, residual)
            bins_of[residual] = [bin_index]
    return np.array(chosen, dtype=np.int64)
