"""MindTrainer: its loss and gradients against a plain computation of the paper's equations; accumulation; logging."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tiny import NAMES, build_model, build_questions, build_tokenizer

from mind.calibration import Calibrator
from mind.config import DataConfig, MetaNetConfig, MindConfig, ObjectiveConfig, StudentConfig, TrainConfig
from mind.errors import MindError
from mind.features import StudentEncoder, build_features
from mind.metanet import MetaNet
from mind.packing import tokenize
from mind.student import load_student
from mind.trainer import MindTrainer, last_checkpoint
from mind_kernels import sparse_gradient


def build_trainer(tmp_path, *, dtype=torch.float64, model=None, questions=None, metanet=None, objective=None, **train):
    tokenizer, questions = build_tokenizer(), questions or build_questions()
    model = (model or build_model()).to(dtype)
    config = MindConfig(
        output=str(tmp_path / "run"), data=DataConfig(perspectives=NAMES), student=StudentConfig(max_length=512),
        objective=objective or ObjectiveConfig(beta=0.97, consistency_weight=0.5),
        metanet=metanet or MetaNetConfig(width=16, accumulation=2, learning_rate=1e-2),
        train=TrainConfig(**{"questions_per_step": 3, "learning_rate": 1e-3, "max_steps": 4, "pack_length": 120,
                             "warmup_ratio": 0.0, "lr_scheduler": "constant"} | train))
    features = build_features(questions, NAMES, StudentEncoder(model, tokenizer, 200), tmp_path)
    torch.manual_seed(1)
    net = MetaNet(features.question.shape[1], len(NAMES), config.metanet.width, config.metanet.synergy_heads)
    calibrator = Calibrator(net, config.metanet, config.metanet_learning_rate)
    tokenized = tokenize(questions, tokenizer, NAMES, 512)
    return MindTrainer(model, config, tokenized, features, calibrator, tokenizer)


def plain_objective(model, questions, scores, config):
    """Section 3 and 4 of the method, one sequence at a time, no packing, no fusion: (mean L_total, L_real (Q, K))."""
    total, l_real = 0.0, torch.full((len(questions), len(NAMES)), math.nan, dtype=torch.float64)
    for q, question in enumerate(questions):
        losses, answers = {}, {}
        for k, ids in question.rationales.items():
            sequence = torch.tensor([*question.prompt, *ids, *question.suffix])
            logits = model(sequence[None]).logits[0, len(question.prompt) - 1:-1]
            losses[k] = F.cross_entropy(logits, sequence[len(question.prompt):])
            answers[k] = logits[-len(question.suffix):].softmax(-1)
            l_real[q, k] = losses[k].detach()
        best = max(scores[q, k] for k in losses)
        chosen = [k for k in losses if scores[q, k] >= config.beta * best]
        normaliser = sum(math.exp(scores[q, k] / config.tau_student) for k in chosen)
        alpha = {k: math.exp(scores[q, k] / config.tau_student) / normaliser for k in chosen}
        total = total + sum(alpha[k] * losses[k] for k in chosen)
        for i in chosen:
            for j in chosen:
                if i < j:
                    middle = (answers[i] + answers[j]) / 2
                    jsd = sum((p * (p.log() - middle.log())).sum(-1) for p in (answers[i], answers[j])) / 2
                    total = total + config.consistency_weight * alpha[i] * alpha[j] * jsd.mean()
    return total / len(questions), l_real


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("objective", [
    ObjectiveConfig(beta=0.97, consistency_weight=0.5),
    ObjectiveConfig(beta=1e-6, consistency_weight=2.0, tau_student=0.3),
    ObjectiveConfig(beta=1.0, consistency_weight=0.5),
    ObjectiveConfig(beta=0.9, consistency_weight=0.0, backend="reference"),
], ids=["some", "all", "one", "reference"])
def test_loss_and_gradients_are_the_equations(tmp_path, objective):
    trainer = build_trainer(tmp_path, objective=objective)
    plain = copy.deepcopy(trainer.model)
    questions = trainer.train_dataset
    batch = trainer._collate(questions)["batch"]
    with torch.no_grad():
        scores = trainer.calibrator.metanet(*trainer.question_features(batch))
    loss, terms = trainer.compute_loss(trainer.model, {"batch": batch}, return_outputs=True)
    loss.backward()
    expected, l_real = plain_objective(plain, questions, scores.double(), objective)
    expected.backward()
    assert relative(loss.detach(), expected.detach()) < 1e-6
    torch.testing.assert_close(terms.l_real, l_real, rtol=1e-6, atol=0, equal_nan=True)
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    for name, p in trainer.model.named_parameters():
        assert relative(p.grad, gradients[name]) < 1e-6, name


def test_sparse_gradient_reports_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sparse_gradient, "_DENSITY_LIMIT", {"cpu": 1.0})  # random rows would fall back
    monkeypatch.setattr(sparse_gradient, "_MASS_LIMIT", 1.0)
    losses, gradients, dropped = [], [], []
    for name, threshold in (("exact", None), ("sparse", 1e-3)):
        trainer = build_trainer(tmp_path / name, objective=ObjectiveConfig(gradient_threshold=threshold))
        loss = trainer.compute_loss(trainer.model, trainer._collate(trainer.train_dataset))
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
        dropped.append(trainer.meter.flush().get("dropped_mass"))
    torch.testing.assert_close(losses[1], losses[0])
    assert 0 < relative(gradients[1], gradients[0]) < 0.05
    assert dropped[0] is None and 0 < dropped[1] < 1


def test_selection_is_between_one_and_all(tmp_path):
    """The cases of the test above do select one, some and all: it would be vacuous otherwise."""
    sizes = {}
    for name, beta in (("one", 1.0), ("some", 0.97), ("all", 1e-6)):
        trainer = build_trainer(tmp_path / name, objective=ObjectiveConfig(beta=beta))
        trainer.compute_loss(trainer.model, trainer._collate(trainer.train_dataset))
        sizes[name] = trainer.meter.flush()["selected"]
    assert sizes["one"] == 1 and 1 < sizes["some"] < sizes["all"] == 16 / 6


def test_alpha_sends_no_gradient_to_metanet(tmp_path):
    trainer = build_trainer(tmp_path)
    batch = trainer._collate(trainer.train_dataset)["batch"]
    trainer.compute_loss(trainer.model, {"batch": batch}, num_items_in_batch=6)
    before = [p.grad.clone() for p in trainer.calibrator.metanet.parameters()]
    trainer.compute_loss(trainer.model, {"batch": batch}, num_items_in_batch=6).backward()
    for once, p in zip(before, trainer.calibrator.metanet.parameters(), strict=True):
        torch.testing.assert_close(p.grad, 2 * once)  # L_meta twice, and nothing from L_total's backward


def test_accumulation_does_not_change_the_gradient(tmp_path):
    """One pass over six questions is two passes over three, or six over one."""
    weights = []
    for size, accumulation in ((6, 1), (3, 2), (1, 6)):
        trainer = build_trainer(tmp_path / str(size), questions_per_step=size, gradient_accumulation=accumulation,
                                max_steps=1, metanet=MetaNetConfig(width=16, accumulation=100))
        trainer.args.save_strategy = "no"
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in build_model().double().parameters()])
    assert relative(weights[0], start) > 1e-4
    for other in weights[1:]:
        assert relative(other - start, weights[0] - start) < 1e-4


def test_training_lowers_the_loss_and_moves_metanet(tmp_path):
    trainer = build_trainer(tmp_path, dtype=torch.float32, max_steps=20, learning_rate=3e-3)
    before = copy.deepcopy(trainer.calibrator.metanet.state_dict())
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 20 and rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    for name in NAMES:
        assert rows[-1][f"l_real/{name}"] < rows[0][f"l_real/{name}"]
    assert {"sft_loss", "consistency", "jsd", "meta_loss", "accuracy", "entropy", "selected", "tokens_per_s",
            "peak_rss_mib", "meta_learning_rate", "grad_norm"} <= set(rows[0])
    assert any(not torch.equal(before[name], value) for name, value in trainer.calibrator.metanet.state_dict().items())


def test_a_checkpoint_is_a_plain_model(tmp_path):
    from transformers import AutoModelForCausalLM

    trainer = build_trainer(tmp_path, dtype=torch.float32, max_steps=2, save_steps=2)
    trainer.train()
    folder = last_checkpoint(tmp_path / "run")
    assert folder.name == "checkpoint-2" and (folder / "model.safetensors").exists()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for (name, p), q in zip(loaded.named_parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0, msg=name)
    (folder / "calibration.pt").unlink()
    assert last_checkpoint(tmp_path / "run") is None


def test_lora_trains_adapters_alone(tmp_path, model_folder):
    config = StudentConfig(model=str(model_folder), lora=True, lora_rank=2, lora_targets=("q_proj",))
    model, _ = load_student(config)
    trainer = build_trainer(tmp_path, dtype=torch.float32, model=model, max_steps=2, learning_rate=1e-2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p.detach(), before[name])}
    assert changed and all("lora" in name for name in changed)


def test_a_distributed_launch_is_refused(tmp_path, monkeypatch):
    from transformers import TrainingArguments

    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: 2))
    with pytest.raises(MindError, match="2 processes"):
        build_trainer(tmp_path)
