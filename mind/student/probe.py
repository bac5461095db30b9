"""What the probes of a student share: its trunk's states, and how two ways to them are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mind_kernels.integrations.probe import without_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


def working_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of the products that made a floating tensor: autocast's where that is on."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def tolerance(dtype: torch.dtype) -> float:
    """The relative error below which two ways to the same states are the same: 7e-4 for float32, 0.06 for float16,
    0.18 for bfloat16. What is wrong is off by more; what rounding does is far below."""
    return 2 * torch.finfo(torch.float32 if dtype == torch.float64 else dtype).eps ** 0.5  # norms are in float32


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, Euclidean norms; nan where anything is."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())
