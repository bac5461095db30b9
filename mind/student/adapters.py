"""Handles PEFT's adapters: an adapter on the LM head becomes a part of its weight, and merging must not change the
student.

The losses use the head's weight, not its module, so an adapter on the head must be added to the weight, with its graph.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mind.display import listed
from mind.errors import MindError, require
from mind.student.probe import relative_error, tolerance
from mind_kernels.integrations.head import head_tensors, is_adapted


def linear_of(module: Any) -> tuple[Tensor, Tensor | None]:
    """The weight (V, D) and the bias (V,) or None of the LM head, with its adapters added, and with their graph.

    Raises MindError for a module that the losses do not support.
    """
    try:
        return head_tensors(module)
    except ValueError as error:
        raise MindError(str(error)) from error


def original(module: Any) -> Any:
    """The module inside PEFT's wrapper, or the module itself if it has none."""
    if not is_adapted(module):
        return module
    return original(module.get_base_layer() if hasattr(module, "get_base_layer") else module.original_module)


def merged(model: Any) -> Any:
    """The model with its adapters merged into its weights; the model itself if it has none.

    It computes the same as before. If its embeddings and its head are one matrix and one of the two has an adapter,
    they become two matrices, in the configuration too, and so does whatever else that setting ties.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    base = model.get_base_model()
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    adapted = any(map(is_adapted, ends))
    embeddings, head = map(original, ends)
    if adapted and head.weight is embeddings.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    base = model.merge_and_unload()
    if adapted:
        tied = base.get_input_embeddings().weight is base.get_output_embeddings().weight
        base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = tied
        if not tied:
            _untie(base)
    return base


def _untie(model: nn.Module) -> None:
    """Gives every parameter a single name: of several names, transformers would save one and fill the others at
    random."""
    seen = set()
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if parameter in seen:
            owner, _, key = name.rpartition(".")
            setattr(model.get_submodule(owner), key, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
        seen.add(parameter)


def check_adapters(model: Any) -> None:
    """Raises MindError for adapters whose training or merging would go wrong."""
    layers = [module for module in model.modules() if is_adapted(module)]
    if not hasattr(model, "merge_and_unload"):
        require(
            not hasattr(model, "get_base_model"),
            f"adapters of the kind {type(model).__name__} cannot be merged into the student: LoRA can",
        )
        require(
            not layers,
            "the student comes from a folder of adapters: merge them into their model first (peft: merge_and_unload)",
        )
    for layer in layers:
        if any(getattr(layer, "lora_bias", {}).values()) and layer.get_base_layer().bias is None:
            raise MindError(
                f"the adapter of a {type(layer.get_base_layer()).__name__} has a bias (lora_bias) and the layer has "
                "none to merge it into: set lora_bias to False"
            )
    for layer in {type(original(layer)): layer for layer in layers if hasattr(layer, "lora_A")}.values():
        _check_merging(layer)
    linear_of(getattr(model, "get_base_model", lambda: model)().get_output_embeddings())


def _check_merging(layer: Any) -> None:
    """Raises MindError if a layer with LoRA computes something else after merging, as an embedding does that normalizes
    its rows."""
    base = original(layer)
    if type(base) in (nn.Linear, nn.Embedding) or not isinstance(base, (nn.Linear, nn.Embedding)):
        return  # PEFT merges these by rules of its own
    with torch.random.fork_rng(), torch.no_grad():
        probe = copy.deepcopy(layer).eval()
        for name, parameter in probe.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.1)
        weight = base.weight
        lookup = isinstance(base, nn.Embedding)
        given = torch.arange(8) if lookup else torch.randn(4, layer.in_features, dtype=weight.dtype)
        apart = probe(given.to(weight.device))
        probe.merge()
        error = relative_error(probe(given.to(weight.device)), apart)
    require(
        error <= tolerance(weight.dtype),
        f"the adapter of {type(base).__name__} cannot be merged: that computes more than a product with its weight; "
        "leave it out of the adapters' target_modules",
    )


def check_gradients(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Raises a MindError with the names of trained parameters that got no gradient in a backward pass."""
    left = [name for name, parameter in named_parameters if parameter.requires_grad and parameter.grad is None]
    if left:
        raise MindError(
            f"parameters that take no part in the loss are to be trained: {listed(left)}; "
            "leave them out of the adapters' target_modules, or set their requires_grad to False"
        )
