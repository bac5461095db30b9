"""Numbers that are nan or infinite: a run stops at the first, says where, and keeps what was sound."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import expect_error, replaced
from test_trainer import build_trainer
from transformers import AutoModelForCausalLM, TrainerCallback

from mind.cli import main
from mind.config import MetaNetConfig
from mind.errors import MindError, NotFiniteError
from mind.finite import named_questions, not_finite
from mind.methods.sft import Sft
from mind.methods.step import LossTerms
from mind.run.trainer import MethodTrainer

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("tree", "where"),
    [
        ({"a": [1.0, {"b": torch.tensor([1.0, NAN])}]}, "a.1.b"),
        ({"a": torch.tensor([[-INF]])}, "a"),
        ({"a": (0.5, INF)}, "a.1"),
        ({"half": torch.tensor([1.0, NAN], dtype=torch.bfloat16)}, "half"),
        ({"a": torch.tensor(3), "b": torch.empty(0), "c": 3.4e38, "d": "nan", "e": None, 5: torch.ones(2)}, None),
    ],
)
def test_what_is_not_finite_is_found_by_name(tree, where):
    assert not_finite(tree) == where


def test_many_questions_are_named_in_part():
    assert named_questions(["a"]) == "question a" and named_questions(["a", "b"]) == "questions a, b"
    assert named_questions([str(n) for n in range(30)]) == "questions 0, 1, 2, 3, 4, 5, 6, 7, ... (30 in all)"


class AtStep(TrainerCallback):
    """Calls `act` before the step of that number, from 1."""

    def __init__(self, number, act):
        self.number, self.act = number, act

    def on_step_begin(self, args, state, control, **_):
        if state.global_step + 1 == self.number:
            self.act()


def first(parameters):
    return next(iter(parameters))


def terms_times(factor, *, l_real=False):
    """The method's loss, or its L_real of one rationale alone, times `factor`."""

    def poison(trainer):
        plain = trainer.method.loss

        def loss(*arguments):
            terms = plain(*arguments)
            if not l_real:
                return LossTerms(terms.loss * factor, terms.sums, terms.l_real)
            place = tuple((~terms.l_real.isnan()).nonzero()[0])
            table = terms.l_real.clone()
            table[place] *= factor
            return LossTerms(terms.loss, terms.sums, table)

        trainer.method.loss = loss

    return poison


def gradient(network):
    def poison(trainer):
        first(p for p in network(trainer).parameters() if p.requires_grad).register_hook(lambda g: g * NAN)

    return poison


def weight(network, value=NAN):
    def poison(trainer):
        first(network(trainer).parameters()).data.flatten()[0] = value

    return poison


def optimizer_state(trainer):
    first(trainer.optimizer.state.values())["exp_avg_sq"].fill_(INF)


def last_update(trainer):
    """The step itself is sound; what the optimizer makes of it is not."""
    trainer.optimizer.optimizer.register_step_post_hook(lambda *_: weight(student)(trainer))


def average(trainer):
    for known in trainer.method.scorer.calibrator._average.values():
        known.fill_(INF)


def moments(trainer):
    """MetaNet itself stays finite: it stops to learn."""
    first(trainer.method.scorer.calibrator.optimizer.state.values())["exp_avg_sq"].fill_(INF)


def temperature(trainer):
    config = trainer.method.context.config
    objective = replace(config.objective, tau_student=1e-320)
    trainer.method.context = replace(trainer.method.context, config=replace(config, objective=objective))


def student(trainer):
    return trainer.model


def metanet(trainer):
    return trainer.method.scorer.calibrator.metanet


