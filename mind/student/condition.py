"""Finds out what a model does to hidden states and logits around its LM head, by probing the model itself.

Model families scale and bound their logits by settings with many names, before or after the head. Here the head is
replaced by one that returns known numbers; what the model makes of them shows softcap and temperature. Then the logits
that these predict are compared with the model's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mind.display import describe
from mind.errors import MindError
from mind.student.probe import relative_error, trunk_of, trunk_states, working_dtype
from mind_kernels import Head
from mind_kernels.integrations.condition import Condition as LogitCondition
from mind_kernels.integrations.condition import KnownOutputs
from mind_kernels.integrations.probe import accepts, probe_ids, probing, rounding, without_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 9


@dataclass(frozen=True)
class Condition:
    """What a model computes apart from trunk and head."""

    softcap: float | None
    """The bound of the logits, as in Head; None without one."""
    temperature: float
    """The number that the logits are divided by."""
    losses: tuple[float, float] | None
    """The model's own training loss on a few tokens, and the cross-entropy of its logits; None if it returns no
    loss."""


_conditions: WeakKeyDictionary[nn.Module, Condition] = WeakKeyDictionary()


def condition_of(model: PreTrainedModel, weight: Tensor, bias: Tensor | None) -> Condition:
    """Softcap and temperature of a model's head, whose weight (V, D) and bias (V,) are given; probed once per model.

    Raises MindError if the model does something else between its trunk and its logits, which the losses would miss.
    """
    if model not in _conditions:
        try:
            with probing(model), torch.no_grad():
                _conditions[model] = _probed(model, weight, bias)
        except MindError:
            raise
        except Exception as error:  # the model's own code may raise anything
            raise MindError(f"{type(model).__name__} cannot be trained: {describe(error)}") from error
    return _conditions[model]


def check_own_loss(model: PreTrainedModel) -> None:
    """Raises MindError for a model whose own training loss has more terms than the cross-entropy of its logits, such as
    the load balance of a mixture of experts: our training would leave them out.

    `condition_of` must have been called with the model before.
    """
    own, expected = _conditions[model].losses or (0.0, 0.0)
    if not abs(own - expected) <= 1e-5 * expected:
        raise MindError(
            f"{type(model).__name__}: its own training loss is {own:.4f} where the cross-entropy is {expected:.4f}, "
            "and MIND trains by the cross-entropy alone: to do so, turn the rest off in the student's config.json, "
            "for a mixture of experts by output_router_logits: false"
        )


def _probed(model: PreTrainedModel, weight: Tensor, bias: Tensor | None) -> Condition:
    name = type(model).__name__
    ids = probe_ids(model, _TOKENS).to(model.device)[None]
    hidden = trunk_states(model, {"input_ids": ids})
    if not hidden.isfinite().all():
        raise MindError(f"{name}: its hidden states are not finite")
    softcap, temperature = _read(model, ids, hidden, bias)
    labels = {"labels": ids} if accepts(model, "labels") else {}
    output = model(input_ids=ids, **labels, **without_cache(model))
    found = Head(weight, bias, softcap, temperature).logits(hidden)
    if found.shape != output.logits.shape:
        raise MindError(
            f"{name}: its logits are {tuple(output.logits.shape)}, those of trunk and head {tuple(found.shape)}"
        )
    error = relative_error(found, output.logits)
    if not error <= rounding(working_dtype(hidden)):
        raise MindError(
            f"{name}: its logits are not those of its trunk and head: they differ by {error:.2g} of their norm"
        )
    return Condition(softcap, temperature, _losses(output, ids[0]))


def _losses(output: Any, ids: Tensor) -> tuple[float, float] | None:
    if output.get("loss") is None:
        return None
    own, logits = float(output.loss), output.logits[0]
    # Most classes widen the logits first; decoders of encoder-decoder models expect labels that are shifted already.
    each = [
        float(nn.functional.cross_entropy(wide[: len(target)], target))
        for wide in (logits.float(), logits)
        for target in (ids[1:], ids)
    ]
    return own, min(each, key=lambda expected: abs(own - expected))


def _read(model: PreTrainedModel, ids: Tensor, hidden: Tensor, bias: Tensor | None) -> LogitCondition:
    """Softcap and temperature of a head whose input is the trunk's hidden states, unchanged."""
    head: Any = model.get_output_embeddings()
    name = type(model).__name__
    others = _others(model, head)
    with KnownOutputs(head) as known, torch.set_grad_enabled(bool(others)):
        logits = model(input_ids=ids, **without_cache(model)).logits
    if known.inputs is None:
        raise MindError(f"{name}: its logits do not come from the LM head that it names")
    if logits.requires_grad:
        with torch.enable_grad():
            gradients = torch.autograd.grad(logits.sum(), list(others.values()), allow_unused=True)
        used = [other for other, gradient in zip(others, gradients, strict=True) if gradient is not None]
        raise MindError(f"{name}: its logits depend on {', '.join(used)} beside trunk and LM head")
    scale = _scale_before(name, hidden, known.inputs, bias)
    try:
        return LogitCondition.of(logits).behind(scale)
    except ValueError as error:
        raise MindError(f"{name}: {error}") from error


def _others(model: PreTrainedModel, head: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters that belong neither to the trunk nor to the head, by name."""
    known = {id(p) for part in (trunk_of(model), head) for p in part.parameters()}
    return {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in known}


def _scale_before(name: str, hidden: Tensor, given: Tensor, bias: Tensor | None) -> float:
    """s > 0 if the head's input is s times the trunk's hidden states."""
    if given.shape == hidden.shape:
        wide, target = hidden.double(), given.double()
        scale = float((wide * target).sum() / wide.square().sum())
        if abs(scale - 1) < 1e-6:
            scale = 1.0
        folds = scale == 1.0 or (scale > 0 and bias is None)
        if folds and relative_error(scale * wide, target) <= rounding(working_dtype(hidden)):
            return scale
    raise MindError(f"{name}: it transforms the hidden states of its trunk before they reach the LM head")
