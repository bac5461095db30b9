"""A few tokens through a model as it stands, which is left as it was found."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; its modes and the random states of CPU and GPU are as before
    afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices), torch.inference_mode(False):
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def probe_ids(model: Any, count: int) -> Tensor:
    """Random token ids (count,), int64 on the CPU, the same at every call; none that the model treats specially."""
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    special = torch.zeros(min(end.weight.shape[0] for end in ends if end is not None), dtype=torch.bool)
    for name, value in model.config.get_text_config().to_dict().items():
        if name.endswith("token_id"):
            special[[i for i in _ids(value) if 0 <= i < len(special)]] = True
    generator = torch.Generator().manual_seed(0)
    allowed = (~special).nonzero().flatten()
    return allowed[torch.randint(len(allowed), (count,), generator=generator)]


def _ids(value: Any) -> list[int]:
    return [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]


def without_cache(module: nn.Module) -> dict[str, Any]:
    """The argument that keeps a forward pass from filling a cache of keys, if the module knows it."""
    return {"use_cache": False} if accepts(module, "use_cache") else {}


def accepts(module: nn.Module, name: str) -> bool:
    """Whether the module's forward pass takes an argument of this name."""
    parameters = inspect.signature(module.forward).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def rounding(dtype: torch.dtype) -> float:
    """The relative error, at most, of two or three operations on the same states: 1e-4 for float32, 4e-3 for float16,
    0.03 for bfloat16."""
    return max(4 * torch.finfo(dtype).eps, 1e-4)
