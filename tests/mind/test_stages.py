"""Runs of several stages: each is an ordinary run, together they are one, and no kill in any of them changes it."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import content, train_rows, write_student
from tiny import NAMES, build_model, build_questions

import mind
from mind.cli import main
from mind.cli.training import train_defaults
from mind.config import DataConfig, EvaluationConfig, MindConfig, StageConfig, StudentConfig, TrainConfig
from mind.data.questions import save_questions
from mind.errors import MindError
from mind.methods import METHODS, load_run_config, with_method, with_options
from mind.methods.redi import RediOptions
from mind.methods.stage import Stage
from mind.records import WrongRationale
from mind.run.data import load_data
from mind.run.report import write_run_report
from mind.run.stages import stages_of
from mind.run.unused import warn_of_unused_options
from mind.run_folder import RunFolder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A student and questions with right and wrong rationales."""
    place = tmp_path_factory.mktemp("stages")
    write_student(place / "model", build_model())
    questions = [
        dataclasses.replace(one, wrong_rationales=(WrongRationale(NAMES[0], one.rationales[0].text[:-2] + "!", "-7"),))
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


@pytest.mark.nightly
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


@pytest.mark.parametrize("stage", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_a_kill_behind_the_last_step_changes_nothing(whole, tmp_path, stage):
    """The folder as a kill leaves it, before the student is written. In any step: test_every_method.py."""
    run = RunFolder(shutil.copytree(whole.path, tmp_path / "run"))
    killed = run.stages[0] if stage else run
    for file in (killed.status, killed.report):
        file.unlink()
    shutil.rmtree(killed.student)
    if not stage:  # the time of the one before counts
        run.stages[0].write_status(run.stages[0].read_status() | {"wall_s": 900.0, "train_s": 800.0})
    else:  # the last one has not begun
        for path in run.written():
            if path not in (run.config, run.inputs, run.path / "stages") and path.exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    config = dataclasses.replace(load_run_config(run.config), output=str(run.path))
    assert mind.train(config, resume=True).finished
    assert stage or [run.read_status()[name] // 100 for name in ("wall_s", "train_s")] == [9, 8]
    for again, straight in ((run, whole), (run.stages[0], whole.stages[0])):
        assert train_rows(again.path) == train_rows(straight.path) and same_students(again, straight)
        assert again.read_evaluation() == straight.read_evaluation()


def test_all_stages_are_counted_together(whole, tmp_path):
    (stage,) = whole.stages
    rows = [row for folder in (stage, whole) for row in train_rows(folder.path)]
    status, first = whole.read_status(), stage.read_status()
    assert status["steps"] == 5 == len(rows) and first["steps"] == 2
    assert status["tokens"] == sum(row["tokens"] for row in rows)
    done = sum(row["work"]["trained"] + row["work"]["observed"] / 3 for row in rows)
    assert status["work_of_naive"] == round(done / sum(row["work"]["padded"] for row in rows), 4)
    assert Counter(status["work"]) == sum((Counter(row["work"]) for row in rows), Counter())
    parameters = sum(parameter.numel() for parameter in build_model().parameters())
    assert status["flops"] == parameters * sum(6 * row["work"]["trained"] + 2 * row["work"]["observed"] for row in rows)
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
    assert f'<th scope="row">trained: forward and backward pass</th><td>{trained:,}</td>' in page
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


def test_a_stage_begins_with_the_student_before_it_or_with_the_first(monkeypatch):
    class Three(METHODS["sft"]):
        @classmethod
        def stages(cls, config):
            alone = {"data": {"only": config.data.perspectives[0]}}
            return [Stage("sft"), Stage("single", "alone", "own", 1e-3, "base", alone), Stage("mind-uniform")]

    monkeypatch.setitem(METHODS, "three", Three)
    settings = {"own": StageConfig(max_steps=3), "mind-uniform": StageConfig(epochs=2)}
    config = with_options(MindConfig(output="run", method="three", stages=settings))
    runs = stages_of(config)
    first, alone, third = (RunFolder(f"run/stages/{name}") for name in ("1-sft", "2-alone", "3-mind-uniform"))
    assert [run.folder for run in runs] == [first, alone, third, RunFolder("run")]
    assert [run.former for run in runs] == [None, None, alone, third]
    assert [run.evaluated for run in runs] == [None, (first, "before"), (alone, "after"), (first, "before")]
    assert [run.config.data.only for run in runs] == [None, config.data.perspectives[0], None, None]
    assert [run.config.method for run in runs] == ["sft", "single", "mind-uniform", "three"]
    assert runs[2].config.metanet.scores == "uniform" and runs[1].config.train.max_steps == 3
    skipped = stages_of(with_options(dataclasses.replace(config, stages={"sft": StageConfig(skip=True)})))
    assert [run.folder.path.name for run in skipped] == ["1-alone", "2-mind-uniform", "run"]
    monkeypatch.setattr(Three, "begins_with", "base")
    assert stages_of(config)[-1].former is None and stages_of(config)[-1].evaluated == (first, "before")


FAULTS = {
    "the stage's method is asked, too": (
        {"stages": {"sft": StageConfig(epochs=-1.0)}},
        r"stages.sft: train.epochs is -1",
    ),
    "options of the last stage": (
        {"options": RediOptions(alpha=0.5), "method": "edit"},
        "method edit takes EditOptions",
    ),
    "the last stage's data": ({"data": "right.jsonl"}, "method redi needs a pair .*: 0 of 9 questions qualify"),
    "a student that is not there": ({"student": StudentConfig(model="no/such")}, "student.model no/such"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_any_stage_is_told_before_anything_is_written(fault, place, tmp_path):
    changes, message = FAULTS[fault]
    config = config_of(place, tmp_path / "run")
    if "data" in changes:
        save_questions(build_questions(10), tmp_path / "right.jsonl")
        changes = {"data": dataclasses.replace(config.data, train=str(tmp_path / "right.jsonl"))}
    with pytest.raises(MindError, match=message):
        mind.train(dataclasses.replace(config, **changes))
    assert not (tmp_path / "run").exists()


def test_inputs_that_changed_between_the_stages_are_refused(place, whole, tmp_path):
    """The last stage has not begun: the data are those of the run, the student is that of the stage before."""
    run = RunFolder(shutil.copytree(whole.path, tmp_path / "run"))
    for path in (run.status, run.report, run.metrics, run.evaluation):
        path.unlink()
    for folder in (run.student, *run.checkpoints().values()):
        shutil.rmtree(folder)
    config = dataclasses.replace(load_run_config(run.config), output=str(run.path))
    before = content(run.path)
    data = load_data(config)
    other = dataclasses.replace(data, train=data.train[::-1])
    with pytest.raises(MindError, match=r"train.jsonl \(data.train\) has changed since"):
        mind.train(config, resume=True, data=other)
    weights = load_file(run.stages[0].student / "model.safetensors")
    save_file({name: value + 1e-3 for name, value in weights.items()}, run.stages[0].student / "model.safetensors")
    with pytest.raises(MindError, match=r"stages/1-sft/student \(weights\) has changed since"):
        mind.train(config, resume=True)
    save_file(weights, run.stages[0].student / "model.safetensors", metadata={"format": "pt"})
    assert content(run.path) == before


def test_a_run_is_not_made_longer_before_its_last_stage(place, whole, tmp_path):
    run = RunFolder(shutil.copytree(whole.path, tmp_path / "run"))
    for folder in (run, run.stages[0]):
        folder.status.unlink()
    config = dataclasses.replace(load_run_config(run.config), output=str(run.path))
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=5))
    with pytest.raises(MindError, match="stages/1-sft: this stage is not finished: --resume without other options"):
        mind.train(longer, resume=True)


def test_another_run_takes_the_place_of_all_stages(place, whole, tmp_path):
    run = RunFolder(shutil.copytree(whole.path, tmp_path / "run"))
    train = TrainConfig(questions_per_step=1, max_steps=1, report_to="none")
    own = config_of(place, run.path, method="sft", stages={}, train=train)
    with pytest.raises(MindError, match="already holds a run"):
        mind.train(own)
    on_its_stage = dataclasses.replace(own, student=StudentConfig(model=str(run.stages[0].student), max_length=512))
    with pytest.raises(MindError, match="stages: holds .*student, which this command also reads"):
        mind.train(on_its_stage, overwrite=True)
    mind.train(own, overwrite=True)
    assert not run.stages and len(train_rows(run.path)) == 1


def test_the_command_line_sets_and_leaves_out_stages(place, tmp_path, capsys):
    assert train_defaults(["--method", "edit"]).job.stages == {"sft": StageConfig()}
    with pytest.raises(SystemExit):
        main(["train", "--method", "redi", "--help-all"])
    shown = capsys.readouterr().out
    assert "--stages.sft.learning-rate" in shown and "(default: 1e-06)" in shown
    assert main(["train", "--method", "sft", "--stages.sft.epochs", "2"]) == 2
    assert "unknown option --stages.sft.epochs" in capsys.readouterr().err
    with pytest.warns(RuntimeWarning, match="stages.sft.epochs has no effect: stages.sft.max_steps is set"):
        warn_of_unused_options(
            with_options(MindConfig(method="edit", stages={"sft": StageConfig(epochs=2, max_steps=3)}))
        )
    skipped = StageConfig(learning_rate=1e-4, skip=True)
    with pytest.warns(RuntimeWarning, match="stages.sft.learning_rate has no effect: stages.sft.skip is on"):
        warn_of_unused_options(with_options(MindConfig(method="edit", stages={"sft": skipped})))
