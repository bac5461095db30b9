"""Finds the parts of a model that text does not reach, such as an image tower or attention to an encoder; they are not
trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mind_kernels.integrations.probe import probe_ids, probing, without_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LENGTHS = (9, 160)
"""Tokens of the two probe texts; the longer one is for parts that only longer texts reach."""


def parts_without_text(model: PreTrainedModel) -> list[str]:
    """The names of trained modules (the outermost possible) and parameters that the logits of a text do not
    depend on."""
    context: int = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _LENGTHS[-1]
    names: list[str] = []
    for length in _LENGTHS:
        ids = probe_ids(model, min(length, context)).to(model.device)[None]
        with probing(model), torch.enable_grad():
            logits: Any = model(input_ids=ids, **without_cache(model)).logits
        names = list(_without(model, "", _leaves(logits))) if logits.requires_grad else []
        if not names:
            break
    return names


def _without(module: nn.Module, name: str, reached: set[Tensor]) -> Iterator[str]:
    for key, child in module.named_children():
        parameters = [parameter for parameter in child.parameters() if parameter.requires_grad]
        if any(parameter in reached for parameter in parameters):
            yield from _without(child, f"{name}{key}.", reached)
        elif parameters:
            yield name + key
    own = module.named_parameters(recurse=False)
    yield from (name + key for key, parameter in own if parameter.requires_grad and parameter not in reached)


def _leaves(output: Tensor) -> set[Tensor]:
    """The parameters that `output` depends on."""
    nodes: list[Any] = [output.grad_fn]
    seen, leaves = set(nodes), set()
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        following = {other for other, _ in node.next_functions if other is not None} - seen
        seen |= following
        nodes += following
    return leaves
