"""MethodTrainer: loss and gradients of MIND and SFT against a plain computation of their equations; logging."""

from __future__ import annotations

import copy
import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from tiny import NAMES, build_family, build_model, build_questions, build_tokenizer

from mind.batches.packing import present_rationales
from mind.batches.prompt_sharing import use_attention
from mind.config import (
    DataConfig,
    MetaNetConfig,
    MethodOptions,
    MindConfig,
    ObjectiveConfig,
    StudentConfig,
    TrainConfig,
)
from mind.methods import METHODS
from mind.methods.method import MethodContext
from mind.methods.mind.calibration import meta_loss
from mind.methods.mind.objective import select
from mind.run.trainer import MethodTrainer
from mind_kernels import sparse_gradient


def build_trainer(
    tmp_path,
    *,
    method="mind",
    dtype=torch.float64,
    model=None,
    questions=None,
    metanet=None,
    objective=None,
    attention="auto",
    own=None,
    **train,
):
    tokenizer, questions = build_tokenizer(), questions or build_questions()
    model = (model or build_model()).to(dtype)
    config = MindConfig(
        output=str(tmp_path / "run"),
        method=method,
        options=own or MethodOptions(),
        data=DataConfig(perspectives=NAMES),
        student=StudentConfig(max_length=512, attention=attention),
        objective=objective or ObjectiveConfig(beta=0.97, consistency_weight=0.5),
        metanet=metanet or MetaNetConfig(width=16, accumulation=2, learning_rate=1e-2),
        train=TrainConfig(
            **{
                "questions_per_step": 3,
                "learning_rate": 1e-3,
                "max_steps": 4,
                "pack_length": 120,
                "warmup_ratio": 0.0,
                "lr_scheduler": "constant",
            }
            | train
        ),
    )
    context = MethodContext.build(config, model, tokenizer, questions, method=METHODS[method])
    return MethodTrainer(context, METHODS[method](context))


def plain_weights(trainer, questions):
    """Section 3 of the method for MIND, 1/K_q for SFT: {k: weight} of each question."""
    if trainer.context.config.method == "sft":
        return [dict.fromkeys(question.rationales, 1 / len(question.rationales)) for question in questions]
    config, weights = trainer.context.config.objective, []
    for question, scores in zip(questions, scores_of(trainer, questions).double().tolist(), strict=True):
        best = max(scores[k] for k in question.rationales)
        anchored = {k: scores[k] - best + 1 for k in question.rationales}  # their largest is 1
        exponential = {k: math.exp(s / config.tau_student) for k, s in anchored.items() if s >= config.beta}
        weights.append({k: value / sum(exponential.values()) for k, value in exponential.items()})
    return weights


def plain_objective(model, questions, weights, consistency_weight):
    """Section 4 of the method, one sequence at a time, no packing, no fusion: (mean L_total, L_real (Q, K))."""
    total, l_real = 0.0, torch.full((len(questions), len(NAMES)), math.nan, dtype=torch.float64)
    for q, (question, alpha) in enumerate(zip(questions, weights, strict=True)):
        losses, answers = {}, {}
        for k, ids in question.rationales.items():
            sequence = torch.tensor([*question.prompt, *ids, *question.suffix])
            logits = model(sequence[None]).logits[0, len(question.prompt) - 1 : -1]
            losses[k] = F.cross_entropy(logits, sequence[len(question.prompt) :])
            answers[k] = logits[-len(question.suffix) :].softmax(-1)
            l_real[q, k] = losses[k].detach()
        total = total + sum(alpha[k] * losses[k] for k in alpha)
        for i, j in itertools.combinations(alpha, 2):
            middle = (answers[i] + answers[j]) / 2
            jsd = sum((p * (p.log() - middle.log())).sum(-1) for p in (answers[i], answers[j])) / 2
            total = total + consistency_weight * alpha[i] * alpha[j] * jsd.mean()
    return total / len(questions), l_real


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


OBJECTIVES = {
    "some": ObjectiveConfig(beta=0.97, consistency_weight=0.5),
    "all": ObjectiveConfig(beta=1e-6, consistency_weight=2.0, tau_student=0.3),
    "one": ObjectiveConfig(beta=1.0, consistency_weight=0.5),
    "reference": ObjectiveConfig(beta=0.9, consistency_weight=0.0, backend="reference"),
}


def step(trainer, questions=None):
    """One training step on all questions, or on some, as `train` takes it: (loss, gradients)."""
    with use_attention(trainer.context.model, trainer.context.attention):
        loss = trainer.training_step(trainer.model, {"questions": questions or every_question(trainer)})
    return loss, {name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad}


def every_question(trainer):
    return list({question.id: question for step in trainer.train_dataset for question in step}.values())


def scores_of(trainer, questions):
    with torch.no_grad():
        return trainer.method.scorer.scores(questions, present_rationales(questions, 3))


