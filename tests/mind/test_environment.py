"""A run is what its configuration says: what accelerate reads from the environment, and what the caller has set in
PyTorch, changes neither it nor the number of its processes in silence."""

from __future__ import annotations

import dataclasses
import os
from contextlib import contextmanager

import pytest
import torch
from small_run import expect_error, replaced, train_rows

import mind
from mind.cli import main
from mind.config import MindConfig, TrainConfig
from mind.methods import load_run_config
from mind.run.arguments import training_arguments


@pytest.mark.parametrize(
    "left",
    [
        {"LOCAL_RANK": "0"},
        {"RANK": "1", "LOCAL_RANK": "1"},
        {"PMI_SIZE": "2", "PMI_RANK": "1"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
        {"MV2_COMM_WORLD_SIZE": "4", "WORLD_SIZE": ""},
    ],
    ids=lambda left: "+".join(left),
)
def test_without_world_size_there_is_one_process(monkeypatch, tmp_path, left):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    arguments = training_arguments(MindConfig(output=str(tmp_path), train=TrainConfig(learning_rate=1e-3)))
    assert (arguments.world_size, arguments.process_index) == (1, 0)
    assert {name: os.environ.get(name) for name in left} == left


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "a run computes in bfloat16 by --train.bf16 alone"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "a run computes in bfloat16 by --train.bf16 alone"),
        ("ACCELERATE_USE_FSDP", "true", "a run divides its student by --train.shard fsdp2 alone"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "a run divides its student by --train.shard fsdp2 alone"),
        ("ACCELERATE_USE_MEGATRON_LM", "1", "a run divides its student by --train.shard fsdp2 alone"),
        ("ACCELERATE_TORCH_DEVICE", "meta", "ACCELERATE_TORCH_DEVICE choose the device meta, and a run uses"),
    ],
)
def test_a_launch_that_asks_for_another_run_is_refused(monkeypatch, tmp_path, capsys, two_steps, name, value, message):
    monkeypatch.setenv(name, value)
    expect_error(two_steps, capsys, name, value, message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("bf16", "asked", "computed"),
    [(True, "bf16", "bf16"), (True, "no", "bf16"), (True, None, "bf16"), (False, "no", "no"), (False, "", "no")],
)
def test_the_option_says_the_precision(monkeypatch, tmp_path, bf16, asked, computed):
    """`accelerate launch` sets the variable even without --mixed_precision."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if asked is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    train = TrainConfig(learning_rate=1e-3, bf16=bf16)
    assert (training_arguments(MindConfig(output=str(tmp_path), train=train)).mixed_precision or "no") == computed


@pytest.mark.parametrize(("report_to", "told"), [("tensorboard", []), ("none", []), ("wandb", ["wandb"])])
def test_no_other_service_gets_the_metrics(monkeypatch, tmp_path, report_to, told):
    """TensorBoard's files are written by a callback of the run."""
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "https://127.0.0.1:1")
    train = TrainConfig(learning_rate=1e-3, report_to=report_to)
    assert training_arguments(MindConfig(output=str(tmp_path), train=train)).report_to == told


@contextmanager
def default(kind, value, former):
    """Inside the block, PyTorch's default dtype or device is another."""
    getattr(torch, f"set_default_{kind}")(value)
    try:
        yield
        assert getattr(torch, f"get_default_{kind}")() == (torch.device(value) if kind == "device" else value)
    finally:
        getattr(torch, f"set_default_{kind}")(former)


SET_BY_A_CALLER = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "dtype": lambda: default("dtype", torch.float64, torch.float32),
    "device": lambda: default("device", "meta", None),
}


@pytest.mark.nightly
def test_what_the_caller_has_set_in_pytorch_changes_no_run(tmp_path, arguments):
    short = replaced(arguments, "--train.max-steps", "2", "--evaluation.max-new-tokens", "2")
    assert main(short) == 0
    config = load_run_config(tmp_path / "run" / "config.json")
    for name, surroundings in SET_BY_A_CALLER.items():
        with surroundings():
            folder = mind.train(dataclasses.replace(config, output=str(tmp_path / name)))
            assert torch.is_grad_enabled() == (name not in ("no_grad", "inference_mode"))
            assert torch.is_autocast_enabled("cpu") == (name == "autocast")
        assert train_rows(folder.path) == train_rows(tmp_path / "run"), name
