"""Tiny causal language models, adapters on them, and what a user does to a model before it is trained further."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mind_kernels.integrations.probe import lm_head, unwrapped
from mind_kernels.integrations.transformers import fuse, unfuse

VOCABULARY = 99  # of tests.mind.families
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"final_logit_softcapping": 3.0},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "phi": {},  # its head has a bias
    "gpt2": {},
    "mixtral": {"output_router_logits": True, "router_aux_loss_coef": 0.5},
    "qwen3": {},
    "gpt_neox": {},
    "bert-generation": {"is_decoder": True},
}
ON_TRUNK: dict[str, Any] = {"target_modules": "all-linear"}
ADAPTERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "of the trunk": lambda head: ON_TRUNK,
    "of the head": lambda head: {"target_modules": [head]},
    "of the head, with a bias": lambda head: {"target_modules": [head], "lora_bias": True},
    "of the head, whose bias is trained": lambda head: {"target_modules": [head], "bias": "all"},
    "of the head, scaled": lambda head: {"target_modules": [head], "use_rslora": True, "lora_alpha": 3, "r": 3},
    "a copied head": lambda head: ON_TRUNK | {"modules_to_save": [head]},
    "rows of the head": lambda head: ON_TRUNK | {"trainable_token_indices": {head: [3, 50]}},
}
"""Options of peft.LoraConfig, given the name of the head."""


@functools.cache
def base(family: str, tied: bool) -> Any:
    from tests.mind.families import build

    one_layer = {"num_hidden_layers": 1, "tie_word_embeddings": tied}
    model = build(family, **FAMILIES[family] | one_layer)
    model.set_experts_implementation("eager")  # the other ones have no float64
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def adapted(model: Any, adapter: str) -> Any:
    """The model with adapters on its trunk or its head, whatever that is called."""
    if adapter == "none":
        return model
    from peft import LoraConfig, get_peft_model

    (head,) = (name.rpartition(".")[2] for name, module in model.named_modules() if module is lm_head(model))
    options = {"r": 2, "task_type": "CAUSAL_LM", "init_lora_weights": False} | ADAPTERS[adapter](head)
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(**options))
    for parameter in model.parameters():
        if parameter.requires_grad:  # as if it had been trained
            nn.init.normal_(parameter, std=0.3 if parameter.dim() > 1 else 1.0)
    return model


def copied(model: Any) -> Any:
    return copy.deepcopy(model)


def asked(model: Any) -> Any:
    """Evaluated and asked for tokens, in between."""
    ids, was_training = torch.arange(3, 9)[None], model.training
    with torch.no_grad():
        model.eval()(input_ids=ids, labels=ids)
        model.generate(input_ids=ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
    return model.train(was_training)


def fused_anew(model: Any) -> Any:
    options = getattr(unwrapped(model), "_fused_options", None)
    if options is None:  # it is the stock model
        return model
    return fuse(unfuse(model), **options.loss, eval_logits=options.eval_logits)


def checkpointed(model: Any) -> Any:
    unwrapped(model).gradient_checkpointing_enable({"use_reentrant": False})
    return model


def frozen_head(model: Any) -> Any:
    lm_head(unwrapped(model)).requires_grad_(False)
    return model


def frozen_trunk(model: Any) -> Any:
    unwrapped(model).base_model.requires_grad_(False)
    return model


def resized(model: Any) -> Any:
    torch.manual_seed(1)
    unwrapped(model).resize_token_embeddings(VOCABULARY + 13)
    return model


def untied(model: Any) -> Any:
    head = lm_head(unwrapped(model))
    head.weight = nn.Parameter(head.weight.detach() * 1.5)
    return model


def merged(model: Any) -> Any:
    model.merge_adapter()
    return model


def disabled(model: Any) -> Any:
    model.base_model.disable_adapter_layers()
    return model


def enabled(model: Any) -> Any:
    model.base_model.enable_adapter_layers()
    return model


Change = Callable[[Any], Any]
ANY: tuple[Change, ...] = (copied, asked, fused_anew, checkpointed, frozen_head, frozen_trunk)
WITHOUT_ADAPTERS: tuple[Change, ...] = (*ANY, resized, untied)
WITH_ADAPTERS: tuple[Change, ...] = (*ANY, merged, disabled, enabled)


def changes_of(adapter: str) -> list[Change]:
    """Those that a model with this adapter stands."""
    every = WITHOUT_ADAPTERS if adapter == "none" else WITH_ADAPTERS
    cannot = {merged} if adapter == "of the head, with a bias" else {*()}  # PEFT has no place for that bias
    return [change for change in every if change not in cannot]