def record_steps(trainer):
    """The (plan, L_real) that the method is told at the end of each step."""
    seen, finish_step = [], trainer.method.finish_step

    def record(plan, totals, l_real):
        seen.append((plan, l_real))
        return finish_step(plan, totals, l_real)

    trainer.method.finish_step = record
    return seen


def check_against_the_equations(trainer, tolerance=1e-6):
    """One step of the trainer gives the loss, L_real and gradients of `plain_objective`."""
    plain = copy.deepcopy(trainer.model)
    questions, config = every_question(trainer), trainer.context.config
    weights = plain_weights(trainer, questions)
    seen = record_steps(trainer)
    loss, gradients = step(trainer, questions)
    consistency_weight = 0.0 if config.method == "sft" else config.objective.consistency_weight
    expected, l_real = plain_objective(plain, questions, weights, consistency_weight)
    expected.backward()
    assert relative(loss, expected.detach()) < tolerance
    ((_, found),) = seen
    torch.testing.assert_close(found, l_real, rtol=max(tolerance, 1e-6), atol=0, equal_nan=True)
    for name, p in plain.named_parameters():
        assert relative(gradients[name], p.grad) < tolerance, name


@pytest.mark.parametrize("share_prompts", ["always", "never"])
@pytest.mark.parametrize("pack_length", [75, 300, 2000])
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_loss_and_gradients_are_the_equations(tmp_path, objective, pack_length, share_prompts):
    check_against_the_equations(
        build_trainer(tmp_path, objective=OBJECTIVES[objective], pack_length=pack_length, share_prompts=share_prompts)
    )


@pytest.mark.parametrize(("share_prompts", "pack_length"), [("always", 75), ("never", 300), ("always", 2000)])
def test_sft_trains_on_every_rationale_alike(tmp_path, share_prompts, pack_length):
    trainer = build_trainer(tmp_path, method="sft", pack_length=pack_length, share_prompts=share_prompts)
    check_against_the_equations(trainer)
    row = trainer.meter.flush()
    assert row["work"]["observed"] == 0 and set(row["l_real"]) == set(NAMES)
    assert not set(row) & {"sft_loss", "consistency", "meta_loss", "selected", "alpha"}
    assert trainer.method.networks() == trainer.method.state_dict() == {}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
def test_every_family_takes_the_naive_step(tmp_path, family, dtype, tolerance):
    """Shared prompts, backward for the selected alone: the loss and gradients of one sequence after another."""
    objective = ObjectiveConfig(beta=0.97, consistency_weight=0.5)
    check_against_the_equations(
        build_trainer(
            tmp_path,
            dtype=dtype,
            model=build_family(family),
            objective=objective,
            pack_length=300,
            share_prompts="always",
        ),
        tolerance,
    )


@pytest.mark.parametrize("option", ["gradient_checkpointing", "compile"])
def test_the_trunk_may_be_checkpointed_or_compiled(tmp_path, option, monkeypatch):
    trainer = build_trainer(tmp_path, share_prompts="always", pack_length=300, **{option: True})
    if option == "gradient_checkpointing":
        trainer.model.gradient_checkpointing_enable()  # what Trainer.train does with the argument
        assert trainer.args.gradient_checkpointing
    trunk = trainer.model.base_model
    # Traced like any backend's graphs; to generate code for them would take a minute and test PyTorch.
    monkeypatch.setattr(trunk, "compile", functools.partial(trunk.compile, backend="aot_eager"))
    with trainer.compiled_trunk():
        assert (trunk._compiled_call_impl is not None) == (option == "compile")
        check_against_the_equations(trainer)
    assert trunk._compiled_call_impl is None


def test_bf16_autocast_trains_the_same_way(tmp_path):
    losses, gradients = [], []
    for name, bf16 in (("float32", False), ("bf16", True)):
        trainer = build_trainer(tmp_path / name, dtype=torch.float32, bf16=bf16, pack_length=300)
        seen = set()
        trainer.model.base_model.layers[0].mlp.register_forward_hook(lambda *args, seen=seen: seen.add(args[2].dtype))
        loss, each = step(trainer)
        assert seen == {torch.bfloat16 if bf16 else torch.float32}
        losses.append(loss)
        gradients.append(torch.cat([gradient.flatten() for gradient in each.values()]))
    assert 0 < relative(losses[1], losses[0]) < 1e-2
    assert 0 < relative(gradients[1], gradients[0]) < 5e-2


