"""Combines several LoRA adapters of one model into one: by weighted sums of their matrices, or of what they add to the
layers.

A LoRA adapter adds (alpha / r) B A to the weight of a layer. Adapters A_i, B_i of one rank r with weights w_i become

    lorahub  (alpha / r) (sum_i w_i B_i) (sum_i w_i A_i)    of rank r; it has products of one adapter's B, another's A
    exact    (alpha / r) sum_i w_i B_i A_i                  of rank N r
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mind.errors import require

Mix = Literal["lorahub", "exact"]


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The matrices of an adapter that peft's `save_pretrained` wrote, by the names that it uses; on the CPU.

    Raises MindError for a folder without them.
    """
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    require(file.is_file(), f"{folder}: holds no adapter: {file.name} is missing")
    return {name: matrix for name, matrix in load_file(file).items() if "lora_" in name}


def mixture(adapters: Sequence[Mapping[str, Tensor]], weights: Sequence[float], mix: Mix) -> dict[str, Tensor]:
    """The matrices of the combination of `adapters`.

    Args:
        adapters: N mappings from peft's names to matrices: "... lora_A.weight" (r, D_in) and "... lora_B.weight"
            (D_out, r), and of embeddings "... lora_embedding_A" and "... lora_embedding_B" likewise.
        weights: N numbers.
        mix: "lorahub" keeps the shapes; "exact" makes them (N r, D_in) and (D_out, N r).
    """

    def mixed(name: str) -> Tensor:
        matrices = [adapter[name] for adapter in adapters]
        if mix == "exact" and ("lora_A" in name or "lora_embedding_A" in name):
            return torch.cat(matrices, 0)
        parts = [weight * matrix for weight, matrix in zip(weights, matrices, strict=True)]
        return torch.cat(parts, 1) if mix == "exact" else torch.stack(parts).sum(0)

    return {name: mixed(name) for name in adapters[0]}


def widen_adapter(model: Any, count: int) -> None:
    """Replaces the model's adapter by a new one of `count` times the rank and the same scale alpha / r."""
    config = model.peft_config["default"]
    model.delete_adapter("default")
    model.add_adapter("default", dataclasses.replace(config, r=count * config.r, lora_alpha=count * config.lora_alpha))
    model.set_adapter("default")


def set_adapter(model: Any, matrices: Mapping[str, Tensor]) -> None:
    """Sets the matrices of the model's adapter, named as in `mixture`; they are divided among processes like its
    own."""
    from peft import set_peft_model_state_dict

    own = {name.replace(".default", ""): parameter for name, parameter in model.named_parameters()}
    result = set_peft_model_state_dict(model, {name: _like(own[name], each) for name, each in matrices.items()})
    assert not result.unexpected_keys, result.unexpected_keys


def _like(parameter: Any, matrix: Tensor) -> Tensor:
    """The matrix, or this process's share of it if the parameter is divided."""
    if not hasattr(parameter, "device_mesh"):
        return matrix
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(matrix.to(parameter.device, parameter.dtype), parameter.device_mesh, parameter.placements)
