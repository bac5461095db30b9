"""Weights known again: a digest that changes with them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mind.student.model import causal_lm


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits from the names, the shapes and every byte of the tensors.

    Not of their sums, which stay when rows change places and differ in the last digits from one number of threads to
    another. SHA-256 reads 1.5 GB a second.
    """
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(values.shape)}{values.dtype}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def settings(model: Any) -> list[dict[str, Any]]:
    """What config.json and generation_config.json say, but for defaults, and for who wrote them."""
    model = causal_lm(model)
    found = (model.config.to_diff_dict(), model.generation_config.to_diff_dict())
    notes = ("_name_or_path", "transformers_version")
    return [{name: str(some[name]) for name in sorted(some) if name not in notes} for some in found]
