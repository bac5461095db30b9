"""The backends by name, why one is unavailable, and the choice of one for a device."""

from __future__ import annotations

from dataclasses import dataclass

import torch


class BackendUnavailableError(RuntimeError):
    """An explicitly named backend cannot run here; the message says why."""


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run on this machine; `reason` says why not, and is empty where it can."""

    available: bool
    reason: str = ""


_NOT_BUILT = "this version of mind_kernels does not have it yet"
_BACKENDS = {
    "reference": Availability(True),
    "torch": Availability(True),
    "cpp": Availability(False, _NOT_BUILT),
    "triton": Availability(False, _NOT_BUILT),
    "cuda": Availability(False, _NOT_BUILT),
}


def available_backends() -> dict[str, Availability]:
    """Every backend name with its availability on this machine.

    `reference` is the definition: plain PyTorch, unchunked, differentiable any number of times, any dtype.
    `torch` works in chunks of rows on any device and never allocates N x V.
    """
    return dict(_BACKENDS)


def resolve(name: str, device: torch.device) -> str:
    """The backend that `name` stands for on `device`.

    "auto" is the fastest one there is for the device. Raises ValueError for an unknown name and
    BackendUnavailableError, with the reason, for one that cannot run: nothing falls back silently.
    """
    if name == "auto":
        return "torch"
    if name not in _BACKENDS:
        raise ValueError(f"backend is {name!r}: expected 'auto' or one of {', '.join(map(repr, _BACKENDS))}")
    if not _BACKENDS[name].available:
        raise BackendUnavailableError(f"backend {name!r} is not available on {device}: {_BACKENDS[name].reason}")
    return name