def test_work_outside_the_selection_has_no_backward(tmp_path):
    """The trunk records a graph for the selected rationales and their prompts, and for nothing else."""
    trainer = build_trainer(tmp_path, share_prompts="always", pack_length=300)
    questions = every_question(trainer)
    present = present_rationales(questions, 3)
    selected, _ = select(scores_of(trainer, questions), present, 0.97, 1.0)
    tokens = {True: 0, False: 0}

    def count(module, args, kwargs, output):
        tokens[output.last_hidden_state.requires_grad] += kwargs["input_ids"].numel()

    trainer.model.base_model.register_forward_hook(count, with_kwargs=True)
    step(trainer, questions)
    assert 0 < int(selected.sum()) < int(present.sum())

    def cost(chosen):
        return sum(
            len(q.prompt) * bool(row.any())
            + sum(len(q.rationales[k]) + len(q.suffix) for k in row.nonzero().flatten().tolist())
            for q, row in zip(questions, chosen, strict=True)
        )

    assert tokens == {True: cost(selected), False: cost(present & ~selected)}
    sequences = [len(q.prompt) + len(ids) + len(q.suffix) for q in questions for ids in q.rationales.values()]
    assert trainer.meter.flush()["work"] == {
        "padded": len(sequences) * max(sequences),
        "packed": sum(sequences),
        "shared": cost(present),
        "trained": tokens[True],
        "observed": tokens[False],
    }


@pytest.mark.parametrize(
    ("feedback", "observed"), [("all", [1, 1, 1, 1]), ("selected", [0, 0, 0, 0]), ("every-2", [1, 0, 1, 0])]
)
def test_feedback_says_when_the_rest_is_observed(tmp_path, feedback, observed):
    trainer = build_trainer(tmp_path, metanet=MetaNetConfig(width=16, feedback=feedback), dtype=torch.float32)
    seen = record_steps(trainer)
    trainer.train()
    assert [int(torch.equal(~l_real.isnan(), plan.present)) for plan, l_real in seen] == observed
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [int(row["work/observed"] > 0) for row in rows] == observed


def test_sparse_gradient_reports_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sparse_gradient, "_DENSITY_LIMIT", {"cpu": 1.0})  # random rows would fall back
    monkeypatch.setattr(sparse_gradient, "_MASS_LIMIT", 1.0)
    losses, gradients, dropped = [], [], []
    for name, threshold in (("exact", None), ("sparse", 1e-3)):
        trainer = build_trainer(tmp_path / name, objective=ObjectiveConfig(gradient_threshold=threshold))
        loss, each = step(trainer)
        losses.append(loss)
        gradients.append(torch.cat([gradient.flatten() for gradient in each.values()]))
        dropped.append(trainer.meter.flush()["dropped_mass"])
    torch.testing.assert_close(losses[1], losses[0])
    assert 0 < relative(gradients[1], gradients[0]) < 0.05
    assert dropped[0] == 0 and 0 < dropped[1] < 1


def test_selection_is_between_one_and_all(tmp_path):
    """The cases of the tests above do select one, some and all: they would be vacuous otherwise."""
    sizes = {}
    for name, beta in (("one", 1.0), ("some", 0.97), ("all", 1e-6)):
        trainer = build_trainer(tmp_path / name, objective=ObjectiveConfig(beta=beta))
        step(trainer)
        sizes[name] = trainer.meter.flush()["selected"]
    assert sizes["one"] == 1 and 1 < sizes["some"] < sizes["all"] == 16 / 6


def test_metanet_learns_from_the_meta_loss_alone(tmp_path):
    """alpha is detached: nothing of the student's backward reaches MetaNet."""
    trainer = build_trainer(tmp_path, metanet=MetaNetConfig(width=16, accumulation=100))
    questions, metanet = every_question(trainer), trainer.method.scorer.calibrator.metanet
    scores = trainer.method.scorer.scores(questions, present_rationales(questions, 3))
    _, l_real = plain_objective(copy.deepcopy(trainer.model), questions, plain_weights(trainer, questions), 0.5)
    variances = [known.var(correction=0) for row in l_real if len(known := row[~row.isnan()]) > 1]
    unit = 0.25 / torch.stack(variances).mean().sqrt()
    loss = meta_loss(scores, unit * l_real, ~l_real.isnan(), 1.0)
    expected = torch.autograd.grad(loss, list(metanet.parameters()))
    step(trainer, questions)
    for p, gradient in zip(metanet.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-9)


def test_training_lowers_the_loss_and_moves_metanet(tmp_path):
    trainer = build_trainer(tmp_path, dtype=torch.float32, max_steps=20, learning_rate=3e-3)
    before = copy.deepcopy(trainer.method.scorer.calibrator.metanet.state_dict())
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 20 and rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    for name in NAMES:
        assert rows[-1][f"l_real/{name}"] < rows[0][f"l_real/{name}"]
    assert {
        "sft_loss",
        "consistency",
        "jsd",
        "meta_loss",
        "accuracy",
        "entropy",
        "selected",
        "tokens_per_s",
        "peak_rss_mib",
        "meta_learning_rate",
        "grad_norm",
        "work/trained",
    } <= set(rows[0])
    after = trainer.method.scorer.calibrator.metanet.state_dict()
    assert any(not torch.equal(before[name], value) for name, value in after.items())
