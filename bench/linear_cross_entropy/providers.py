"""The providers of the cross-entropy: PyTorch, the peers' installed packages, and mind_kernels.

Peers run as their own documentation calls them; a second entry has the chunks (or the accumulation) that make them
fastest or exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.comparison.provider import (
    KEPT,
    Provider,
    dense_work,
    moved,
    operators_work,
    our_backends,
    torch_compiled,
)
from bench.linear_cross_entropy.inputs import Inputs
from bench.roofline import Logits, Step
from mind_kernels import linear_cross_entropy

THRESHOLD = 2.0**-12
FINER = 16, 18  # exponents of further thresholds, on the backend that "auto" takes
ERROR = 3e-5  # accepted of the whole gradient; on these rows it is below 2e-5, as in eager mode
ACCURATE = f"mind_kernels gradient_error {ERROR:.0e}"
CHUNKS = (
    1024,
    2048,
    4096,
)  # rows; PyTorch's own is fastest with one of these: smaller ones are slower, its own choice more
LARGE_CHUNK = 4096  # rows; from here on the products take so long that the traffic of dW is hidden


def plain(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, target)


def eager(inputs: Inputs) -> Tensor:
    return plain(*inputs[:3])


def compiled(inputs: Inputs, **options: str) -> Tensor:
    return torch_compiled(plain, **options)(*inputs[:3])


def torch_chunked(inputs: Inputs, **options: Any) -> Tensor:
    """PyTorch 2.13's own, chunked: options=None would be eager."""
    return F.linear_cross_entropy(*inputs[:3], options=torch.nn.LinearCrossEntropyOptions(**options))


def trl(inputs: Inputs) -> Tensor:
    """What SFTTrainer calls, with its chunk of 32768 vocabulary entries, and none of the optional outputs."""
    from trl.kernels import ChunkedLogProbFunction

    bias, temperature, chunk, softcap, scale, outputs = None, 1.0, 32768, None, 1.0, ()
    log_prob, *_ = ChunkedLogProbFunction.apply(
        inputs.hidden, inputs.weight, bias, inputs.target, temperature, chunk, softcap, scale, outputs
    )
    return -log_prob.mean()


def liger(inputs: Inputs) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(*inputs[:3])