POISONS = {
    "loss nan": ("sft", terms_times(NAN), "the loss is nan"),
    "loss inf": ("mind", terms_times(INF), "the loss is inf"),
    "L_real of one question": ("sft", terms_times(INF, l_real=True), r"the loss of questions? sum-\d.* is not finite"),
    "student's gradient": ("sft", gradient(student), "the gradient norm is nan"),
    "student's weight": ("mind", weight(student), r"the loss of questions? sum-\d.* is not finite"),
    "student's weight, infinite": ("sft", weight(student, INF), r"the loss of questions? sum-\d.* is not finite"),
    "scores": ("mind", weight(metanet), r"the scores of questions? sum-\d.* are not finite"),
    "weights alpha": ("mind", temperature, r"alpha, the weights of questions? sum-\d.* are not finite"),
    "L_meta's gradient": ("mind", gradient(metanet), "L_meta, which calibrates MetaNet, is .*'s norm nan"),
    "moving average": ("mind", average, "L_meta, which calibrates MetaNet, is (nan|inf)"),
    "MetaNet's moments": ("mind", moments, r"the calibrator's optimizer\.state\.0\.exp_avg_sq is not finite"),
    "optimizer's state": ("sft", optimizer_state, r"after it optimizer\..*\.exp_avg_sq is not finite"),
    "last update": ("mind", last_update, r"after it weights\.\S+ is not finite"),
}


@pytest.mark.parametrize("name", list(POISONS))
def test_training_stops_where_a_number_is_not_finite(tmp_path, name):
    method, poison, message = POISONS[name]
    at_the_checkpoint = ("optimizer's state", "last update", "MetaNet's moments")
    stops_at = 4 if name in (*at_the_checkpoint, "moving average") else 3
    trainer = build_trainer(
        tmp_path,
        method=method,
        dtype=torch.float32,
        save_steps=2,
        questions_per_step=3,
        metanet=MetaNetConfig(width=16, accumulation=2, ema=0.5 if name == "moving average" else 0.0),
    )
    trainer.add_callback(AtStep(stops_at, lambda: poison(trainer)))
    questions = ", ".join(question.id for question in trainer.train_dataset[stops_at - 1])
    way_back = "--resume goes on from step 2, the last one saved"
    expected = f"^step {stops_at}, questions {questions}: {message}.*; {way_back}$"
    with pytest.raises(NotFiniteError, match=expected) as stop:
        trainer.train()
    assert "\n" not in str(stop.value)
    assert list(trainer.folder.checkpoints()) == [2]
    lines = [json.loads(line) for line in trainer.folder.metrics.read_text().splitlines()]
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in lines)
    good = AutoModelForCausalLM.from_pretrained(trainer.folder.checkpoint(2))
    assert not_finite(dict(good.named_parameters())) is None


