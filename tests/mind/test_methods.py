"""The seam for methods: one is added as the guide says, and trains; which there are, and whose options."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny import NAMES, build_questions

import mind
from mind.cli import main
from mind.config import DataConfig, EvaluationConfig, MethodOptions, MindConfig, StudentConfig, TrainConfig
from mind.data.questions import save_questions
from mind.errors import MindError
from mind.methods import load_run_config, method_class, with_options
from tests.guide import example


@pytest.fixture
def easiest(monkeypatch, tmp_path):
    """The method of docs/tutorials/add-a-method.md, added as it says there."""
    module = example("tests/mind/test_methods.py", tmp_path)
    monkeypatch.setitem(mind.METHODS, "easiest", module.Easiest)
    return module


@pytest.fixture
def config(tmp_path, model_folder):
    save_questions(build_questions(10), tmp_path / "train.jsonl")
    return MindConfig(
        output=str(tmp_path / "run"),
        student=StudentConfig(model=str(model_folder), max_length=512),
        data=DataConfig(train=str(tmp_path / "train.jsonl"), perspectives=NAMES),
        train=TrainConfig(questions_per_step=2, max_steps=4, save_steps=2, learning_rate=1e-3),
        evaluation=EvaluationConfig(max_new_tokens=8),
    )


def train_rows(folder):
    rows = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["phase"] == "train"]


def test_a_method_is_added_as_the_guide_says(tmp_path, config, easiest, capsys):
    config = dataclasses.replace(config, method="easiest", options=easiest.EasiestOptions(count=2))
    folder = mind.train(config)
    rows = train_rows(folder)
    assert [row["seen"] for row in rows] == [2, 4, 6, 8]
    for row in rows:
        assert row["easiest_loss"] == pytest.approx(row["loss"])
        # Of three rationales (sometimes two) it looked at all, and trained on the two that were easiest.
        assert row["work"]["observed"] >= row["work"]["shared"] > row["work"]["trained"] > 0
    state = torch.load(folder.checkpoint(4) / "calibration.pt", weights_only=True)
    assert state == {"seen": 8} == torch.load(folder.path / "calibration.pt", weights_only=True)
    assert load_run_config(folder.config) == config
    page = folder.report.read_text()
    assert "Easiest run report" in page and "Questions seen" in page and "MetaNet" not in page

    flags = ["--output", str(tmp_path / "cli"), "--config", str(folder.config)]
    assert main(["train", *flags, "--options.count", "1", "--train.max-steps", "3"]) == 0
    assert load_run_config(tmp_path / "cli" / "config.json").options == easiest.EasiestOptions(count=1)
    capsys.readouterr()
    assert main(["train", "--output", str(tmp_path / "no"), *flags[2:], "--options.count", "0"]) == 2
    assert capsys.readouterr().err.endswith("options.count is 0: expected at least 1\n")
    assert not (tmp_path / "no").exists()
    assert [row["seen"] for row in train_rows(tmp_path / "cli")] == [2, 4, 6]
    capsys.readouterr()
    assert main(["train", "--method", "easiest", "--help"]) == 0
    assert "--options.count INT" in capsys.readouterr().out
    assert main(["train", "--output", str(tmp_path / "cli"), "--resume", "--options.count", "2"]) == 2
    assert "options.count (1 there)" in capsys.readouterr().err


def test_its_state_goes_on_after_a_resume(config, easiest):
    config = dataclasses.replace(config, method="easiest")
    folder = mind.train(config)
    rows = train_rows(folder)
    shutil.rmtree(folder.checkpoint(4))
    mind.train(config, resume=True)
    again = train_rows(folder)
    assert [row["seen"] for row in again] == [2, 4, 6, 8]
    assert [row["loss"] for row in again] == [row["loss"] for row in rows]


def test_the_options_are_those_of_the_method(tmp_path, easiest):
    @dataclass(frozen=True)
    class Others(MethodOptions):
        depth: int = 3

    assert with_options(MindConfig(method="easiest")).options == easiest.EasiestOptions(count=1)
    assert type(with_options(MindConfig()).options) is MethodOptions
    with pytest.raises(MindError, match="options is a Others: method easiest takes EasiestOptions"):
        with_options(MindConfig(method="easiest", options=Others()))
    (tmp_path / "c.json").write_text('{"method": "easiest", "options": {"depth": 3}}')
    with pytest.raises(MindError, match="c.json: options: unknown field depth"):
        load_run_config(tmp_path / "c.json")
    (tmp_path / "c.json").write_text('{"method": "magic"}')
    with pytest.raises(MindError, match="method is 'magic': expected one of .*easiest, .*mind, .*sft"):
        load_run_config(tmp_path / "c.json")
    with pytest.raises(MindError, match="method is 'magic'"):
        mind.train(MindConfig(output=str(tmp_path / "run"), method="magic"))
    assert not (tmp_path / "run").exists()


def test_a_configuration_without_a_method_is_of_mind(tmp_path):
    (tmp_path / "c.json").write_text('{"metanet": {"tau": 0.5}}')
    config = load_run_config(tmp_path / "c.json")
    assert config.method == "mind" and config.metanet.tau == 0.5 and method_class(config.method).title == "MIND"


def test_a_checkpoint_of_another_kind_is_refused(easiest):
    sft = method_class("sft").__new__(method_class("sft"))
    with pytest.raises(NotImplementedError, match=r"the checkpoint holds \['seen'\]"):
        sft.load_state_dict({"seen": 3})
    sft.load_state_dict({})