def liger_large(inputs: Inputs) -> Tensor:
    """Chunks of LARGE_CHUNK rows and dW accumulated in float32."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    # Liger sets a chunk's logits to `chunk_mem_const` times the size of hidden.
    rows, size = inputs.hidden.shape
    chunks = -(-rows // LARGE_CHUNK)
    budget = -(-len(inputs.weight) // (size * chunks))
    return liger_fused_linear_cross_entropy(*inputs[:3], chunk_mem_const=budget, accum_dtype=torch.float32)


def cce(inputs: Inputs, **options: None) -> Tensor:
    """With options: filter_eps=None, which is what CCE calls cce_exact."""
    from cut_cross_entropy import linear_cross_entropy as cut_cross_entropy

    return cut_cross_entropy(*inputs[:3], **options)


def quack(inputs: Inputs) -> Tensor:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy(*inputs[:3])


def exact_work(inputs: Any, facts: Mapping[str, float], backend: str) -> list[Step] | None:
    """Three products, and the passes of the row kernel."""
    bytes_per_logit = moved("linear_cross_entropy", backend, inputs.hidden.dtype)
    return None if bytes_per_logit is None else list(dense_work(3, bytes_per_logit)(inputs, facts))


def sparse_work(inputs: Any, facts: Mapping[str, float], backend: str) -> list[Step] | None:
    """One product, after which the logits are read three times, and two gathers of the kept entries.

    Streamed, no logits are written: the kept pieces are a fifth of another product.
    """
    logits, kept = Logits.of(inputs.hidden, inputs.weight), facts.get("kept_mean", KEPT)
    if backend == "triton_streaming":
        return [logits.products(1.2, itemsize=0), logits.gathers(kept)]
    if backend in ("auto", "triton", "cuda"):
        return [logits.products(), logits.passes(3 * logits.itemsize), logits.gathers(kept)]
    return None


def ours(backend: str) -> dict[str, Provider]:
    """The exact and the sparse gradient, and no gradient, on one backend, by name; "auto" needs no mention."""
    name = "mind_kernels" if backend == "auto" else f"mind_kernels {backend}"
    exact = partial(linear_cross_entropy, backend=backend)
    work = partial(exact_work, backend=backend)
    found = {f"{name} exact": Provider(lambda inputs: exact(*inputs[:3]), backend=backend, work=work)}
    for exponent in (12, *FINER) if backend == "auto" else (12,):
        found[f"{name} sparse 2^-{exponent}"] = _sparse(partial(exact, gradient_threshold=2.0**-exponent), backend)
    scoring = Provider(
        found[f"{name} exact"].loss, backend=backend, forward=True, times_of={"time_of_eager": "eager scoring"}
    )
    return found | {f"{name} scoring": scoring}


def _sparse(loss: Callable[..., Any], backend: str) -> Provider:
    def dropped_mass(inputs: Inputs) -> dict[str, float]:
        _, stats = loss(*inputs[:3], return_stats=True)
        return {"dropped_mass": float(stats.dropped_mass.mean())}

    return Provider(
        lambda inputs: loss(*inputs[:3]),
        backend=backend,
        sparse=True,
        report=dropped_mass,
        work=partial(sparse_work, backend=backend),
    )


TORCH = "torch.nn.functional:linear_cross_entropy"
LIGER = "liger_kernel.transformers.functional:liger_fused_linear_cross_entropy"
CCE = "cut_cross_entropy:linear_cross_entropy"
# Peers as they describe themselves. Compiled by Inductor: statistics read the logits twice, the gradient reads and
# writes them. Liger's kernel does the same. CCE keeps no logits and computes them again; its filter, which leaves
# blocks out, is not counted. QuACK works on the logits while a product writes them.
PROVIDERS = {
    "eager": Provider(eager, logits=3, work=operators_work(eager)),
    "eager scoring": Provider(eager, logits=2, forward=True, times_of={"time_of_eager": "eager scoring"}),
    "torch.compile": Provider(compiled, logits=3, work=dense_work(3, 8)),
    "torch.compile max-autotune": Provider(partial(compiled, mode="max-autotune"), cpu=True, logits=3),
    "F.linear_cross_entropy": Provider(torch_chunked, TORCH),
    **{
        f"F.linear_cross_entropy, {rows} rows": Provider(
            partial(torch_chunked, batch_chunk_size=rows, chunking_method=None), TORCH, cpu=rows < LARGE_CHUNK
        )
        for rows in CHUNKS
    },
    "TRL": Provider(trl, "trl.kernels:ChunkedLogProbFunction", work=dense_work(4, 0)),
    "Liger": Provider(liger, LIGER, cuda=True, work=dense_work(3, 8)),
    "Liger, 4096 rows": Provider(liger_large, LIGER, cuda=True, work=dense_work(3, 8)),
    "CCE": Provider(cce, CCE, cuda=True, work=dense_work(4, 0)),
    "CCE exact": Provider(partial(cce, filter_eps=None), CCE, cuda=True, work=dense_work(4, 0)),
    "QuACK": Provider(
        quack, "quack.linear_cross_entropy:chunked_linear_cross_entropy", cuda=True, work=dense_work(3, 0)
    ),
}
for backend in our_backends("linear_cross_entropy"):
    PROVIDERS |= ours(backend)
PROVIDERS[ACCURATE] = Provider(
    lambda inputs: linear_cross_entropy(*inputs[:3], gradient_error=ERROR), backend="cpp", sparse=True, cpu=True
)
CPU = (
    "eager",
    "eager scoring",
    "torch.compile",
    "torch.compile max-autotune",
    *(f"F.linear_cross_entropy, {rows} rows" for rows in CHUNKS),
    "TRL",
    "Liger",
    "mind_kernels exact",
    *(f"mind_kernels sparse 2^-{exponent}" for exponent in (12, *FINER)),
    ACCURATE,
    "mind_kernels scoring",
)
