"""Runs of several stages: each is an ordinary run, together they are one, and no kill in any of them changes it."""

from __future__ import annotations

import dataclasses
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_run import train_rows, write_student
from tiny import NAMES, build_model, build_questions

import mind
from mind.config import DataConfig, EvaluationConfig, MindConfig, StageConfig, StudentConfig, TrainConfig
from mind.data.questions import save_questions
from mind.errors import MindError
from mind.methods import load_run_config, with_method, with_options
from mind.records import WrongRationale
from mind.run.report import write_run_report
from mind.run.stages import stages_of
from mind.run_folder import RunFolder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A student and questions with right and wrong rationales."""
    place = tmp_path_factory.mktemp("stages")
    write_student(place / "model", build_model())
    questions = [
        dataclasses.replace(one, wrong_rationales=(WrongRationale(NAMES[0], one.rationales[0].text[:-2] + "!", "7"),))
        for one in build_questions(10)
    ]
    save_questions(questions, place / "train.jsonl")
    save_questions(build_questions(13)[11:], place / "test.jsonl")
    return place


def config_of(place, output, **changes) -> MindConfig:
    """Two steps of sft and three of redi, with a checkpoint after each."""
    config = MindConfig(
        output=str(output),
        method="redi",
        student=StudentConfig(model=str(place / "model"), max_length=512),
        data=DataConfig(train=str(place / "train.jsonl"), perspectives=NAMES, evaluation=(str(place / "test.jsonl"),)),
        train=TrainConfig(questions_per_step=2, max_steps=3, save_steps=1, learning_rate=1e-3, report_to="none"),
        stages={"sft": StageConfig(max_steps=2, learning_rate=1e-2)},
        evaluation=EvaluationConfig(max_new_tokens=2),
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def whole(place) -> RunFolder:
    """The run that nothing interrupts."""
    return mind.train(config_of(place, place / "whole"))


def same_students(one: RunFolder, other: RunFolder) -> bool:
    first, second = (load_file(folder.student / "model.safetensors") for folder in (one, other))
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_two_calls_make_the_same_student(place, whole, tmp_path):
    """`sft` on its own, and `redi` on its student without the stage before it."""
    (stage,) = whole.stages
    own = dataclasses.replace(load_run_config(stage.config), output=str(tmp_path / "sft"))
    first = mind.train(own)
    assert train_rows(first.path) == train_rows(stage.path) and same_students(first, stage)
    student = StudentConfig(model=str(first.student), max_length=512)
    alone = config_of(place, tmp_path / "redi", student=student, stages={"sft": StageConfig(skip=True)})
    second = mind.train(alone)
    assert not second.stages and train_rows(second.path) == train_rows(whole.path) and same_students(second, whole)


@pytest.mark.parametrize("stage", [True, False])
@pytest.mark.parametrize("checkpoint", [0, 1, 2])
def test_a_kill_in_any_stage_changes_nothing(whole, tmp_path, stage, checkpoint):
    """The folder as a kill after that checkpoint leaves it, before the next one is written."""
    run = RunFolder(shutil.copytree(whole.path, tmp_path / "run"))
    killed = run.stages[0] if stage else run
    for file in (killed.status, killed.report):
        file.unlink()
    shutil.rmtree(killed.student)
    for step, folder in killed.checkpoints().items():
        if step > checkpoint:
            shutil.rmtree(folder)
    if stage:  # the last one has not begun
        for path in run.written():
            if path not in (run.config, run.inputs, run.path / "stages") and path.exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    config = dataclasses.replace(load_run_config(run.config), output=str(run.path))
    assert mind.train(config, resume=True).finished
    for again, straight in ((run, whole), (run.stages[0], whole.stages[0])):
        assert train_rows(again.path) == train_rows(straight.path) and same_students(again, straight)
        assert again.read_evaluation() == straight.read_evaluation()


def test_all_stages_are_counted_together(whole, tmp_path):
    (stage,) = whole.stages
    rows = [row for folder in (stage, whole) for row in train_rows(folder.path)]
    status, first = whole.read_status(), stage.read_status()
    assert status["steps"] == 5 == len(rows) and first["steps"] == 2
    assert status["tokens"] == sum(row["tokens"] for row in rows)
    assert status["wall_s"] > first["wall_s"] > 0 and status["train_s"] > first["train_s"] > 0
    done = sum(row["work"]["trained"] + row["work"]["observed"] / 3 for row in rows)
    assert status["work_of_naive"] == round(done / sum(row["work"]["padded"] for row in rows), 4)
    evaluation, of_stage = whole.read_evaluation(), stage.read_evaluation()
    assert evaluation["before"] == of_stage["before"] != of_stage["after"] != evaluation["after"]
    assert whole.read_responses("before") == stage.read_responses("before") != {}

    page = whole.report.read_text()
    cells = re.findall(r"<td>([^<]*)</td>", page.partition("<h2>Stages</h2>")[2].partition("</tbody>")[0])
    assert '<a href="stages/1-sft/report.html">1-sft</a>' in page and (whole.path / "stages/1-sft/report.html").exists()
    assert cells[::8] == ["sft", "redi"] and cells[1::8] == ["0.01", "0.001"] and cells[2::8] == ["2", "3"]
    assert cells[6::8] == [f"{side['after']['heldout']['nll']:.3f}" for side in (of_stage, evaluation)]
    assert cells[7::8] == ["test 0.0 %"] * 2
    trained = sum(row["work"]["trained"] for row in rows)
    assert f'<th scope="row">trained: forward and backward</th><td>{trained:,}</td>' in page
    assert "<h2>Stages</h2>" not in stage.report.read_text()

    run = RunFolder(shutil.copytree(whole.path, tmp_path / "run"))
    run.metrics.unlink()
    with pytest.raises(MindError, match="its last stage has not begun: `mind report .*1-sft` reports on one before it"):
        write_run_report(run)


def test_the_settings_of_a_stage():
    config = MindConfig(method="redi", train=TrainConfig(max_steps=7, questions_per_step=4))

    def stage(**settings) -> TrainConfig:
        whole = with_options(dataclasses.replace(config, stages={"sft": StageConfig(**settings)}))
        first, last = stages_of(whole)
        assert first.config.method == "sft" and last.config == whole
        return first.config.train

    rest = dataclasses.replace(config.train, learning_rate=5e-5)
    assert stage() == rest
    assert stage(epochs=3) == dataclasses.replace(rest, epochs=3, max_steps=-1)
    assert stage(epochs=3, max_steps=2) == dataclasses.replace(rest, epochs=3, max_steps=2)
    given = stage(learning_rate=1e-3, questions_per_step=9)
    assert given == dataclasses.replace(rest, learning_rate=1e-3, questions_per_step=9)
    with pytest.raises(MindError, match=r"^stages.sft: train.learning_rate is -1.0: expected a positive number"):
        stage(learning_rate=-1.0)
    with pytest.raises(MindError, match="stages names 'warm', an earlier stage: those of method redi are sft"):
        with_options(dataclasses.replace(config, stages={"warm": StageConfig()}))
    with pytest.raises(MindError, match="stages names 'sft', an earlier stage: mind has none"):
        with_options(MindConfig(stages={"sft": StageConfig()}))


@pytest.mark.parametrize(
    ("method", "lora", "rates"),
    [
        ("edit", True, [2e-4, 5e-6]),  # the authors'
        ("edit", False, [3e-5, 5e-6]),
        ("redi", False, [5e-5, 1e-6]),  # the authors'
        ("sft", True, [3e-5]),
        ("mind-nocons", False, [3e-5]),
    ],
)
def test_every_stage_has_a_learning_rate_of_its_own(method, lora, rates):
    config = with_options(MindConfig(method=method, student=StudentConfig(lora=lora)))
    assert [stage.config.train.learning_rate for stage in stages_of(config)] == rates
    given = with_options(MindConfig(method=method, train=TrainConfig(learning_rate=2e-3)))
    assert stages_of(given)[-1].config.train.learning_rate == 2e-3


def test_a_method_does_not_inherit_the_default_rate_and_the_stages_of_another():
    first = with_options(MindConfig(method="redi", stages={"sft": StageConfig(max_steps=2)}))
    assert with_options(with_method(first, "sft")) == with_options(MindConfig(method="sft"))
    given = dataclasses.replace(first, train=TrainConfig(learning_rate=2e-3))
    assert with_options(with_method(given, "edit")).train.learning_rate == 2e-3
    assert with_options(with_method(given, "edit")).stages == {"sft": StageConfig()}