def test_it_goes_on_from_the_last_good_checkpoint(tmp_path):
    options = {"method": "sft", "dtype": torch.float32, "save_steps": 2, "log_steps": 3, "questions_per_step": 2}
    straight = build_trainer(tmp_path / "straight", **options)
    straight.train()
    stopped = build_trainer(tmp_path / "stopped", **options)
    stopped.add_callback(AtStep(4, lambda: weight(student)(stopped)))
    with pytest.raises(NotFiniteError):
        stopped.train()
    again = build_trainer(tmp_path / "stopped", **options)
    again.train(resume_from_checkpoint=str(again.folder.checkpoint(2)))
    for p, q in zip(straight.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_what_a_method_observes_is_checked(tmp_path):
    """A method that looks at rationales before it chooses would take nan for one that is not there."""
    trainer = build_trainer(tmp_path, method="sft", dtype=torch.float32)
    plain = trainer.method.prepare

    def prepare(step):
        plan = plain(step)
        step.observe(plan.trained)
        return plan

    trainer.method.prepare = prepare
    weight(student)(trainer)
    with pytest.raises(
        NotFiniteError, match=r"^step 1, questions .*: the loss of questions .* is not finite; no step is"
    ):
        trainer.train()


@pytest.mark.parametrize("part", ["student", "optimizer", "metanet", "average"])
def test_a_checkpoint_that_is_not_finite_is_refused(tmp_path, part):
    options = {"dtype": torch.float32, "save_steps": 2, "max_steps": 2, "metanet": MetaNetConfig(width=16, ema=0.5)}
    build_trainer(tmp_path, **options).train()
    trainer = build_trainer(tmp_path, **options | {"max_steps": 3})
    checkpoint = trainer.folder.checkpoint(2)
    if part == "student":
        weights = load_file(checkpoint / "model.safetensors")
        weights["model.norm.weight"][3] = NAN
        save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    else:
        file = checkpoint / ("optimizer.pt" if part == "optimizer" else "calibration.pt")
        state = torch.load(file, weights_only=True)
        tree = {"optimizer": state.get("state"), "metanet": state.get("metanet"), "average": state.get("average")}[part]
        tensor = first(tree.values())
        (tensor["exp_avg"] if part == "optimizer" else tensor).flatten()[0] = INF
        torch.save(state, file)
    with pytest.raises(MindError, match=rf"^{checkpoint}: .*{part if part != 'student' else 'norm'}.* is not finite"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def spoiled(model_folder: Path, name: str, value: float) -> Path:
    """A copy of a model in which one number of the weight `name` is `value`."""
    folder = model_folder.with_name(f"spoiled-{name}")
    shutil.copytree(model_folder, folder)
    weights = load_file(folder / "model.safetensors")
    weights[name].flatten()[-1] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("name", "value"), [("model.embed_tokens.weight", NAN), ("model.norm.weight", -INF)])
def test_a_model_that_is_not_finite_is_refused(tmp_path, arguments, model_folder, capsys, name, value):
    model = str(spoiled(model_folder, name, value))
    expect_error(replaced(arguments, "--student.model", model), capsys, f"weight {name} is not finite")
    assert not (tmp_path / "run").exists()
    expect_error(
        ["evaluate", "--student.model", model, "--files", str(tmp_path / "test.jsonl")], capsys, f"weight {name} is not"
    )


def test_a_step_that_blows_the_student_up_leaves_no_student(tmp_path, arguments, capsys):
    arguments = replaced(arguments, "--train.learning-rate", "1e30", "--train.save-steps", "2")
    remedy = "; a train.learning_rate below 1e+30 may keep it finite; no step is saved yet"
    expect_error(arguments, capsys, "step 2, questions sum-", remedy)
    assert not (tmp_path / "run" / "student").exists() and not (tmp_path / "run" / "status.json").exists()


def test_a_student_that_cannot_be_evaluated_is_not_saved(tmp_path, arguments, capsys, monkeypatch):
    arguments = replaced(arguments, "--train.max-steps", "2", "--train.learning-rate", "1e-3")
    plain = MethodTrainer.train

    def train(self, **options):
        plain(self, **options)
        weight(student)(self)

    with monkeypatch.context() as patch:
        patch.setattr(MethodTrainer, "train", train)
        told = "held-out NLL after step 2, the last: the loss of question sum-"
        expect_error(arguments, capsys, told, "--resume goes on from step 2, the last one saved")
    run = tmp_path / "run"
    assert not (run / "student").exists() and not (run / "status.json").exists()
    assert json.loads((run / "evaluation.json").read_text())["after"] is None
    assert main(["train", "--output", str(run), "--resume"]) == 0
    assert (run / "student" / "model.safetensors").is_file()


def test_a_run_that_stopped_is_resumed(tmp_path, arguments, capsys, monkeypatch):
    arguments = replaced(arguments, "--method", "sft", "--train.max-steps", "6", "--train.log-steps", "4")
    assert main(replaced(arguments, "--output", str(tmp_path / "straight"))) == 0
    plain = Sft.prepare

    def prepare(self, step):
        plan = plain(self, step)
        return plan if step.number != 4 else type(plan)(plan.questions, plan.weights * NAN, plan.trained, plan.observed)

    with monkeypatch.context() as patch:
        patch.setattr(Sft, "prepare", prepare)
        told = "--resume goes on from step 3, the last one saved"
        expect_error(arguments, capsys, "step 5, question sum-7: the loss is nan", told)
    assert main(["train", "--output", str(tmp_path / "run"), "--resume"]) == 0
    students = [load_file(tmp_path / run / "student" / "model.safetensors") for run in ("straight", "run")]
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())
