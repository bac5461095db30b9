"""Finds numbers that are nan or infinite in what is saved or loaded, and names their place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mind.display import listed
from mind.errors import NotFiniteError

LISTED = 8
"""The largest number of questions that a message names."""


def not_finite(tree: Any, name: str = "") -> str | None:
    """The place of the first number that is not finite, as "key.key", in nested mappings and lists of tensors and
    numbers; None if all are finite.

    Reads each tensor once, and waits for a GPU.
    """
    if isinstance(tree, Tensor):
        return None if _is_finite(tree.detach()) else name
    if isinstance(tree, float):
        return None if math.isfinite(tree) else name
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        return None
    found = (not_finite(value, f"{name}.{key}" if name else str(key)) for key, value in items)
    return next(filter(None, found), None)


def require_finite(tree: Any, what: str) -> None:
    """Raises NotFiniteError, "WHAT NAME is not finite", for the first number of `not_finite`."""
    if bad := not_finite(tree):
        raise NotFiniteError(f"{what} {bad} is not finite")


def _is_finite(tensor: Tensor) -> bool:
    # this process's part of a tensor that is divided among processes
    tensor = getattr(tensor, "to_local", lambda: tensor)()
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    # Minimum and maximum are nan if one number is; isfinite would first write a tensor of the same size.
    return all(math.isfinite(extreme) for extreme in map(float, torch.aminmax(tensor)))


def named_questions(ids: Sequence[str]) -> str:
    """ "question a" or "questions a, b", and how many there are if not all are named."""
    return f"question{'s' if len(ids) > 1 else ''} {listed(ids, LISTED)}"
