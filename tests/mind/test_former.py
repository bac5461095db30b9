"""One evaluation of an untrained student that several runs take over, or none."""

from __future__ import annotations

import dataclasses
import json

import pytest
from small_run import write_student
from tiny import NAMES, build_model, build_questions

import mind
import mind.run.measured
from mind.cli import main
from mind.config import DataConfig, EvaluationConfig, MindConfig, StudentConfig, TrainConfig
from mind.data.questions import save_questions
from mind.errors import MindError
from mind.run_folder import RunFolder


@pytest.fixture
def config(tmp_path, model_folder):
    questions = build_questions(8)
    for name, some in (("train", questions[4:]), ("heldout", questions[2:4]), ("test", questions[:2])):
        save_questions(some, tmp_path / f"{name}.jsonl")
    named = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "heldout")}
    return MindConfig(
        output=str(tmp_path / "run"),
        method="sft",
        student=StudentConfig(model=str(model_folder), max_length=512),
        data=DataConfig(**named, evaluation=(str(tmp_path / "test.jsonl"),), perspectives=NAMES),
        train=TrainConfig(questions_per_step=2, max_steps=1, report_to="none"),
        evaluation=EvaluationConfig(max_new_tokens=3),
    )


def with_before(config, before, **changes):
    evaluation = dataclasses.replace(config.evaluation, before=before, **changes)
    return dataclasses.replace(config, evaluation=evaluation)


@pytest.fixture
def former(config, tmp_path):
    """The student's evaluation by `mind evaluate`, with another held-out set."""
    save_questions(build_questions(1), tmp_path / "other.jsonl")
    words = ["evaluate", "--student.model", config.student.model, "--files", *config.data.evaluation]
    words += ["--evaluation.max-new-tokens", "3", "--heldout", str(tmp_path / "other.jsonl")]
    assert main([*words, "--output", str(tmp_path / "base.json")]) == 0
    return str(tmp_path / "base.json")


def test_a_run_takes_over_what_was_evaluated_before(config, former, tmp_path, monkeypatch, capsys):
    first = mind.train(config)
    told = json.loads((tmp_path / "base.json").read_text())
    before = first.read_evaluation()["before"]
    assert told["files"] == before["files"] and told["asked"]["max_new_tokens"] == 3
    assert told["heldout"] != before["heldout"] and told["digests"].keys() == before["digests"].keys()
    asked = []
    real = mind.run.measured.answer_accuracy

    def accuracy(*arguments):
        asked.append(arguments[4].name)
        return real(*arguments)

    monkeypatch.setattr("mind.run.measured.answer_accuracy", accuracy)
    for name, place in (("by-file", former), ("by-run", str(first.path))):
        run = mind.train(dataclasses.replace(with_before(config, place), output=str(tmp_path / name)))
        assert asked.pop() == "after" and not asked
        assert run.read_evaluation() == first.read_evaluation()
        assert run.read_responses("before") == first.read_responses("before")
        assert f"the evaluation before training is that of {place}" in capsys.readouterr().err
    run = mind.train(dataclasses.replace(with_before(config, "skip"), output=str(tmp_path / "skip")))
    assert run.read_evaluation()["before"] is None and not run.responses("before").exists()
    assert run.read_evaluation()["after"] == first.read_evaluation()["after"]
    assert "The evaluation before training is missing" in run.report.read_text()


def test_one_of_something_else_is_refused_before_anything_is_written(config, former, tmp_path):
    other = write_student(tmp_path / "other", build_model(seed=3))
    student = dataclasses.replace(config.student, model=other)
    (tmp_path / "new").mkdir()
    save_questions(build_questions(3)[1:], tmp_path / "new" / "test.jsonl")
    data = dataclasses.replace(config.data, evaluation=(str(tmp_path / "new" / "test.jsonl"),))
    unknown = dataclasses.replace(config.data, evaluation=(*config.data.evaluation, config.data.heldout))
    (tmp_path / "empty.json").write_text("{}")
    for changed, message in (
        (dataclasses.replace(with_before(config, former), student=student), "is of another student: name one of the"),
        (with_before(config, former, max_new_tokens=4), "is of another value of evaluation.max_new_tokens"),
        (with_before(config, former, last_line="Be brief."), "is of other questions as evaluation test"),
        (dataclasses.replace(with_before(config, former), data=data), "is of other questions as evaluation test"),
        (dataclasses.replace(with_before(config, former), data=unknown), "has no evaluation heldout"),
        (with_before(config, str(tmp_path / "empty.json")), "holds no evaluation that can be known again: expected"),
        (with_before(config, str(tmp_path / "none.json")), "none.json: no such file"),
    ):
        with pytest.raises(MindError, match=message):
            mind.train(changed)
        assert not RunFolder(config.output).path.exists()
