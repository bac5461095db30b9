"""The student's own answers within training: they depend on seed and step alone."""

from __future__ import annotations

import pytest
import torch
from small_run import write_student
from test_trainer import build_trainer, relative, step
from tiny import build_model

from mind.evaluation.generation import generate_ids
from mind.methods.kd import KdOptions
from mind.methods.step import Step, random_of
from mind.run import sampling
from mind.student.model import attention_of

OPTIONS = {"temperature": 1.3, "max_new_tokens": 7}


@pytest.fixture
def teacher(tmp_path):
    return write_student(tmp_path / "teacher", build_model(seed=5))


def test_samples_are_drawn_by_seed_and_step_without_dropout(tmp_path):
    model = build_model(attention_dropout=0.5)
    trainer = build_trainer(tmp_path, method="sft", model=model, attention="eager", seed=3)
    prompts = [question.prompt for question in trainer.context.tokenized]
    draws = torch.rand(len(prompts), 7, generator=random_of(3, 2, "sample"), dtype=torch.float64)
    tokenizer = trainer.context.tokenizer
    expected = generate_ids(model.eval(), tokenizer, prompts, batch_size=1, draws=draws, **OPTIONS)
    model.train()
    state = torch.get_rng_state()
    assert trainer._sampler.sample(2, prompts, **OPTIONS) == list(map(tuple, expected))
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert trainer._sampler.sample(4, prompts, **OPTIONS) != list(map(tuple, expected))


def test_answers_are_generated_as_in_the_evaluation(tmp_path, teacher, monkeypatch):
    """With the attention that the student was loaded with, and without the compiled trunk."""
    model, seen = build_model(), []
    loaded = attention_of(model)
    assert loaded != "eager"

    def spy(student, *arguments, **options):
        seen.append((attention_of(student), student.base_model._compiled_call_impl))
        return generate_ids(student, *arguments, **options)

    monkeypatch.setattr(sampling, "generate_ids", spy)
    own = KdOptions(teacher=teacher, on_policy=1.0, max_new_tokens=3)
    trainer = build_trainer(tmp_path, method="kd", model=model, attention="eager", own=own)
    compiled = model.base_model._compiled_call_impl = model.base_model._call_impl
    step(trainer)
    assert seen == [(loaded, None)] and model.base_model._compiled_call_impl == compiled


def test_a_step_on_the_students_answers_does_not_depend_on_packing(tmp_path, teacher):
    own = KdOptions(teacher=teacher, on_policy=1.0, max_new_tokens=9, kind="jsd")
    results = []
    for length, share in ((60, "always"), (200, "always"), (200, "never")):
        folder = tmp_path / f"{length}-{share}"
        trainer = build_trainer(folder, method="kd", own=own, pack_length=length, share_prompts=share)
        loss, gradients = step(trainer)
        results.append((float(loss), torch.cat([gradient.flatten() for gradient in gradients.values()])))
    for loss, gradient in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)  # the teacher computes in float32
        assert relative(gradient, results[0][1]) < 1e-5


def test_a_step_without_a_trainer_has_no_sampler():
    with pytest.raises(NotImplementedError, match="this step has no sampler"):
        Step(0, 0, [], lambda chosen: chosen).sample([[1]], **OPTIONS)
