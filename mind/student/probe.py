"""What the probes of a student share: a few tokens through the very model, which is left as it was found."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


def probe_ids(model: PreTrainedModel, count: int) -> Tensor:
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


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """The model without its LM head: what gives the last hidden states."""
    if model.base_model is not model:
        return model.base_model
    # A few classes misname their trunk: it is the part of them that is a model.
    return next((part for part in model.children() if hasattr(part, "get_input_embeddings")), model)


def trunk_states(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
    """Last hidden states (B, T, D) of a model's trunk, the final norm included."""
    trunk = trunk_of(model)
    return trunk(**inputs, **without_cache(trunk)).last_hidden_state


def without_cache(module: nn.Module) -> dict[str, Any]:
    """The argument that keeps a forward pass from filling a cache of keys, if the module knows it."""
    return {"use_cache": False} if accepts(module, "use_cache") else {}


def accepts(module: nn.Module, name: str) -> bool:
    """Whether the module's forward pass takes an argument of this name."""
    parameters = inspect.signature(module.forward).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def working_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of the products that made a floating tensor: autocast's where that is on."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def tolerance(dtype: torch.dtype) -> float:
    """The relative error below which two ways to the same states are the same: 7e-4 for float32, 0.06 for float16,
    0.18 for bfloat16. What is wrong is off by more; what rounding does is far below."""
    return 2 * torch.finfo(torch.float32 if dtype == torch.float64 else dtype).eps ** 0.5  # norms are in float32


def rounding(dtype: torch.dtype) -> float:
    """The relative error, at most, of two or three operations on the same states: 1e-4 for float32, 4e-3 for float16,
    0.03 for bfloat16."""
    return max(4 * torch.finfo(dtype).eps, 1e-4)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, Euclidean norms; nan where anything is."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def describe(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
