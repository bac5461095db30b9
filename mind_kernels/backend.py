"""The backends by name, why one is unavailable, and the choice of one for a tensor."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mind_kernels import extension

_HAS_TRITON = importlib.util.find_spec("triton") is not None


class BackendUnavailableError(RuntimeError):
    """An explicitly named backend cannot run here; the message says why."""


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run on this machine; `reason` says why not, `remedy` what to do. Empty where it can."""

    available: bool
    reason: str = ""
    remedy: str = ""


def available_backends() -> dict[str, Availability]:
    """Every backend name with its availability on this machine. An operation may lack one, and then says so.

    `reference` is the definition: plain PyTorch, unchunked, differentiable any number of times, any dtype.
    `torch` works in chunks of rows on any device and never allocates N x V.
    `cpp` has the compiled kernels of csrc/cpu, for CPU tensors; `cuda` those of csrc/cuda.
    `triton` has Triton row kernels between cuBLAS products; `triton_streaming` keeps no logits in a forward pass.
    """
    triton = _triton()
    return {
        "reference": Availability(True),
        "torch": Availability(True),
        "cpp": _compiled("cpu"),
        "triton": triton,
        "triton_streaming": triton,
        "cuda": _cuda(),
    }


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on a CPU: TRITON_INTERPRET, read before they are imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def _compiled(device: str) -> Availability:
    reason = extension.unavailable(device)
    return Availability(False, reason, extension.remedy(device)) if reason else Availability(True)


def _cuda() -> Availability:
    compiled = _compiled("cuda")
    if not compiled.available:
        return compiled
    if not torch.cuda.is_available():
        return Availability(False, "no CUDA device is here", "run it on a machine with an NVIDIA GPU")
    if gpu := _unserved_gpu():
        return Availability(False, f"it was not compiled for {gpu}", "name it in MIND_KERNELS_CUDA_ARCHS and build")
    return Availability(True)


@extension.constant_in_graphs
def _unserved_gpu() -> str:
    """A device that the CUDA library has no code for; empty where it serves all."""
    for device in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(device)
        if not extension.serves(extension.architectures(), major, minor):
            return f"cuda:{device}, a {torch.cuda.get_device_name(device)} of compute capability {major}.{minor}"
    return ""


def _triton() -> Availability:
    if not _HAS_TRITON:
        return Availability(False, "the package triton is not installed", "pip install 'mind-kernels[triton]'")
    if not (torch.cuda.is_available() or interpreted()):
        return Availability(
            False, "no CUDA device is here, and TRITON_INTERPRET=1 is not set", "run it on a machine with an NVIDIA GPU"
        )
    return Availability(True)


def resolve(name: str, hidden: Tensor, implemented: Collection[str]) -> str:
    """The backend that `name` stands for, for an operation that has the `implemented` ones and the reference.

    "auto" is the fastest one that has been measured for the device. Raises ValueError for an unknown name, TypeError
    for a dtype that the backend does not compute in, and BackendUnavailableError, with the reason, for a backend that
    cannot run: nothing falls back silently.
    """
    device, double = hidden.device.type, hidden.dtype == torch.float64
    if name == "auto":
        compiled = device == "cpu" and not double and "cpp" in implemented and not extension.unavailable("cpu")
        return "cpp" if compiled else "torch"
    known = available_backends()
    if name not in known:
        raise ValueError(f"backend is {name!r}: expected 'auto' or one of {', '.join(map(repr, known))}")
    reason = "; ".join(filter(None, (known[name].reason, known[name].remedy)))
    if not reason and name not in ("reference", *implemented):
        reason = "this operation does not have it yet"
    reason = reason or _misplaced(name, device)
    if reason:
        raise BackendUnavailableError(f"backend {name!r} is not available on {hidden.device}: {reason}")
    if double and name not in ("reference", "torch"):
        raise TypeError(f"hidden has dtype {hidden.dtype}: backend {name!r} computes in float32, use 'torch'")
    return name


def kernels(operation: str, backend: str) -> Any:
    """The module of kernels that a backend has for an operation; imported here, since not every one can be."""
    return importlib.import_module(f"mind_kernels.{operation}.backend_{backend}")


def _misplaced(name: str, device: str) -> str:
    """Why a backend does not take tensors of this device; empty where it does."""
    if name.startswith("triton") and device != "cuda" and not interpreted():
        return "it needs a CUDA device"
    if name == "cpp" and device != "cpu":
        return "it needs CPU tensors"
    if name == "cuda" and device != "cuda":
        return "it needs CUDA tensors"
    return ""
