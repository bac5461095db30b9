"""The table of backends, and the choice of one of them for a tensor.

"auto" chooses, in this order: a backend named by MIND_KERNELS_BACKEND; the one that `python -m mind_kernels tune` found
to be the fastest on this device (tuning.py); the first backend in the table whose `fastest_on` is the device type.
`fastest_on` comes from measurements (bench/results). On an H200 the kernels of "cuda" took as long as those of "triton"
for the exact gradient and the pairwise divergences, and less for the sparse one: its gathers 1.9 ms instead of 7.0.
"""

from __future__ import annotations

import functools
import os
import pkgutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mind_kernels import availability, extension, tuning
from mind_kernels.availability import Availability, interpreted
from mind_kernels.head import Head

# For comparison: the three products take, per bfloat16 logit at D 3584, the time in which an H200 moves 117 bytes (4.3
# TB/s, 790 TFLOP/s). Triton's sparse gradient reads a logit three times. tests/kernels/test_traffic.py counts these.
BYTES_PER_LOGIT = {
    "linear_cross_entropy, bfloat16": {"torch": 92, "triton": 6},
    "linear_cross_entropy, float32": {"torch": 88, "triton": 12},
    "linear_cross_entropy, statistics, bfloat16": {"torch": 78, "triton": 2},
    "linear_divergence, forward_kl": {"torch": 278, "triton": 28},
    "linear_divergence, jsd": {"torch": 460, "triton": 28},
    "linear_divergence, a teacher's list": {"torch": 88, "triton": 12},
    "linear_pairwise_jsd, pairs of 8": {"torch": 599, "triton": 24},
    "linear_pairwise_jsd, jeffreys, pairs of 8": {"torch": 563, "triton": 24},
    "linear_pairwise_jsd, mixture of 8": {"torch": 349, "triton": 32},
}
"""Bytes that the passes between the products move per logit, forward and backward, by backend."""
PREFERRED = "MIND_KERNELS_BACKEND"
"""The environment variable that says which backend "auto" uses."""


class BackendUnavailableError(RuntimeError):
    """The requested backend cannot run here; the message says why."""


@dataclass(frozen=True)
class Backend:
    """One way to compute the operations.

    `kernels` names the object with the kernels for each operation that the backend serves, as "module" or
    "module:attribute"; it is imported when the backend is first used. The protocols are RowKernels in
    linear_cross_entropy/contract.py, GroupKernels in linear_pairwise_jsd/contract.py, RowKernels in
    linear_divergence/contract.py and TopKKernels in linear_top_k/contract.py. linear_log_prob and the rows of
    linear_mind_loss use the kernels of linear_cross_entropy. "linear_mind_loss" names the GroupKernels that are used
    together with them, and "linear_pairwise_jsd, jeffreys" those of the Jeffreys divergence. "linear_cross_entropy,
    shards" names the ShardKernels of linear_cross_entropy/shard_contract.py, and so on.
    """

    name: str
    tensors: Literal["any", "cpu", "cuda"]
    """The device type of the tensors that it computes on."""
    kernels: Mapping[str, str] = field(default_factory=dict)
    head: str = f"{__package__}.head:Head"
    """The class of heads, a `head.Head`, whose matrix products its operations use."""
    float64: bool = False
    """Whether it supports float64."""
    interpreter: bool = False
    """Whether Triton's interpreter runs it on CPU tensors, see `interpreted`."""
    fastest_on: Literal["cpu", "cuda"] | None = None
    """The device type on which "auto" prefers it to backend "torch"; see the docstring of this module."""
    availability: Callable[[], Availability] = lambda: Availability(True)
    """Whether it can run on this machine."""
    summary: str = ""
    """A description in one line."""

    def takes(self, device: str) -> bool:
        """Whether it computes on this device type. On "meta" nothing is computed: every backend returns shapes."""
        return self.tensors in ("any", device) or device == "meta" or (self.interpreter and interpreted())

    def serves(self, operation: str) -> bool:
        """Whether this backend has the operation. The reference is the definition, which each operation has."""
        return self.name == "reference" or operation in self.kernels


_ROWS, _GROUPS = f"{__package__}.linear_cross_entropy", f"{__package__}.linear_pairwise_jsd"
_DIVERGENCES = f"{__package__}.linear_divergence"

BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "reference",
            "any",
            float64=True,
            summary="the definition: plain PyTorch, unchunked, differentiable any number of times",
        ),
        Backend(
            "torch",
            "any",
            {
                "linear_cross_entropy": f"{_ROWS}.backend_torch",
                "linear_cross_entropy, shards": f"{_ROWS}.backend_torch",
                "linear_pairwise_jsd": f"{_GROUPS}.backend_torch",
                "linear_pairwise_jsd, jeffreys": f"{_GROUPS}.backend_torch_jeffreys",
                "linear_pairwise_jsd, shards": f"{_GROUPS}.backend_torch_shards:TORCH",
                "linear_pairwise_jsd, jeffreys, shards": f"{_GROUPS}.backend_torch_shards:TORCH_JEFFREYS",
                "linear_mind_loss": f"{_GROUPS}.backend_torch",
                "linear_mind_loss, shards": f"{_GROUPS}.backend_torch_shards:TORCH",
                "linear_divergence": f"{_DIVERGENCES}.backend_torch",
                "linear_divergence, shards": f"{_DIVERGENCES}.backend_torch",
                "linear_top_k": f"{__package__}.linear_top_k.backend_torch",
                "linear_top_k, shards": f"{__package__}.linear_top_k.backend_torch",
            },
            float64=True,
            summary="plain PyTorch in chunks of rows, which never allocates N x V",
        ),
        Backend(
            "cpp",
            "cpu",
            {
                "linear_cross_entropy": f"{_ROWS}.streamed_rows:CPP",
                "linear_cross_entropy, shards": f"{_ROWS}.streamed_rows:CPP",
                "linear_pairwise_jsd": f"{_GROUPS}.compiled_groups:CPP",
                "linear_pairwise_jsd, jeffreys": f"{_GROUPS}.compiled_groups:CPP_JEFFREYS",
                "linear_mind_loss": f"{_GROUPS}.compiled_groups:CPP",
                "linear_divergence": f"{_DIVERGENCES}.backend_cpp",
            },
            head=f"{__package__}.compiled_head:CompiledHead",
            fastest_on="cpu",
            availability=lambda: availability.of_library("cpp"),
            summary="the compiled kernels of csrc/cpu",
        ),
        Backend(
            "cuda",
            "cuda",
            {
                "linear_cross_entropy": f"{_ROWS}.compiled_rows:CUDA",
                "linear_cross_entropy, shards": f"{_ROWS}.compiled_rows:CUDA",
                "linear_pairwise_jsd": f"{_GROUPS}.compiled_groups:CUDA",
                "linear_mind_loss": f"{_GROUPS}.compiled_groups:CUDA",
            },
            fastest_on="cuda",
            availability=availability.of_cuda,
            summary="the compiled kernels of csrc/cuda",
        ),
        Backend(
            "triton",
            "cuda",
            {
                "linear_cross_entropy": f"{_ROWS}.backend_triton",
                "linear_cross_entropy, shards": f"{_ROWS}.backend_triton",
                "linear_pairwise_jsd": f"{_GROUPS}._triton",
                "linear_pairwise_jsd, shards": f"{_GROUPS}._triton.shards:JSD",
                "linear_pairwise_jsd, jeffreys": f"{_GROUPS}._triton.jeffreys",
                "linear_pairwise_jsd, jeffreys, shards": f"{_GROUPS}._triton.shards:JEFFREYS",
                "linear_mind_loss": f"{_GROUPS}._triton",
                "linear_mind_loss, shards": f"{_GROUPS}._triton.shards:JSD",
                "linear_divergence": f"{_DIVERGENCES}.backend_triton",
                "linear_divergence, shards": f"{_DIVERGENCES}.backend_triton",
            },
            interpreter=True,
            fastest_on="cuda",
            availability=availability.of_triton,
            summary="Triton row kernels between cuBLAS products",
        ),
        Backend(
            "triton_streaming",
            "cuda",
            {
                "linear_cross_entropy": f"{_ROWS}.backend_triton_streaming",
                "linear_cross_entropy, shards": f"{_ROWS}.backend_triton_streaming",
                "linear_mind_loss": f"{_GROUPS}._triton",
                "linear_mind_loss, shards": f"{_GROUPS}._triton.shards:JSD",
            },
            interpreter=True,
            availability=availability.of_triton,
            summary="the same with a forward pass that keeps no logits",
        ),
    )
}
"""All backends by name. A program may add its own: BACKENDS[backend.name] = backend."""


def backends() -> dict[str, Availability]:
    """Every backend name with its availability on this machine. Not every operation has every backend.

    `python -m mind_kernels` prints this table; `mind_kernels.backend.BACKENDS[name].summary` describes each backend.
    """
    return {name: backend.availability() for name, backend in BACKENDS.items()}


def backends_of(operation: str) -> tuple[str, ...]:
    """The names of all backends that have kernels for an operation (see `Backend`), even if they cannot run here."""
    return tuple(name for name, backend in BACKENDS.items() if operation in backend.kernels)


def resolve(name: str, hidden: Tensor, operation: str, vocabulary: int | None = None, form: str = "") -> str:
    """The name of the backend to use for an operation on `hidden` (..., D), given a backend's name or "auto".

    For "auto" it is the first backend in MIND_KERNELS_BACKEND, a list such as "cpp,torch", that supports the operation
    and the tensor. Without that variable, it is the one that `python -m mind_kernels tune` found to be the fastest here
    for this form of the operation ("sparse", ...) and a similar D and vocabulary. Without such a table entry, it is the
    result of `fastest`. Raises ValueError for an unknown name, TypeError for a dtype that the backend does not compute
    in, and BackendUnavailableError, with the reason, for a backend that cannot run: there is no silent fallback.
    """
    device, double = hidden.device.type, hidden.dtype == torch.float64
    if name == "auto":
        tuned = "" if vocabulary is None or preferred() else _tuned(hidden, operation, vocabulary, form)
        return tuned or automatic(device, double, operation)
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(f"backend is {name!r}: expected 'auto' or one of {', '.join(map(repr, BACKENDS))}")
    if reason := refusal(name, device, operation):
        raise BackendUnavailableError(f"backend {name!r} is not available on {hidden.device}: {reason}")
    if double and not BACKENDS[name].float64:
        raise TypeError(f"hidden has dtype {hidden.dtype}: backend {name!r} computes in float32, use 'torch'")
    return name


