"""Errors for derivatives that an operation does not support, which PyTorch would otherwise silently set to zero."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mind_kernels.extension import constant_in_graphs


def no_transforms(operation: str, values: Iterable[Any], by: str, remedy: str) -> None:
    """Raises RuntimeError in a transform of torch.func, or if one of the values has a forward-mode derivative: for an
    operation that only has a backward pass, both would silently be zero."""
    if _within_transform():
        raise unsupported(operation, "transforms of torch.func", by, remedy)
    if forward_ad._current_level < 0:  # reading the level would make a graph valid for this level only
        return
    # In a graph, tensors do not show their tangents. (A function for this test would be a graph of its own.)
    compiling = torch.compiler.is_compiling()
    for value in values:
        if isinstance(value, Tensor) and (compiling or forward_ad.unpack_dual(value).tangent is not None):
            raise unsupported(operation, "forward-mode derivatives", by, remedy)


@constant_in_graphs
def _within_transform() -> bool:
    return torch._C._are_functorch_transforms_active()


def unsupported(operation: str, what: str, by: str, remedy: str) -> RuntimeError:
    """The error of an operation that does not support `what`, such as "higher-order gradients"."""
    return RuntimeError(f"{operation}: {what} are not supported by {by}: use {remedy}")
