"""Calls of public operations with one argument that is wrong: every backend refuses it, by its name, or none does.

A faulty argument must raise ValueError or TypeError in one line that names the argument. A fault that is none, such as
a number of NumPy or one row weight of nan, has to be taken by all backends.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mind_kernels import BackendUnavailableError
from tests.fuzz.choices import Choices
from tests.fuzz.public import PublicCall

NUMBERS: tuple[Any, ...] = (
    math.nan,
    math.inf,
    -math.inf,
    -1.0,
    0.0,
    0,
    1,
    1e400,
    1e-320,
    2**70,
    -(2**70),
    "1",
    "",
    b"1",
    None,
    True,
    [1.0],
    (),
    {},
    1j,
    np.float32(0.5),
    np.ones(3),
    np.array(0.5),
    torch.tensor(0.5),
    torch.ones(3),
    object(),
)
NAMES: tuple[Any, ...] = ("", "JSD", "mean ", "none", None, 3, ["mean"], b"sum", float("nan"), ("predicted",), "\n")
TENSORS: dict[str, Callable[[Tensor, Choices], Any]] = {
    "None": lambda t, c: None,
    "a list": lambda t, c: t.tolist(),
    "of NumPy": lambda t, c: t.detach().float().numpy(),
    "a number": lambda t, c: 3,
    "another floating dtype": lambda t, c: t.to(torch.float64 if t.dtype != torch.float64 else torch.float32),
    "of integers": lambda t, c: t.nan_to_num(0, 0, 0).to(c.among((torch.int16, torch.uint8, torch.int64))),
    "of truths": lambda t, c: t != 0,
    "complex": lambda t, c: t.to(torch.complex64),
    "float8": lambda t, c: t.float().to(torch.float8_e4m3fn),
    "a dimension more": lambda t, c: t[None],
    "a dimension less": lambda t, c: t[0] if t.dim() and t.shape[0] else t.new_zeros(()),
    "a last dimension more": lambda t, c: t[..., None],
    "flat": lambda t, c: t.flatten(),
    "no elements": lambda t, c: t.new_zeros(0),
    "one row more": lambda t, c: torch.cat([t, t[:1]]) if t.dim() else t,
    "one row less": lambda t, c: t[1:] if t.dim() else t,
    "one column more": lambda t, c: torch.cat([t, t[..., :1]], -1) if t.dim() else t,
    "one column less": lambda t, c: t[..., 1:] if t.dim() else t,
    "meta": lambda t, c: t.to("meta"),
    "sparse": lambda t, c: t.to_sparse() if t.dim() and t.dtype != torch.bool else t,
    "nested": lambda t, c: torch.nested.nested_tensor([t, t]) if t.is_floating_point() else t,
    "with a gradient": lambda t, c: t.detach().requires_grad_() if t.is_floating_point() else t,
    "nan": lambda t, c: _with(t, c, math.nan),
    "inf": lambda t, c: _with(t, c, math.inf),
    "-inf": lambda t, c: _with(t, c, -math.inf),
    "-1": lambda t, c: _with(t, c, -1),
    "-2": lambda t, c: _with(t, c, -2),
    "large": lambda t, c: _with(t, c, 2**31 - 1),
    "300": lambda t, c: _with(t, c, 300),
    "equal": lambda t, c: torch.full_like(t, 1),
}
UNNAMED = ("pair_weight and mixture_weight", "segment and num_segments", "teacher: expected either")
"""Beginnings of messages about arguments that exclude or need one another."""


def _with(tensor: Tensor, choices: Choices, number: float) -> Tensor:
    """The same with one other entry."""
    if tensor.numel() == 0 or tensor.dtype == torch.bool or not (tensor.is_floating_point() or math.isfinite(number)):
        return tensor
    changed = tensor.clone(memory_format=torch.contiguous_format)
    changed.view(-1)[choices.number(tensor.numel() - 1)] = (
        min(number, torch.finfo(tensor.dtype).max) if (tensor.is_floating_point() and math.isfinite(number)) else number
    )
    return changed


def spoilt(call: PublicCall, choices: Choices) -> tuple[str, dict[str, Any]]:
    """The name of an argument, and the call's arguments with something wrong there."""
    arguments: dict[str, Any] = call.leaves | call.constants | call.options
    optional = (
        {"softcap": None, "temperature": 1.0, "ignore_index": -100} if call.function != "linear_pairwise_jsd" else {}
    )
    if call.function == "linear_top_k":
        optional.pop("ignore_index")
    name = choices.among(sorted(optional | arguments))
    value = (optional | arguments)[name]
    if isinstance(value, Tensor):
        return name, arguments | {name: choices.among(list(TENSORS.values()))(value, choices)}
    return name, arguments | {name: choices.among(NAMES if isinstance(value, str | tuple) else NUMBERS)}


def outcome(call: PublicCall, arguments: dict[str, Any], backend: str) -> Exception | str:
    """What the call raises, or "taken"; anything but an exception that a caller can expect is raised on."""
    import mind_kernels

    try:
        getattr(mind_kernels, call.function)(**arguments, backend=backend)
    except (ValueError, TypeError, BackendUnavailableError) as error:
        return error
    return "taken"


def check_refused(call: PublicCall, choices: Choices, backends: Sequence[str]) -> None:
    """Raises AssertionError unless all backends refuse a spoilt argument of the call, by its name, or all take it."""
    name, arguments = spoilt(call, choices)
    given = arguments[name]
    said = f"{name} = {given!r:.200} ({getattr(given, 'dtype', type(given).__name__)})\n{call.described()}"
    found = {backend: outcome(call, arguments, backend) for backend in backends}
    for backend, error in found.items():
        if isinstance(error, Exception):
            message = str(error)
            assert "\n" not in message and len(message) < 600, f"{backend} says {message!r} of {said}"
            known = message.startswith(UNNAMED) or any(re.search(rf"\b{other}\b", message) for other in arguments)
            assert known, f"{backend} says {message!r} of {said}"
    # What a backend does not compute in, it says itself.
    kinds = {isinstance(error, Exception) for error in found.values() if not _unsupported(error)}
    assert len(kinds) <= 1, f"{ {b: str(e)[:200] for b, e in found.items()} } of {said}"


def _unsupported(error: Exception | str) -> bool:
    return isinstance(error, Exception) and ("computes in float32" in str(error) or "with gradient_error" in str(error))
