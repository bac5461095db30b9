"""Runs a few tokens through a model and leaves the model unchanged."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PROBED_TOKENS = 9


@contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """A context in which the model is in evaluation mode; afterwards its modes and the random states of CPU and GPU are
    restored."""
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
    """Random token ids (count,), int64 on the CPU, the same in every call; special tokens of the model are left out."""
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    count_of_all = min(end.weight.shape[0] for end in ends if end is not None)
    special = torch.zeros(count_of_all, dtype=torch.bool, device="cpu")  # whatever the default device is
    for name, value in model.config.get_text_config().to_dict().items():
        if name.endswith("token_id"):
            special[[i for i in _ids(value) if 0 <= i < len(special)]] = True
    generator = torch.Generator("cpu").manual_seed(0)
    allowed = (~special).nonzero().flatten()
    return allowed[torch.randint(len(allowed), (count,), generator=generator, device="cpu")]


def _ids(value: Any) -> list[int]:
    return [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]


def without_cache(module: nn.Module) -> dict[str, Any]:
    """The argument that turns the key-value cache off, if the module's forward pass has it."""
    return {"use_cache": False} if accepts(module, "use_cache") else {}


def accepts(module: nn.Module, name: str) -> bool:
    """Whether the module's forward pass has an argument of this name."""
    parameters = inspect.signature(module.forward).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def rounding(dtype: torch.dtype) -> float:
    """The largest relative error to expect after two or three operations: 1e-4 for float32, 4e-3 for float16, 0.03 for
    bfloat16."""
    return max(4 * torch.finfo(dtype).eps, 1e-4)


def probe_outputs(model: Any, labels: Tensor | None = None) -> Any:
    """The model's output for a few tokens, in evaluation mode and without a gradient."""
    name = type(model).__name__
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            f"{name} has no data yet (meta device): pass condition=read_condition(small), small being a model with the "
            "same logit settings"
        )
    device = model.get_input_embeddings().weight.device
    given = {"input_ids": probe_ids(model, PROBED_TOKENS).to(device)[None], **without_cache(model)}
    if labels is not None:
        given["labels"] = labels.to(device)[None]
    if accepts(model, "return_dict"):
        given["return_dict"] = True
    try:
        with probing(model), torch.no_grad():
            return model(**given)
    except Exception as error:  # an error in the model's own code
        raise ValueError(f"{name}: a forward pass of {PROBED_TOKENS} tokens failed: {error}") from error


def unwrapped(model: Any) -> Any:
    """The transformers model inside the wrappers of torch.compile, data parallelism and PEFT."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(model, nn.Module) and hasattr(model, "module") and not hasattr(model, "config"):
            model = model.module
        else:
            return model


def lm_head(model: Any) -> nn.Module:
    """The LM head of a decoder; raises ValueError for a model without one."""
    name = type(model).__name__
    if isinstance(getattr(model, "module", None), nn.Module):  # FSDP's first version, DeepSpeed's engine
        raise ValueError(f"{name} has wrapped the model in a way that hides it: expected the model, before that")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(head, nn.Module):
        raise ValueError(f"{name} has no LM head: expected a causal language model of transformers")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder-decoder: expected a causal language model")
    return head
