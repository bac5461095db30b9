"""transformers' Trainer with a fused model takes the steps that it takes with the stock loss."""

from __future__ import annotations

import copy

import pytest
import torch
from trainers import Rows, arguments, distance, make, padded, train, weights
from transformers import DataCollatorWithFlattening, Trainer

from mind_kernels.integrations.transformers import fuse, unfuse

CASES = {
    "padding": ({}, {}),
    "packing": ({}, {"collate": DataCollatorWithFlattening()}),
    "no accumulation": ({}, {"gradient_accumulation_steps": 1}),
    "tied head": ({"tie_word_embeddings": True}, {}),
    "checkpointing": ({}, {"gradient_checkpointing": True}),
    "bias": ({"family": "phi"}, {}),
    "softcap": ({"family": "gemma2", "final_logit_softcapping": 3.0}, {}),
    "scale": ({"family": "granite", "logits_scaling": 4.0}, {}),
    "auxiliary loss": ({"family": "mixtral", "output_router_logits": True, "router_aux_loss_coef": 0.5}, {}),
    "state-space model": ({"family": "mamba"}, {"collate": padded}),
}


def check(record, case, found, expected, before):
    """That a run is the stock one, given losses and weights of both, and the weights before; it is recorded."""
    loss, moved = (distance(*pair) for pair in zip(found, expected, strict=True))
    record("transformers", "2", f"Trainer, {case}", loss=loss, weights=moved)
    assert loss <= 1e-6 and moved <= 1e-6
    assert distance(before, expected[1]) > 1e-3, "nothing was trained"


@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_the_stock_loss(tmp_path, record, case):
    options, training = CASES[case]
    stock = make(**options)
    fused = fuse(copy.deepcopy(stock))
    before = weights(stock)
    expected, found = (train(model, tmp_path, **training) for model in (stock, fused))
    check(record, case, found, expected, before)


def adapted(model, fuse_first, **options):
    """A fused model with adapters, whichever came first."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **options)
    torch.manual_seed(0)
    return peft.get_peft_model(fuse(model), config) if fuse_first else fuse(peft.get_peft_model(model, config))


ADAPTERS = {
    "of the trunk": {"target_modules": ["q_proj", "v_proj"]},
    "of the head": {"target_modules": ["q_proj", "lm_head"]},
    "of the head and a bias": {"target_modules": ["q_proj", "lm_head"], "lora_bias": True},
    "a copied head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("fuse_first", [True, False])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(tmp_path, record, name, fuse_first):
    model = adapted(make(), fuse_first, **ADAPTERS[name])
    stock = unfuse(copy.deepcopy(model))
    before = weights(stock)
    expected, found = (train(each, tmp_path, optim="sgd") for each in (stock, model))
    check(record, f"LoRA {name}, {'after' if fuse_first else 'before'} fuse", found, expected, before)
    head = model.get_base_model().get_output_embeddings()
    trained = [p for p in head.parameters() if p.requires_grad]
    assert all(p.grad is None for p in trained) and (bool(trained) == (name != "of the trunk"))  # zeroed by the Trainer


@pytest.mark.parametrize("training", [{"bf16": True}, {"dtype": torch.bfloat16}], ids=["autocast", "bfloat16"])
def test_half_precision_errs_no_more_than_the_stock_loss(tmp_path, training):
    """Both against float32: the losses are computed in float32 from products in bfloat16."""
    dtype = training.get("dtype", torch.float32)
    options = {name: value for name, value in training.items() if name != "dtype"}
    exact, _ = train(make(), tmp_path)
    stock, _ = train(make(dtype=dtype), tmp_path, **options)
    fused, _ = train(fuse(make(dtype=dtype)), tmp_path, **options)
    assert 1e-5 < distance(stock, exact) < 1e-2
    assert distance(fused, exact) <= 1.1 * distance(stock, exact)


def test_evaluation_has_logits_unless_they_are_not_wanted(tmp_path):
    model = make()
    results = []
    for each in (model, fuse(copy.deepcopy(model)), fuse(copy.deepcopy(model), eval_logits=False)):
        trainer = Trainer(each, arguments(tmp_path), data_collator=padded, eval_dataset=Rows(4))
        results.append((trainer.evaluate()["eval_loss"], trainer.predict(Rows(4)).predictions.shape))
    assert results[1] == (pytest.approx(results[0][0], rel=1e-6), results[0][1])
    assert results[2] == (pytest.approx(results[0][0], rel=1e-6), (4, 0, 99))
