"""What happens to a model after `fuse`: it stays right, or the next call with labels says why not."""

from __future__ import annotations

import copy

import pytest
import torch
from test_fuse import BATCH, assert_as_stock
from torch import nn
from trainers import VOCABULARY, make

from mind_kernels.integrations.transformers import fuse

WIDTH = 32


def pair(**changes):
    """The same model, stock and fused."""
    stock = make(**changes)
    return stock, fuse(copy.deepcopy(stock))


def resized(model):
    model.resize_token_embeddings(VOCABULARY + 21)


def smaller(model):
    model.resize_token_embeddings(VOCABULARY - 1)


def tied(model):
    model.lm_head.weight = model.model.embed_tokens.weight


def untied(model):
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 1.1)


def another_head(model):
    model.set_output_embeddings(nn.Linear(WIDTH, VOCABULARY, bias=True))


def head_without_gradient(model):
    model.lm_head.requires_grad_(False)


def trunk_without_gradient(model):
    model.model.requires_grad_(False)


def normalized_head(model):
    nn.utils.parametrizations.weight_norm(model.lm_head)


def scaled_inputs(model):
    model.lm_head.register_forward_pre_hook(lambda head, inputs: (inputs[0] * 0.5,))


def checkpointed(model):
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()


CHANGES = [
    resized,
    smaller,
    tied,
    untied,
    another_head,
    head_without_gradient,
    trunk_without_gradient,
    normalized_head,
    scaled_inputs,
    checkpointed,
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_that_stay_right(change):
    models = pair(tie_word_embeddings=change is untied)
    for model in models:
        torch.manual_seed(1)
        change(model)
    stock, fused = models
    batch = {name: BATCH[name].clamp(max=VOCABULARY - 2) for name in ("input_ids", "labels")}
    assert_as_stock(fused, stock, **batch)
    assert fused(**BATCH | batch).logits.shape == (4, 0, stock.lm_head.weight.shape[0])


class Capped(nn.Linear):
    def forward(self, hidden):
        return 2 * super().forward(hidden).tanh()


def test_another_kind_of_head_is_refused():
    """Its logits were not looked at when the model was fused."""
    fused = fuse(make())
    fused.set_output_embeddings(Capped(WIDTH, VOCABULARY))
    with pytest.raises(ValueError, match=r"the LM head is a .*Capped: expected an nn.Linear, with its forward pass"):
        fused(**BATCH)
    other = make()
    other.lm_head = Capped(WIDTH, VOCABULARY)
    with pytest.raises(ValueError, match=r"the LM head is a .*Capped: expected an nn.Linear, with its forward pass"):
        fuse(other)


def test_another_loss_is_refused():
    fused = fuse(make())
    with pytest.raises(ValueError, match="LlamaForCausalLM is fused, and would not call another loss_function"):
        fused.loss_function = nn.functional.cross_entropy
    with pytest.raises(ValueError, match="ignore_index is 5: a fused model ignores labels of -100"):
        fused(**BATCH, ignore_index=5)
    other = make()
    other.loss_function = lambda logits, labels, vocab_size, **_: logits.square().mean()
    with pytest.raises(ValueError, match="LlamaForCausalLM: its own loss of 9 tokens is"):
        fuse(other)


def test_adapters_per_row_of_the_head_are_refused():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(fuse(make()), config).eval()
    with pytest.raises(ValueError, match="the LM head was given adapter_names beside hidden states: unfuse"):
        model(**BATCH, adapter_names=["default", "__base__"] * 2)
