"""A function that torch.compile calls instead of tracing it; imported only while tracing, since it imports Dynamo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@torch.compiler.assume_constant_result
def constant(function: Callable[..., T], *arguments: Any) -> T:
    """The function's result, as a constant of the graph."""
    return function(*arguments)
