"""GKD from hidden states takes the steps that TRL's takes from logits."""

from __future__ import annotations

import contextlib
import importlib

import pytest
import torch
from torch import nn
from trainers import distance

pytest.importorskip("trl", reason="trl is not installed (mind-kernels[test])")

import trl_runs
from trl.experimental.gkd import GKDConfig, GKDTrainer

from mind_kernels.integrations import trl_gkd
from mind_kernels.integrations.transformers import fuse
from mind_kernels.integrations.trl_gkd import FusedGKDTrainer

LLAMA = {"family": "llama", "hidden_size": 16, "seed": 1}


def gkd(folder, kind=GKDTrainer, student=(), teacher=(), peft_config=None, **training):
    arguments = GKDConfig(**trl_runs.options(folder, max_new_tokens=6, max_length=64, **{"lmbda": 0.0} | training))
    return kind(
        trl_runs.model(**dict(student)),
        trl_runs.model(**LLAMA | dict(teacher)).eval(),
        arguments,
        train_dataset=trl_runs.conversations(),
        eval_dataset=trl_runs.conversations(4),
        processing_class=trl_runs.tokenizer(),
        peft_config=peft_config,
    )


CAPPED = {"family": "gemma2", "final_logit_softcapping": 3.0}
CASES = {
    "jsd": {},
    "forward": {"beta": 0.0},
    "reverse": {"beta": 1.0},
    "skewed jsd": {"beta": 0.1},
    "on policy": {"lmbda": 1.0},
    "half on policy, warm": {"lmbda": 0.5, "temperature": 2.0},
    "sequences of the teacher": {"seq_kd": True},
    "no accumulation": {"gradient_accumulation_steps": 1},
    "checkpointing": {"gradient_checkpointing": True},
    "softcap of the student": {"student": CAPPED},
    "softcap of the teacher": {"teacher": CAPPED},
    "both with a softcap": {"student": CAPPED, "teacher": CAPPED | {"final_logit_softcapping": 5.0}, "beta": 1.0},
    "scales": {"student": {"family": "cohere", "logit_scale": 0.25}, "teacher": {"family": "granite"}},
    "another softcap's name": {"student": {"family": "recurrent_gemma"}},
    "bias of the teacher": {"teacher": {"family": "phi"}},
    "tied": {"student": {"tie_word_embeddings": True}},
    "experts": {"student": {"family": "mixtral", "output_router_logits": True, "router_aux_loss_coef": 0.5}},
    "LoRA": {"peft_config": {}},
    "LoRA and a copied head": {"peft_config": {"modules_to_save": ["lm_head"]}},
    "fused before": {"student": {"fused": True}, "teacher": {"fused": True}},
    "evaluation": {"eval_strategy": "steps", "eval_steps": 2},
}


def both(folder, **changes):
    if "peft_config" in changes:
        changes["peft_config"] = trl_runs.lora(**changes["peft_config"])
    no_context = contextlib.nullcontext()
    return [trl_runs.train(gkd, folder, no_context, kind=kind, **changes) for kind in (GKDTrainer, FusedGKDTrainer)]


@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_trl(tmp_path, record, case):
    expected, found = both(tmp_path, **CASES[case])
    loss, moved = distance(found.losses, expected.losses), distance(found.weights, expected.weights)
    record("trl", "2", f"gkd, {case}", loss=loss, weights=moved)
    assert loss <= 1e-6
    assert moved <= min(1e-6, 1e-2 * distance(expected.weights, expected.before))
    for own, ours in zip(expected.log, found.log, strict=True):
        assert ours == pytest.approx(own, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("training", [{"bf16": True}, {"dtype": torch.bfloat16}], ids=["autocast", "bfloat16"])
def test_half_precision_errs_no_more_than_trl(tmp_path, training):
    """Both against float32. TRL rounds the logits to bfloat16, and bfloat16 models take their softmax in it."""
    dtype = {name: value for name, value in training.items() if name == "dtype"}
    options = {name: value for name, value in training.items() if name != "dtype"}
    exact, _ = both(tmp_path)
    stock, found = both(tmp_path, student=dtype, teacher=dtype, **options)
    assert 1e-5 < distance(stock.losses, exact.losses) < 0.1
    assert distance(found.losses, exact.losses) <= 1.1 * distance(stock.losses, exact.losses)


def test_logits_only_when_they_are_wanted(tmp_path):
    results, shapes = [], []
    for kind in (GKDTrainer, FusedGKDTrainer):
        trainer = gkd(tmp_path, kind=kind)
        batch = next(iter(trainer.get_train_dataloader()))
        loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
        assert torch.equal(loss, trainer.compute_loss(trainer.model, batch))
        results.append((loss, outputs.logits, trainer.predict(trainer.eval_dataset).predictions))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-5, atol=1e-5)
    for each in (trainer.model, trainer.teacher_model):
        each.lm_head.register_forward_hook(lambda _, __, output: shapes.append(output.shape))
    trainer.compute_loss(trainer.model, batch)
    assert shapes == [(2, 0, 99)] * 2


