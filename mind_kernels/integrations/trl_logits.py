"""Checks that TRL computes the same logits as a model does.

TRL's trainers do not use the model's logits. They use the trunk's last hidden states and the weight of the LM head, and
softcap and scale from settings whose names they know. So models with differently named settings, with a layer between
trunk and head, or with a head that is more than its weight would silently be trained on wrong log-probabilities.
"""

from __future__ import annotations

import copy
import math
import threading
from typing import Any

import torch
from torch import Tensor, nn

from mind_kernels import Head
from mind_kernels.integrations.condition import Condition, KnownOutputs
from mind_kernels.integrations.head import active_module, head_tensors
from mind_kernels.integrations.probe import (
    PROBED_TOKENS,
    lm_head,
    probe_ids,
    probe_outputs,
    probing,
    rounding,
    unwrapped,
)

_REMEDY = "train it with transformers' Trainer and `fuse`, which reads them off the model"


def check_logits(model: nn.Module) -> None:
    """Raises ValueError unless the values that TRL passes to its loss reproduce the model's own logits.

    Runs three forward passes of a few tokens. Models whose data are not complete in this process (meta device, ZeRO-3,
    FSDP) are not checked, and neither are models that DeepSpeed or FSDP has wrapped.
    """
    model = unwrapped(model)
    elsewhere = any(p.is_meta or hasattr(p, "ds_id") or hasattr(p, "full_tensor") for p in model.parameters())
    if elsewhere or hasattr(model, "module"):  # a wrapper that forwards its model's attributes
        return
    name = type(model).__name__
    alike = copy.copy(model)
    vars(alike).pop("forward", None)  # those of TRL and accelerate, which may round under autocast
    with KnownOutputs(active_module(lm_head(alike))) as known:
        logits = probe_outputs(alike).logits
    logits_of_its_own = probe_outputs(alike).logits[:, :-1].flatten(0, -2)
    hidden, taken = _taken_by_trl(alike)
    try:
        own = Condition.of(logits)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    given = None if known.inputs is None else known.inputs[:, :-1].flatten(0, -2)
    factor = _factor(given, hidden)
    if factor is None:
        raise ValueError(
            f"{name}: TRL computes its logits from the last hidden states, and the model's LM head is given others: "
            f"{_REMEDY}"
        )
    own = own.behind(factor)
    if not torch.allclose(_numbers(taken), _numbers(own), rtol=1e-3):
        raise ValueError(
            f"{name}: TRL computes its logits with {_words(taken)}, the model with {_words(own)}: {_REMEDY}"
        )
    check_head(alike, hidden, taken, logits_of_its_own)


def check_head(
    model: Any,
    hidden: Tensor,  # (..., D)
    condition: Condition,
    logits: Tensor,  # (..., V)
) -> None:
    """Raises ValueError unless softcap, temperature and the weight of the model's LM head reproduce `logits` from
    `hidden`."""
    name = type(model).__name__
    try:
        weight, bias = head_tensors(lm_head(model))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    with torch.no_grad():
        found = Head(weight, bias, *condition).logits(hidden.to(weight.dtype))
    if found.shape != logits.shape:
        raise ValueError(f"{name}: {logits.shape[-1]} logits per token: expected {found.shape[-1]}, as its LM head")
    error = (found - logits.to(found)).abs().max()
    if not error <= rounding(torch.bfloat16) * logits.abs().max():  # to which accelerate's autocast may round
        raise ValueError(
            f"{name}: its logits are not those of its head's inputs and weight, by up to {error:g}: expected an LM "
            "head that is one linear layer, without hooks that change its outputs"
        )


def _factor(given: Tensor | None, hidden: Tensor) -> float | None:
    """The number by which the hidden states have to be multiplied to get the head's inputs; None if there is none."""
    if given is None or given.shape != hidden.shape:
        return None
    factor = float((given.float() * hidden.float()).sum() / hidden.float().square().sum())
    close = max(rounding(given.dtype), rounding(hidden.dtype))
    alike = torch.allclose(given.float(), factor * hidden.float(), rtol=close, atol=close)
    return factor if factor > 0 and alike else None


def _taken_by_trl(model: Any) -> tuple[Tensor, Condition]:
    """The hidden states of a few tokens, and the softcap and temperature, that TRL passes to its function for a model;
    replaces the model's forward pass by TRL's."""
    from trl.trainer import utils as module

    utils: Any = module
    function, calls, here = utils._ChunkedLogProbFunction, [], threading.get_ident()

    class Recorder:
        @staticmethod
        def apply(*arguments: Any) -> Any:
            if threading.get_ident() == here:  # another trainer may train in another thread
                calls.append(arguments)
            return function.apply(*arguments)

    utils.add_fused_lm_head(model)
    ids = probe_ids(model, PROBED_TOKENS).to(model.get_input_embeddings().weight.device)[None]
    utils._ChunkedLogProbFunction = Recorder
    try:
        with probing(model), torch.no_grad():
            model(input_ids=ids, labels=ids, fused_lm_head=True)
    finally:
        utils._ChunkedLogProbFunction = function
    if len(calls) != 1:
        raise ValueError(
            f"{type(model).__name__}: TRL called its log-probabilities {len(calls)} times in one forward pass: "
            f"expected one call; {_REMEDY}"
        )
    hidden, *_, softcap, scale, _ = calls[0]
    return hidden, Condition(None if softcap is None else softcap / scale, 1 / scale)


def _numbers(condition: Condition) -> Tensor:
    return torch.tensor([condition.softcap or math.inf, condition.temperature])


def _words(condition: Condition) -> str:
    scale = 1 / condition.temperature
    softcap = "no softcap" if condition.softcap is None else f"softcap {condition.softcap * scale:g}"
    return f"scale {scale:g} and {softcap}"
