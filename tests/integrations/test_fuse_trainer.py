"""transformers' Trainer with a fused model takes the steps that it takes with the stock loss."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest
import torch
from torch import nn
from trainers import IGNORED, Rows, arguments, distance, make, padded, train, weights
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from mind_kernels.integrations.transformers import fuse

BY_LENGTH = (
    {"train_sampling_strategy": "group_by_length"}
    if "train_sampling_strategy" in TrainingArguments.__dataclass_fields__
    else {"group_by_length": True}  # transformers 5.0
)
CASES = {
    "padding": ({}, {}),
    "packing": ({}, {"collate": DataCollatorWithFlattening()}),
    "no accumulation": ({}, {"gradient_accumulation_steps": 1}),
    "tied head": ({"tie_word_embeddings": True}, {}),
    "checkpointing": ({}, {"gradient_checkpointing": True}),
    "checkpointing, reentrant": (
        {},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ),
    "compiled": ({"num_hidden_layers": 1}, {"torch_compile": True, "torch_compile_backend": "eager"}),
    "noise in the embeddings": ({}, {"neftune_noise_alpha": 5.0}),
    "the Trainer's label smoothing": ({}, {"label_smoothing_factor": 0.1}),
    "batches of equal lengths": ({}, BY_LENGTH),
    "bias": ({"family": "phi", "pad_token_id": 0}, {}),  # transformers 5.0 misses it
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
    if case == "state-space model" and "loss_function" not in inspect.getsource(type(stock).forward):
        pytest.skip("transformers 5.0: Mamba's loss is its own")
    fused = fuse(copy.deepcopy(stock))
    before = weights(stock)
    expected, found = (train(model, tmp_path, **training) for model in (stock, fused))
    check(record, case, found, expected, before)


def test_a_resumed_run_is_one_run(tmp_path):
    """And a checkpoint is that of the stock model."""
    runs = []
    for model in (fuse(make()), fuse(make()), make()):
        saving = {"save_strategy": "steps", "save_steps": 2} if not runs else {}
        trainer = Trainer(model, arguments(tmp_path, **saving), data_collator=padded, train_dataset=Rows())
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if runs else None)
        runs.append(weights(model))
    assert torch.equal(runs[0], runs[1])
    assert distance(runs[2], runs[0]) <= 1e-6


def adapted(model, **options):
    """A model with adapters, the same at every call."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **options)
    torch.manual_seed(0)
    return peft.get_peft_model(model, config)


ADAPTERS = {
    "of the trunk": {"target_modules": ["q_proj", "v_proj"]},
    "of the head": {"target_modules": ["q_proj", "lm_head"]},
    "of the head and a bias": {"target_modules": ["q_proj", "lm_head"], "lora_bias": True},
    "a copied head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("fuse_first", [True, False])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(tmp_path, record, name, fuse_first):
    options = ADAPTERS[name]
    stock = adapted(make(), **options)
    fused = adapted(fuse(make()), **options) if fuse_first else fuse(adapted(make(), **options))
    before = weights(stock)
    assert torch.equal(weights(fused), before)
    expected, found = (train(each, tmp_path, optim="sgd") for each in (stock, fused))
    check(record, f"LoRA {name}, {'after' if fuse_first else 'before'} fuse", found, expected, before)
    head = fused.get_base_model().get_output_embeddings()
    assert any(parameter.requires_grad for parameter in head.parameters()) == (name != "of the trunk")


@pytest.mark.parametrize("name", [None, "of the head"])
@pytest.mark.parametrize("training", [{"bf16": True}, {"dtype": torch.bfloat16}], ids=["autocast", "bfloat16"])
def test_half_precision_errs_no_more_than_the_stock_loss(tmp_path, training, name):
    """Both against float32: the losses are computed in float32 from products in bfloat16. Of an adapter on the head the
    fused loss rounds the weight that it adds up to, the stock one the logits. Rounding decides: of twelve models like
    this one the ratio of the errors was 0.6 to 1.3, around 1."""

    def of(dtype):
        return adapted(make(dtype=dtype), **ADAPTERS[name]) if name else make(dtype=dtype)

    dtype = training.get("dtype", torch.float32)
    options = {key: value for key, value in training.items() if key != "dtype"}
    exact, _ = train(of(torch.float32), tmp_path)
    stock, _ = train(of(dtype), tmp_path, **options)
    fused, _ = train(fuse(of(dtype)), tmp_path, **options)
    assert 1e-5 < distance(stock, exact) < 1e-2
    assert distance(fused, exact) <= 1.5 * distance(stock, exact)


def test_evaluation_has_logits_unless_they_are_not_wanted(tmp_path):
    model = make()
    results = []
    for each in (model, fuse(copy.deepcopy(model)), fuse(copy.deepcopy(model), eval_logits=False)):
        trainer = Trainer(each, arguments(tmp_path), data_collator=padded, eval_dataset=Rows(4))
        results.append((trainer.evaluate()["eval_loss"], trainer.predict(Rows(4)).predictions.shape))
    assert results[1] == (pytest.approx(results[0][0], rel=1e-6), results[0][1])
    assert results[2] == (pytest.approx(results[0][0], rel=1e-6), (4, 0, 99))


def in_batches_of_one_width(features):
    batch = padded(features)
    return {
        name: nn.functional.pad(value, (0, 20 - value.shape[1]), value=IGNORED * (name == "labels"))
        for name, value in batch.items()
    }


@pytest.mark.parametrize("options", [{}, {"eval_do_concat_batches": False}, {"bf16_full_eval": True}])
def test_metrics_are_those_of_the_stock_model(tmp_path, options):
    def metrics(given):
        predicted, labels = given.predictions, given.label_ids
        if "eval_do_concat_batches" in options:
            predicted, labels = np.concatenate(predicted), np.concatenate(labels)
        hit = predicted[:, :-1] == labels[:, 1:]
        return {"hits": int(hit.sum()), "tokens": int(predicted.sum()), "loss_of_batches": float(np.mean(given.losses))}

    results = []
    stock = make()
    for model in (stock, fuse(copy.deepcopy(stock))):
        trainer = Trainer(
            model,
            arguments(tmp_path, include_for_metrics=["loss"], **options),
            data_collator=in_batches_of_one_width,
            eval_dataset=Rows(6),
            compute_metrics=metrics,
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        )
        found = trainer.evaluate()
        results.append({name: found[f"eval_{name}"] for name in ("loss", "hits", "tokens", "loss_of_batches")})
    # In bfloat16 the stock model rounds its logits, each by up to 2^-9; the fused loss need not.
    close = 2e-4 if "bf16_full_eval" in options else 1e-6
    assert results[1] == pytest.approx(results[0], rel=close)
    assert results[0]["tokens"] > 0


def test_a_loss_function_of_the_trainer_gets_all_logits(tmp_path):
    """The Trainer takes the labels away from the model, which then is the stock model."""

    def own(outputs, labels, num_items_in_batch=None):
        return nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    trained = []
    for model in (make(), fuse(make())):
        Trainer(model, arguments(tmp_path), data_collator=padded, train_dataset=Rows(), compute_loss_func=own).train()
        trained.append(weights(model))
    assert torch.equal(*trained)
