"""LLaMA-Factory takes the steps of its own loss when it is started through mind_kernels."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("llamafactory", reason="llamafactory is not installed (make integrations)")

import client_runs
from llamafactory.model import loader
from llamafactory.train.tuner import run_exp

from mind_kernels.integrations import llamafactory as fused

LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj"}
CASES = {
    "finetuning": {},
    "finetuning, LoRA": LORA,
    "finetuning, packing": {"packing": True, "neat_packing": False},
    "pretraining": {"stage": "pt"},
}


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """What is replaced, and the variables that LLaMA-Factory sets."""
    monkeypatch.setattr(loader, "init_adapter", loader.init_adapter)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def options(folder: Path, **changes) -> dict:
    """A run on the tiny model; its rows are words."""

    def text(ids: list[int]) -> str:
        return " ".join(f"t{i}" for i in ids)

    rows = [(row["input_ids"][:4], row["input_ids"][4:]) for row in client_runs.rows(48)]
    questions = [{"instruction": text(prompt), "input": "", "output": " " + text(answer)} for prompt, answer in rows]
    texts = [{"text": text(prompt + answer)} for prompt, answer in rows]
    (folder / "sft.json").write_text(json.dumps(questions))
    (folder / "pt.json").write_text(json.dumps(texts))
    info = {"sft": {"file_name": "sft.json"}, "pt": {"file_name": "pt.json", "columns": {"prompt": "text"}}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    defaults = {
        "model_name_or_path": str(client_runs.save(folder / "model")),
        "stage": "sft",
        "finetuning_type": "full",
        "do_train": True,
        "dataset_dir": str(folder),
        "dataset": changes.get("stage", "sft"),
        "template": "empty",
        "cutoff_len": 64,
        "preprocessing_num_workers": 1,
        "output_dir": str(folder / "output"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "seed": 1,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
    }
    return defaults | changes


def started(monkeypatch, file: Path, run: dict) -> None:
    file.write_text(json.dumps(run))  # JSON is YAML
    monkeypatch.setattr(sys, "argv", ["llamafactory", "train", str(file)])
    fused.main()


@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_the_stock_loss(tmp_path, recorded, agree, monkeypatch, case):
    run = options(tmp_path, **CASES[case])
    stock = recorded(lambda: run_exp(run))
    run["output_dir"] = str(tmp_path / "fused")
    found = recorded(lambda: started(monkeypatch, tmp_path / "run.yaml", run))
    assert loader.init_adapter.models == 1
    agree("llamafactory", "1 command", case, stock, found)


def test_other_losses_and_other_processes_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "run.yaml"
    with pytest.raises(ValueError, match="use_dft_loss: another loss than the cross-entropy"):
        started(monkeypatch, file, options(tmp_path, use_dft_loss=True))
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    with pytest.raises(SystemExit, match=r"torchrun --nproc-per-node 1 -m mind_kernels.*llamafactory train .*run.yaml"):
        started(monkeypatch, file, options(tmp_path))
    monkeypatch.setenv("USE_RAY", "1")
    with pytest.raises(SystemExit, match="USE_RAY is set"):
        started(monkeypatch, file, options(tmp_path))
    monkeypatch.setattr(sys, "argv", ["llamafactory", "export"])
    with pytest.raises(SystemExit, match="expected: python -m mind_kernels.integrations.llamafactory train FILE.yaml"):
        fused.main()


def test_another_version_of_llamafactory_is_refused(monkeypatch):
    monkeypatch.setattr(loader, "init_adapter", lambda model, args: model)
    expected = r"llamafactory \d.*loader.init_adapter takes model, args: expected config, model, model_args"
    with pytest.raises(ImportError, match=expected):
        fused.install()
