"""The students that take the step, and the optimizer that they take it with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEARNING_RATE = 1e-6  # so small that a step taken many times over stays the step that was judged
SMOLLM2, RANDOM = "SmolLM2-135M", "Qwen2.5-1.5B-random"


# The shape of Qwen2.5-1.5B.
QWEN: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
}


@dataclass(frozen=True)
class Student:
    """A model in training mode, every weight of it trained by AdamW, whose state is there from the start."""

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer


def smollm2(dtype: torch.dtype, device: str) -> PreTrainedModel:
    from mind.config import StudentConfig
    from mind.student.model import load_student

    names: dict[torch.dtype, Literal["float32", "bfloat16"]] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
    model, _ = load_student(StudentConfig(dtype=names[dtype]))
    cast(nn.Module, model).to(device)
    return model


def random_qwen(dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The shape of Qwen2.5-1.5B, which costs what the trained model costs; its distributions are all but uniform."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        **QWEN,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


MODELS = {SMOLLM2: smollm2, RANDOM: random_qwen}


def build_student(name: str, dtype: torch.dtype, device: str) -> Student:
    model = MODELS[name](dtype, device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # changes no weight, and makes the state
    optimizer.zero_grad(set_to_none=True)
    return Student(model, optimizer)
