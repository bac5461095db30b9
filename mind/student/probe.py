"""Helpers to probe a student: its trunk, the trunk's states, and the tolerance for comparing two ways to compute
them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mind_kernels.integrations.probe import without_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """The model without its LM head: the part that gives the last hidden states."""
    if model.base_model is not model:
        return model.base_model
    # A few classes give a wrong name for their trunk; then it is the part that is itself a model.
    return next((part for part in model.children() if hasattr(part, "get_input_embeddings")), model)


def trunk_states(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
    """Last hidden states (B, T, D) of a model's trunk, after the final norm."""
    trunk = trunk_of(model)
    return trunk(**inputs, **without_cache(trunk)).last_hidden_state


def working_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which a floating-point tensor was computed: that of autocast if it is on."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def tolerance(dtype: torch.dtype) -> float:
    """The relative error below which two ways to compute the same states agree: 7e-4 for float32, 0.06 for float16,
    0.18 for bfloat16. Real faults are larger; rounding errors are far smaller."""
    return 2 * torch.finfo(torch.float32 if dtype == torch.float64 else dtype).eps ** 0.5  # norms are in float32


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected| in Euclidean norms; nan if anything is nan."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())
