"""Recognizes weights by a digest that changes with them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mind.student.model import causal_lm


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits computed from the names, the shapes and every byte of the tensors.

    Sums of the numbers would not do: they stay the same if rows change places, and their last digits depend on the
    number of threads. SHA-256 reads 1.5 GB per second.
    """
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(values.shape)}{values.dtype}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def settings(model: Any) -> list[dict[str, Any]]:
    """The entries of config.json and generation_config.json that are not defaults, without those about the program that
    wrote them."""
    model = causal_lm(model)
    found = (model.config.to_diff_dict(), model.generation_config.to_diff_dict())
    notes = ("_name_or_path", "transformers_version")
    return [{name: str(some[name]) for name in sorted(some) if name not in notes} for some in found]
