"""Who computes the loss: PyTorch, the peers' installed packages, and mind_kernels.

A provider is a function (hidden, weight, target) -> mean loss. What it needs is declared beside it, so that an absent
one is reported with the reason. Peers run as their own documentation calls them; a second entry has the chunks (or the
accumulation) that make them fastest or exact.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import packages_distributions, version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cross_entropy import inputs as inputs_of
from bench.cross_entropy.inputs import Inputs
from mind_kernels import linear_cross_entropy

THRESHOLD = 2.0**-12
LARGE_CHUNK = 4096  # rows; from here on the traffic of dW no longer shows beside the products


@dataclass(frozen=True)
class Provider:
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    imports: str | None = None
    """The peer's function, as "module:name"."""
    cuda: bool = False
    """It runs on a CUDA device only."""
    logits: int = 0
    """How many N x V tensors it holds at once: a case that would not fit is not tried."""
    backend: str | None = None
    """The backend, for one of ours."""
    sparse: bool = False
    """Its gradient leaves out small probabilities on purpose, and reports their mass."""

    def package(self) -> str | None:
        """The peer's distribution and version, where it was installed as one."""
        names = packages_distributions().get(re.split("[.:]", self.imports or "")[0])
        return f"{names[0]} {version(names[0])}" if names else None

    def reason_absent(self, device: str) -> str:
        """Why it cannot run here; empty where it can."""
        if self.cuda and torch.device(device).type != "cuda":
            return "needs a CUDA device"
        try:
            if self.imports:
                pkgutil.resolve_name(self.imports)
        except (ImportError, AttributeError) as error:
            return str(error)
        return ""


def eager(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, target)


@cache
def _compiled_eager() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return torch.compile(eager)


def compiled(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return _compiled_eager()(hidden, weight, target)


def torch_chunked(hidden: Tensor, weight: Tensor, target: Tensor, **options: int | None) -> Tensor:
    """PyTorch 2.13's own, chunked: options=None would be eager."""
    return F.linear_cross_entropy(hidden, weight, target, options=torch.nn.LinearCrossEntropyOptions(**options))


def trl(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """What SFTTrainer calls, with its chunk of 32768 vocabulary entries, and none of the optional outputs."""
    from trl.kernels import ChunkedLogProbFunction

    bias, temperature, chunk, softcap, scale, outputs = None, 1.0, 32768, None, 1.0, ()
    log_prob, *_ = ChunkedLogProbFunction.apply(
        hidden, weight, bias, target, temperature, chunk, softcap, scale, outputs)
    return -log_prob.mean()


def liger(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(hidden, weight, target)


def liger_large(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Chunks of LARGE_CHUNK rows and dW accumulated in float32."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    # Liger sets a chunk's logits to `chunk_mem_const` times the size of hidden.
    chunks = -(-len(hidden) // LARGE_CHUNK)
    budget = -(-len(weight) // (hidden.shape[1] * chunks))
    return liger_fused_linear_cross_entropy(hidden, weight, target, chunk_mem_const=budget, accum_dtype=torch.float32)


def cce(hidden: Tensor, weight: Tensor, target: Tensor, **options: None) -> Tensor:
    """With options: filter_eps=None, which is what CCE calls cce_exact."""
    from cut_cross_entropy import linear_cross_entropy as cut_cross_entropy

    return cut_cross_entropy(hidden, weight, target, **options)


def quack(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy(hidden, weight, target)


def ours(backend: str, *, sparse: bool = False, cuda: bool = False) -> Provider:
    return Provider(partial(linear_cross_entropy, backend=backend, gradient_threshold=THRESHOLD if sparse else None),
                    cuda=cuda, backend=backend, sparse=sparse)


TORCH = "torch.nn.functional:linear_cross_entropy"
LIGER = "liger_kernel.transformers.functional:liger_fused_linear_cross_entropy"
CCE = "cut_cross_entropy:linear_cross_entropy"
PROVIDERS = {
    "eager": Provider(eager, logits=3),
    "torch.compile": Provider(compiled, logits=3),
    "F.linear_cross_entropy": Provider(torch_chunked, TORCH),
    "F.linear_cross_entropy, 4096 rows": Provider(
        partial(torch_chunked, batch_chunk_size=LARGE_CHUNK, chunking_method=None), TORCH),
    "TRL": Provider(trl, "trl.kernels:ChunkedLogProbFunction"),
    "Liger": Provider(liger, LIGER, cuda=True),
    "Liger, 4096 rows": Provider(liger_large, LIGER, cuda=True),
    "CCE": Provider(cce, CCE, cuda=True),
    "CCE exact": Provider(partial(cce, filter_eps=None), CCE, cuda=True),
    "QuACK": Provider(quack, "quack.linear_cross_entropy:chunked_linear_cross_entropy", cuda=True),
    "mind_kernels exact": ours("auto"),
    "mind_kernels sparse 2^-12": ours("auto", sparse=True),
    "mind_kernels torch exact": ours("torch"),
    "mind_kernels torch sparse 2^-12": ours("torch", sparse=True),
    "mind_kernels triton exact": ours("triton", cuda=True),
    "mind_kernels triton sparse 2^-12": ours("triton", sparse=True, cuda=True),
    "mind_kernels streaming": ours("triton_streaming", cuda=True),
    "mind_kernels streaming sparse 2^-12": ours("triton_streaming", sparse=True, cuda=True),
}
# "auto" stands for one of the named backends, so that a GPU run, which has several, leaves it out.
DEFAULTS = {
    "cpu": ("eager", "F.linear_cross_entropy", "mind_kernels exact", "mind_kernels sparse 2^-12"),
    "cuda": tuple(name for name, provider in PROVIDERS.items() if provider.backend != "auto"),
}


def step(provider: Provider, inputs: Inputs) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """A forward and backward of the provider: (loss, dH, dW)."""

    def call() -> tuple[Tensor, Tensor, Tensor]:
        loss = provider.loss(inputs.hidden, inputs.weight, inputs.target)
        return loss.detach(), *torch.autograd.grad(loss, (inputs.hidden, inputs.weight))

    return call


def build(provider: str, **case: Any) -> Callable[[], tuple[Tensor, ...]]:
    """`step` by name, with its inputs made anew by inputs.load(**case): what a fresh process starts from."""
    return step(PROVIDERS[provider], inputs_of.load(**case))
