"""What a run goes on from: a checkpoint that is damaged is named, and a finished run is extended or says how."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import content, expect_error, replaced, train_rows, write_student
from tiny import build_family, build_model, build_questions

from mind.cli import main
from mind.data.questions import save_questions
from mind.errors import MindError
from mind.run.checkpoints import check_loaded
from mind.run_folder import RunFolder

DAMAGES = {
    "model.safetensors": "cannot be read: SafetensorError",
    "optimizer.pt": "cannot be read: ",
    "scheduler.pt": "cannot be read: ",
    "rng_state.pth": "cannot be read: ",
    "trainer_state.json": "cannot be read: JSONDecodeError",
    "calibration.pt": "cannot be read: ",
    "progress.json": "not JSON",
}


@pytest.mark.parametrize("cut", [0.0, 0.6])
@pytest.mark.parametrize(("name", "message"), DAMAGES.items(), ids=DAMAGES)
def test_a_checkpoint_that_is_damaged_is_named(unfinished, capsys, name, message, cut):
    file = unfinished / "checkpoint-1" / name
    whole = file.read_bytes()
    file.write_bytes(whole[: int(cut * len(whole))])
    expect_error(
        ["train", "--output", str(unfinished), "--resume"],
        capsys,
        f"{unfinished / 'checkpoint-1'}: ",
        "is empty: expected JSON" if name == "progress.json" and not cut else message,
        "without this folder --resume goes on from the checkpoint before it",
    )
    file.write_bytes(whole)
    assert RunFolder(unfinished).checkpoints().keys() == {1}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "trainer_state.json: global_step is 0: expected at least 1"),
        ({"global_step": "1"}, "trainer_state.json: global_step is '1': expected at least 1"),
        ({"global_step": 1, "train_batch_size": None}, "trainer_state.json: train_batch_size is None: expected at"),
        ([], "cannot be read: "),
        ({"global_step": 1, "more": 1}, "cannot be read: "),
    ],
)
def test_the_state_of_no_step_is_named(unfinished, capsys, state, message):
    (unfinished / "checkpoint-1" / "trainer_state.json").write_text(json.dumps(state))
    expect_error(["train", "--output", str(unfinished), "--resume"], capsys, f"{unfinished}/checkpoint-1: ", message)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A run, with what it reads, that was killed after its first checkpoint."""
    place = tmp_path_factory.mktemp("killed")
    write_student(place / "model", build_model())
    for name, count in {"train": 9, "test": 2}.items():
        save_questions(build_questions(count), place / f"{name}.jsonl")
    options = (
        f"--output {place}/run --student.model {place}/model --data.train {place}/train.jsonl --method sft "
        f"--data.evaluation {place}/test.jsonl --data.perspectives first second third --train.max-steps 2 "
        "--train.questions-per-step 2 --train.save-steps 1 --train.report-to none --evaluation.max-new-tokens 2 "
        "--student.max-length 512"
    )
    assert main(["train", *options.split()]) == 0
    for name in ("checkpoint-2", "student"):
        shutil.rmtree(place / "run" / name)
    (place / "run" / "status.json").unlink()
    return place / "run"


@pytest.fixture
def unfinished(killed, tmp_path) -> Path:
    return shutil.copytree(killed, tmp_path / "unfinished")


def test_weights_that_are_one_are_not_missed(unfinished, caplog):
    """The head is the embeddings, which a checkpoint has once."""
    with caplog.at_level(logging.WARNING, "transformers"):
        assert main(["train", "--output", str(unfinished), "--resume"]) == 0
    assert not [record for record in caplog.records if "missing keys" in record.getMessage()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("model.norm.weight"), "lacks weights: model.norm.weight"),
        (lambda weights: weights.pop("model.embed_tokens.weight"), "lacks weights: "),
        (lambda weights: weights.update(more=torch.ones(1)), "has weights that the student has not: more"),
    ],
)
def test_weights_that_are_not_the_students_are_named(unfinished, capsys, change, message):
    file = unfinished / "checkpoint-1" / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    expect_error(["train", "--output", str(unfinished), "--resume"], capsys, "checkpoint-1", message)


