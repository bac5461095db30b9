"""Models that are split over processes, as their users split them, and their gradients whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from trainers import make

FAMILIES = {"llama": {}, "qwen2": {"tie_word_embeddings": True}, "gemma2": {"final_logit_softcapping": 3.0}}
"""By name what is changed of each; the vocabulary of 99 divides into uneven shards."""


def save_models(folder: Path) -> None:
    """One random model of each family in float64, for from_pretrained. Its attention is not as sharp as that of `make`,
    which would magnify the rounding of any other order of sums."""
    for family, changes in FAMILIES.items():
        model = make(family, torch.float64, **changes)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "layers" in name and parameter.dim() > 1:
                    parameter /= 3
        model.save_pretrained(folder / family)


def load(folder: str, family: str, dtype: torch.dtype, **how: Any) -> Any:
    """The model of `save_models` in training mode; `how` goes to from_pretrained."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(f"{folder}/{family}", dtype=dtype, **how).train()


def batch_of(rank: int, rows: int = 2, length: int = 12) -> dict[str, Tensor]:
    """Sequences without padding, some of whose tokens have no label; positions are given, since a model whose
    hidden states are split over the sequence cannot count them."""
    generator = torch.Generator().manual_seed(rank)
    ids = torch.randint(3, 99, (rows, length), generator=generator)
    labels = ids.masked_fill(torch.rand(rows, length, generator=generator) < 0.3, -100)
    return {"input_ids": ids, "labels": labels, "position_ids": torch.arange(length)[None].expand(rows, length)}


def with_plan(model: Any, mesh: DeviceMesh, head: ColwiseParallel, *, sequence_parallel: bool = False) -> Any:
    """A Llama in tensor parallelism by PyTorch's own styles; with sequence parallelism its hidden states are split over
    the positions between attention and MLP, and in front of the LM head."""
    between = Shard(1) if sequence_parallel else Replicate()
    model = parallelize_module(
        model,
        mesh,
        {
            "model.embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=between),
            "lm_head": head,
            **({"model.norm": SequenceParallel()} if sequence_parallel else {}),
        },
    )
    gathered = {"input_kwarg_layouts": {"hidden_states": between}}
    for layer in model.model.layers:
        plan: dict[str, Any] = {
            **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ColwiseParallel()),
            **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), ColwiseParallel()),
            **dict.fromkeys(("self_attn.o_proj", "mlp.down_proj"), RowwiseParallel(output_layouts=between)),
        }
        if sequence_parallel:
            norm = SequenceParallel(use_local_output=True)
            plan |= {
                "input_layernorm": norm,
                "post_attention_layernorm": norm,
                "self_attn": PrepareModuleInput(
                    **gathered, desired_input_kwarg_layouts={"hidden_states": Replicate()}, use_local_output=True
                ),
                "mlp": PrepareModuleInput(
                    input_layouts=between, desired_input_layouts=Replicate(), use_local_output=True
                ),
            }
        parallelize_module(layer, mesh, plan)
    return model


def sharded(model: Any, mesh: DeviceMesh, *, head_apart: bool = False) -> Any:
    """By FSDP2, each layer by itself."""
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if head_apart:
        fully_shard(model.lm_head, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def mesh_of(**sizes: int) -> DeviceMesh:
    """A mesh of processes with CPUs, by the names of its dimensions."""
    return init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of all parameters, whole, by name; every process has to call it."""
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        gradient: Any = parameter.grad
        found[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return found


def of_one_process(model: Any, batches: list[dict[str, Tensor]]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The loss of each batch from the model's logits, in its own dtype, and the gradient of their mean."""
    losses = []
    for batch in batches:
        given = {name: value for name, value in batch.items() if name != "labels"}
        logits, target = model(**given).logits[:, :-1], batch["labels"][:, 1:]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        (loss / len(batches)).backward()
        losses.append(loss.detach())
    return losses, gradients(model)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], limit: float, case: str) -> None:
    """Every parameter's gradient is within `limit` of the expected one in norm. One that is zero but for rounding, as
    that of a key's bias, is measured by the others."""
    assert found.keys() == expected.keys(), case
    typical = torch.stack([gradient.norm() for gradient in expected.values()]).median()
    for name, gradient in expected.items():
        error = float((found[name] - gradient).norm() / torch.maximum(gradient.norm(), 0.1 * typical))
        assert error <= limit, f"{case}: {name} differs by {error:.1e}"