def fails(*_):
    raise RuntimeError("before the model's forward pass")


def test_models_are_left_as_they_were(tmp_path):
    """After a step, and after one that fails in the wrapper, where TRL's redirection has changed the forward pass."""
    trainer = gkd(tmp_path, kind=FusedGKDTrainer)
    batch = next(iter(trainer.get_train_dataloader()))
    vars(trainer.model).pop("forward", None)  # which a trainer may have set
    expected = trainer.compute_loss(trainer.model, batch)
    handle = trainer.model.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="before the model's forward pass"):
        trainer.compute_loss(trainer.model, batch)
    handle.remove()
    for model in (trainer.model, trainer.teacher_model):
        assert "forward" not in vars(model)
        assert type(model.lm_head) is nn.Linear and "_fused_call" not in vars(model.lm_head)
    assert torch.equal(trainer.compute_loss(fuse(trainer.model), batch), expected)
    assert type(trainer.model.lm_head) is not nn.Linear


def test_a_head_that_is_called_twice_is_refused(tmp_path):
    trainer = gkd(tmp_path, kind=FusedGKDTrainer)
    batch = next(iter(trainer.get_train_dataloader()))

    def call_the_head(trunk, inputs, output):
        model.lm_head(output.last_hidden_state)

    for model in (trainer.model, trainer.teacher_model):
        handle = model.model.register_forward_hook(call_the_head)
        with pytest.raises(ValueError, match="the LM head was called twice in one forward pass: expected one call"):
            trainer.compute_loss(trainer.model, batch)
        handle.remove()


def test_the_divergence_by_its_definition(tmp_path):
    trainer = gkd(tmp_path, kind=FusedGKDTrainer, student=CAPPED, teacher={"family": "granite"}, beta=0.3)
    batch = next(iter(trainer.get_train_dataloader()))
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        q, p = (m(**given).logits[:, :-1].double().softmax(-1) for m in (trainer.model, trainer.teacher_model))
        found = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(7))
    m = 0.3 * p + 0.7 * q
    rows = (0.3 * p * (p / m).log() + 0.7 * q * (q / m).log()).sum(-1)
    expected = rows[batch["labels"][:, 1:] != -100].sum() / 7
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("items", [None, torch.tensor(0), torch.tensor(3)])
def test_no_label_at_all(tmp_path, items):
    """As with TRL: the loss may be nan, the gradient is zero."""
    for kind in (GKDTrainer, FusedGKDTrainer):
        trainer = gkd(tmp_path, kind=kind)
        batch = next(iter(trainer.get_train_dataloader()))
        batch["labels"].fill_(-100)
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=items)
        assert bool(loss.isnan()) == (items is not None and items == 0)
        loss.backward()
        assert not any(p.grad.any() for p in trainer.model.parameters() if p.grad is not None)


def test_refused(tmp_path):
    with pytest.raises(ValueError, match="PEFT adapter to `lm_head` is not supported"):  # by TRL
        gkd(tmp_path, kind=FusedGKDTrainer, peft_config=trl_runs.lora(target_modules=["q_proj", "lm_head"]))
    teacher = trl_runs.model(**LLAMA)
    teacher.lm_head.register_forward_hook(lambda _, __, output: output.square())
    with pytest.raises(ValueError, match="LlamaForCausalLM: its logits are not those of its head's inputs and weight"):
        FusedGKDTrainer(
            trl_runs.model(),
            teacher,
            GKDConfig(**trl_runs.options(tmp_path)),
            train_dataset=trl_runs.conversations(),
            processing_class=trl_runs.tokenizer(),
        )


def test_another_version_of_trl_is_refused(monkeypatch):
    monkeypatch.setattr(GKDTrainer, "compute_loss", lambda self, model, batch: None)
    with pytest.raises(ImportError, match=r"trl 1.*GKDTrainer.compute_loss takes self, model, batch: expected self, m"):
        importlib.reload(trl_gkd)