def test_weights_of_an_untied_head_are_missed():
    model = build_family("qwen2", tie_word_embeddings=False)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    with pytest.raises(MindError, match=r"lacks weights: lm_head.weight$"):
        check_loaded(model, model.load_state_dict(weights, strict=False))


@pytest.mark.parametrize("scheduler", ["constant", "cosine"])
def test_a_finished_run_says_how_to_go_on(tmp_path, two_steps, scheduler, capsys):
    """With rates that depend on the number of steps, it cannot be extended."""
    arguments = replaced(two_steps, "--train.lr-scheduler", scheduler, "--train.warmup-ratio", "0")
    assert main(arguments) == 0
    capsys.readouterr()
    finished = tmp_path / "run"
    assert main(["train", "--output", str(finished), "--resume"]) == 0
    said = capsys.readouterr().out
    longer = f"next, for more steps: mind train --output {finished} --resume --train.max-steps N"
    further = (
        f"mind train --config {finished}/config.json --student.model {finished}/student --output {finished}-further"
    )
    assert (longer in said) == (scheduler == "constant")
    assert (f"next, to train its student further: {further}" in said) == (scheduler == "cosine")


@pytest.mark.parametrize(
    ("options", "more", "steps"),
    [
        (("--train.epochs", "1"), ("--train.epochs", "2"), 10),
        pytest.param(("--train.max-steps", "2"), ("--train.max-steps", "7"), 7, marks=pytest.mark.nightly),
    ],
)
def test_a_finished_run_is_extended_by_epochs_too(tmp_path, two_steps, options, more, steps):
    constant = ("--train.lr-scheduler", "constant", "--train.max-steps", "-1")
    two_steps = replaced(replaced(two_steps, *constant), *options)
    assert main(replaced(replaced(two_steps, *more), "--output", str(tmp_path / "straight"))) == 0
    assert main(two_steps) == 0
    assert main(["train", "--output", str(tmp_path / "run"), "--resume", *more]) == 0
    assert train_rows(tmp_path / "run") == train_rows(tmp_path / "straight")
    assert len(train_rows(tmp_path / "run")) == steps


class Killed(BaseException):
    """As a signal would end the process, past every handler."""


def raise_killed(*_):
    raise Killed


def test_a_kill_between_the_two_files_of_an_extension(tmp_path, two_steps, monkeypatch):
    """The run is the one it was, and can be extended again."""
    run = tmp_path / "run"
    assert main(replaced(two_steps, "--train.lr-scheduler", "constant")) == 0
    resume = ["train", "--output", str(run), "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr("mind.run_folder.save_json", raise_killed)
        with pytest.raises(Killed):
            main([*resume, "--train.max-steps", "3"])
    assert main(resume) == 0
    assert len(train_rows(run)) == 2
    assert main([*resume, "--train.max-steps", "3"]) == 0
    assert len(train_rows(run)) == 3


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        (("--train.epochs", "0.3"), ("--train.epochs", "2"), "the 10 steps of the one do not begin with the 2 of the"),
        (("--train.epochs", "1"), ("--train.max-steps", "4"), "the 4 steps of the one do not begin with the 5 of the"),
        pytest.param(
            ("--train.epochs", "1"), ("--train.epochs", "0.5"), "train.epochs (1.0 there)", marks=pytest.mark.nightly
        ),
    ],
)
def test_an_extension_that_is_another_run_is_refused(tmp_path, two_steps, capsys, options, more, message):
    constant = ("--train.lr-scheduler", "constant", "--train.max-steps", "-1")
    assert main(replaced(replaced(two_steps, *constant), *options)) == 0
    before = content(tmp_path / "run")
    expect_error(["train", "--output", str(tmp_path / "run"), "--resume", *more], capsys, message)
    assert content(tmp_path / "run") == before


def test_a_checkpoint_does_not_grow_with_the_steps(two_steps, tmp_path, monkeypatch):
    """Of the log, which metrics.jsonl has as a whole, it holds the last lines."""
    monkeypatch.setattr("mind.run.trainer.MOST_LOGGED", 2)
    assert main(replaced(two_steps, "--train.max-steps", "5")) == 0
    checkpoint = RunFolder(tmp_path / "run").checkpoints()[5]
    logged = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in logged] == [4, 5]
    assert [row["step"] for row in train_rows(tmp_path / "run")] == [1, 2, 3, 4, 5]
