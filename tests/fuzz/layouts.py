"""Random values in every memory layout that a tensor of a caller may have."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.fuzz.choices import Choices

LAYOUTS = ("contiguous", "offset", "rows apart", "elements apart", "transposed", "expanded")


def values(choices: Choices, generator: torch.Generator, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Normal numbers; now and then the rows are equal, which is what an expanded tensor can hold."""
    found = (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
    return found[:1].expand_as(found).contiguous() if len(shape) and shape[0] and choices.rarely(12) else found


def laid_out(choices: Choices, tensor: Tensor) -> Tensor:
    """The same values in another layout."""
    return in_layout(tensor, choices.among(LAYOUTS))


def in_layout(tensor: Tensor, layout: str) -> Tensor:
    if layout == "contiguous" or tensor.dim() == 0 or tensor.numel() == 0:
        return tensor.clone()
    if layout == "offset":
        return torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(tensor.shape)
    if layout == "rows apart":
        return torch.stack([tensor, tensor], 1)[:, 0]
    if layout == "elements apart":
        return torch.stack([tensor, tensor], -1)[..., 0]
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    assert layout == "expanded"
    is_one_row = tensor.dtype != torch.bool and bool((tensor == tensor[:1]).all())
    return tensor[:1].clone().expand_as(tensor) if is_one_row else tensor.clone()
