"""Derivatives that an operation does not have: an error in place of zeros."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mind_kernels.extension import constant_in_graphs


def no_transforms(operation: str, values: Iterable[Any], by: str, remedy: str) -> None:
    """Raises RuntimeError under a transform of torch.func or a forward-mode derivative of one of the values: what has a
    backward pass of its own, and no more, would let it be zero without a word."""
    if _within_transform():
        raise unsupported(operation, "transforms of torch.func", by, remedy)
    if forward_ad._current_level < 0:  # a graph that has read it serves no other level
        return
    # Within a graph no tensor shows its tangent. (A function for the test would be a graph of its own.)
    compiling = torch.compiler.is_compiling()
    for value in values:
        if isinstance(value, Tensor) and (compiling or forward_ad.unpack_dual(value).tangent is not None):
            raise unsupported(operation, "forward-mode derivatives", by, remedy)


@constant_in_graphs
def _within_transform() -> bool:
    return torch._C._are_functorch_transforms_active()


def unsupported(operation: str, what: str, by: str, remedy: str) -> RuntimeError:
    """The error of an operation that cannot serve `what`, such as "higher-order gradients"."""
    return RuntimeError(f"{operation}: {what} are not supported by {by}: use {remedy}")
