"""A provider computes a loss: a function of the inputs, with its requirements and how its errors are judged."""

from __future__ import annotations

import functools
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions, version
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.measure import free_bytes
from bench.roofline import Logits, Step, counted
from mind_kernels.backend import BACKENDS, BYTES_PER_LOGIT, backends_of

# torch.compile of a function, once: at the first call that needs it.
torch_compiled = functools.cache(torch.compile)


Work = Callable[[Any, Mapping[str, float]], Sequence[Step] | None]
"""What is to be done for inputs on the meta device, from the facts that describe them: None if that is not known."""
KEPT = 34.0  # entries per row above 2^-12 on a trained model's rows (heads.py), if the inputs have not been described


def dense_work(products: float, bytes_per_logit: float) -> Work:
    """Whole products, and passes between them."""

    def work(inputs: Any, facts: Mapping[str, float]) -> list[Step]:
        logits = Logits.of(inputs.hidden, inputs.weight)
        return [logits.products(products), logits.passes(bytes_per_logit)]

    return work


def operators_work(loss: Callable[[Any], Tensor]) -> Work:
    """What the operators of PyTorch do."""
    return lambda inputs, facts: counted(loss, inputs)


def moved(use: str, backend: str, dtype: torch.dtype | None = None) -> int | None:
    """Bytes per logit of one of our backends on a GPU (see BYTES_PER_LOGIT); None for one that runs on CPUs.

    The kernels of csrc/cuda make the passes of those in Triton.
    """
    name = use if dtype is None else f"{use}, {str(dtype).removeprefix('torch.')}"
    tensors = "cuda" if backend == "auto" else BACKENDS[backend].tensors
    return BYTES_PER_LOGIT[name]["triton" if tensors == "cuda" else backend] if tensors in ("any", "cuda") else None


class Outputs(NamedTuple):
    loss: Tensor
    d_hidden: Tensor  # as hidden, (..., D); without elements if only the loss was asked for
    d_weight: Tensor  # (V, D); the same


def our_backends(operation: str) -> tuple[str, ...]:
    """ "auto", and every backend of an operation by its name."""
    return ("auto", *backends_of(operation))


def backends_here(operation: str, device: str) -> list[str]:
    """The backends of an operation that run on "cpu" or "cuda", on this machine."""
    return [
        name
        for name in backends_of(operation)
        if BACKENDS[name].tensors in ("any", device) and BACKENDS[name].availability().available
    ]


@dataclass(frozen=True)
class Provider:
    """Peers run as their own documentation calls them."""

    loss: Callable[[Any], Tensor]
    """The scalar loss of the benchmark's inputs, differentiable in their `hidden` and `weight`."""
    imports: str | None = None
    """The peer's function, as "module:name"."""
    cuda: bool = False
    """A peer that runs on a CUDA device only."""
    cpu: bool = False
    """Settings that are measured on a CPU only."""
    logits: float = 0
    """How many float32 tensors, rows of hidden x V, it holds at once: what would not fit is skipped."""
    backend: str | None = None
    """The backend, for one of ours; "auto" stands for one that is there by its name."""
    sparse: bool = False
    """Its gradient leaves out small probabilities on purpose, and reports their mass."""
    judged_by: tuple[str, ...] = ("loss",)
    """The benchmark's definitions that it has to meet; its errors are those against the first."""
    loss_only: bool = False
    """Its gradient is that of another function: only its loss is judged."""
    forward: bool = False
    """Only the loss is computed, without a gradient."""
    report: Callable[[Any], dict[str, float]] | None = None
    """What else a result row is to say about it, from the inputs."""
    times_of: Mapping[str, str] = field(default_factory=dict)
    """Further columns of relative time: the provider whose time is 1."""
    note: str | None = None
    work: Work = lambda inputs, facts: None
    """Its products and bytes: what its time is predicted from."""

    @property
    def tensors(self) -> str:
        """The device of the tensors that it takes: "any", "cpu" or "cuda"."""
        if self.backend in BACKENDS:
            return BACKENDS[self.backend].tensors
        return "cuda" if self.cuda else "cpu" if self.cpu else "any"

    def package(self) -> str | None:
        """The peer's distribution and version, where it was installed as one."""
        names = packages_distributions().get(re.split("[.:]", self.imports or "")[0])
        return f"{names[0]} {version(names[0])}" if names else None

    def reason_absent(self, inputs: Any) -> str:
        """Why it cannot run here; empty where it can."""
        if self.tensors not in ("any", inputs.hidden.device.type):
            return f"needs a {self.tensors.upper()} device"
        try:
            if self.imports:
                pkgutil.resolve_name(self.imports)
        except ModuleNotFoundError as error:
            return f"{error.name} is not installed"
        except (ImportError, AttributeError) as error:
            return str(error)
        return self._lack_of_memory(inputs)

    def _lack_of_memory(self, inputs: Any) -> str:
        vocabulary, size = inputs.weight.shape
        needed = int(self.logits * inputs.hidden.numel() // size * vocabulary * 4)
        free = free_bytes(inputs.hidden.device.type)
        return f"its logits take {needed >> 30} GiB of {free >> 30} free" if needed > free else ""


def step(provider: Provider, inputs: Any) -> Callable[[], Outputs]:
    """A forward and backward of the provider, or a forward alone."""

    def call() -> Outputs:
        if provider.forward:
            with torch.no_grad():
                loss = provider.loss(inputs)
            return Outputs(loss, loss.new_empty(0), loss.new_empty(0))
        loss = provider.loss(inputs)
        return Outputs(loss.detach(), *torch.autograd.grad(loss, (inputs.hidden, inputs.weight)))

    return call