def _tuned(hidden: Tensor, operation: str, vocabulary: int, form: str) -> str:
    """The backend in the device's tuning table; empty if the table has no such entry."""
    size = hidden.shape[-1]
    for backend, least, least_size in tuned_entries(hidden.device, hidden.dtype, operation, form):
        # Compared here: in a graph the sizes may be symbols; such an inequality is a guard that rarely fails.
        if least <= vocabulary < 2 * least and least_size <= size < 2 * least_size:
            return backend
    return ""


@extension.constant_in_graphs
def tuned_entries(
    device: torch.device, dtype: torch.dtype, operation: str, form: str
) -> tuple[tuple[str, int, int], ...]:
    """(backend, least vocabulary, least hidden size) of each entry of the device's table for this operation and form.

    A table that cannot be used causes a warning, once.
    """
    return _usable(tuning.read(device), device.type, dtype, operation, form)


@functools.cache
def _usable(
    table: tuning.Table, device: str, dtype: torch.dtype, operation: str, form: str
) -> tuple[tuple[str, int, int], ...]:
    if table.problem:
        _say_unused(table, table.problem)
    usable = []
    for entry in table.entries:
        if (entry.use, entry.dtype) == (tuning.use(operation, form), str(dtype).removeprefix("torch.")):
            name = entry.backend
            if reason := refusal(name, device, operation):
                _say_unused(table, f"its {entry.use} takes backend {name!r}: {reason}")
            else:
                usable.append((name, tuning.bucket(entry.vocabulary), tuning.bucket(entry.hidden_size)))
    return tuple(usable)


@functools.cache
def _say_unused(table: tuning.Table, reason: str) -> None:
    remedy = "`python -m mind_kernels tune` makes a new one, and without the file the defaults hold"
    warnings.warn(f'{table.path}: "auto" does not follow this table: {reason}; {remedy}', stacklevel=2)


def automatic(device: str, double: bool, operation: str) -> str:
    """The backend of "auto" without a tuning table, on a device type, in float64 if `double`; raises as `resolve`."""
    if not (names := preferred()):
        return fastest(device, double, operation)
    reasons = []
    for each in names:
        reason = refusal(each, device, operation) or "it computes in float32" * (double and not BACKENDS[each].float64)
        if not reason:
            return each
        reasons.append(f"{each} ({reason})")
    numbers = "float64" if double else "float32 or less"
    raise BackendUnavailableError(
        f"{PREFERRED} is {','.join(names)!r}: none can serve {operation} in {numbers} on {device}: {'; '.join(reasons)}"
    )


def refusal(name: str, device: str, operation: str) -> str:
    """Why a backend cannot compute an operation on a device type; empty if it can."""
    if name not in BACKENDS:
        return "there is no such backend"
    backend = BACKENDS[name]
    found = backend.availability()
    if not found.available:
        return "; ".join(filter(None, (found.reason, found.remedy)))
    if not backend.serves(operation):
        split = " with process_group" * operation.endswith(", shards")
        others = backends_of(operation)
        have = "has" if len(others) == 1 else "have"
        return f"it has no kernels for this operation{split}; {', '.join(others)} {have}"
    return "" if backend.takes(device) else f"it needs {backend.tensors.upper()} tensors"


def preferred() -> tuple[str, ...]:
    """The names in MIND_KERNELS_BACKEND, none if it is not set. Raises ValueError if one of them is unknown."""
    setting = _setting()
    names = tuple(setting.split(",")) if setting else ()
    if not all(name in BACKENDS for name in names):
        known = ", ".join(map(repr, BACKENDS))
        raise ValueError(f"{PREFERRED} is {setting!r}: expected one of {known}, or some with commas between")
    return names


@extension.constant_in_graphs
def _setting() -> str:
    return os.environ.get(PREFERRED, "").replace(" ", "")


def fastest(device: str, double: bool, operation: str) -> str:
    """The first available backend whose `fastest_on` is the device type, in float64 if `double`; else "torch"."""
    for name, backend in BACKENDS.items():
        fits = backend.fastest_on == device and backend.serves(operation) and (backend.float64 or not double)
        if fits and backend.availability().available:
            return name
    return "torch"


def kernels(operation: str, backend: str) -> Any:
    """A backend's kernels for an operation; imported only here, since some cannot be imported on every machine."""
    return _load(BACKENDS[backend].kernels[operation])


def head_on(backend: str, head: Head) -> Head:
    """The same head with the matrix products of a backend, and with tensors whose rows are contiguous."""
    kind = _load(BACKENDS[backend].head)
    return kind(head.weight, head.bias, head.softcap, head.temperature).row_major()


_load = functools.cache(pkgutil.resolve_name)
