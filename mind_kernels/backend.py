"""The backends by name, why one is unavailable, and the choice of one for a tensor."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

_HAS_TRITON = importlib.util.find_spec("triton") is not None


class BackendUnavailableError(RuntimeError):
    """An explicitly named backend cannot run here; the message says why."""


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run on this machine; `reason` says why not, and is empty where it can."""

    available: bool
    reason: str = ""


def available_backends() -> dict[str, Availability]:
    """Every backend name with its availability on this machine. An operation may lack one, and then says so.

    `reference` is the definition: plain PyTorch, unchunked, differentiable any number of times, any dtype.
    `torch` works in chunks of rows on any device and never allocates N x V.
    `triton` has Triton row kernels between cuBLAS products; `triton_streaming` keeps no logits in a forward pass.
    """
    triton = _triton()
    not_built = Availability(False, "this version of mind_kernels does not have it yet")
    return {"reference": Availability(True), "torch": Availability(True), "cpp": not_built, "triton": triton,
            "triton_streaming": triton, "cuda": not_built}


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on a CPU: TRITON_INTERPRET, read before they are imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def _triton() -> Availability:
    if not _HAS_TRITON:
        return Availability(False, "the package triton is not installed")
    if not (torch.cuda.is_available() or interpreted()):
        return Availability(False, "no CUDA device is here, and TRITON_INTERPRET=1 is not set")
    return Availability(True)


def resolve(name: str, hidden: Tensor, implemented: Collection[str]) -> str:
    """The backend that `name` stands for, for an operation that has the `implemented` ones and the reference.

    "auto" is the fastest one that has been measured for the device. Raises ValueError for an unknown name, TypeError
    for a dtype that the backend does not compute in, and BackendUnavailableError, with the reason, for a backend that
    cannot run: nothing falls back silently.
    """
    if name == "auto":
        return "torch"
    known = available_backends()
    if name not in known:
        raise ValueError(f"backend is {name!r}: expected 'auto' or one of {', '.join(map(repr, known))}")
    reason = known[name].reason
    if not reason and name not in ("reference", *implemented):
        reason = "this operation does not have it yet"
    if not reason and name.startswith("triton") and hidden.device.type != "cuda" and not interpreted():
        reason = "it needs a CUDA device"
    if reason:
        raise BackendUnavailableError(f"backend {name!r} is not available on {hidden.device}: {reason}")
    if name.startswith("triton") and hidden.dtype == torch.float64:
        raise TypeError(f"hidden has dtype {hidden.dtype}: backend {name!r} computes in float32, use 'torch'")
    return name
