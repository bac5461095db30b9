"""What torch.compile calls instead of tracing it. Importing this imports Dynamo: only a trace does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@torch.compiler.assume_constant_result
def constant(function: Callable[..., T], *arguments: Any) -> T:
    """The function's result, a constant of the graph."""
    return function(*arguments)
