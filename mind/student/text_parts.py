"""Models of more than text: the parts that text does not reach, such as a tower for images, are not trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def parts_without_text(model: PreTrainedModel) -> list[str]:
    """The names of the parts of a composite model's trunk on none of whose parameters the logits of a text depend."""
    if model.config.get_text_config() is model.config:
        return []
    logits: Any = model(input_ids=torch.tensor([[0, 1]])).logits
    reached = _leaves(logits)
    return [
        f"{model.base_model_prefix}.{name}"
        for name, part in model.base_model.named_children()
        if list(part.parameters()) and not any(parameter in reached for parameter in part.parameters())
    ]


def _leaves(output: Tensor) -> set[Tensor]:
    """The parameters that `output` has a gradient for."""
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
