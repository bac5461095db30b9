"""axolotl takes the steps of its own loss with the plugin in its YAML file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"  # before the import
pytest.importorskip("axolotl", reason="axolotl is not installed (make integrations)")

import client_runs
import torch
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets
from axolotl.integrations.base import BasePlugin, PluginManager
from axolotl.train import train

from mind_kernels.integrations.axolotl import MindKernelsPlugin

PLUGIN = {"plugins": ["mind_kernels.integrations.axolotl.MindKernelsPlugin"]}
LORA = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "v_proj"],
    # Which change the classes of the layers for good.
    "lora_qkv_kernel": False,
    "lora_mlp_kernel": False,
    "lora_o_kernel": False,
}
CASES = {
    "full": {},
    "LoRA": LORA,
    "LoRA of the head": LORA | {"lora_target_modules": ["q_proj", "lm_head"]},
    "packing": {"sample_packing": True, "pad_to_sequence_len": True},
}


@pytest.fixture(autouse=True)
def no_plugins():
    yield
    PluginManager.get_instance().plugins.clear()


def options(folder: Path, **changes) -> Path:
    """A YAML file (JSON is YAML) of a run on the tiny model."""
    data = client_runs.save_lines(folder / "rows.jsonl", client_runs.rows(48))
    defaults = {
        "base_model": str(client_runs.save(folder / "model")),
        "datasets": [{"path": str(data), "ds_type": "json", "type": None}],
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / "output"),
        "sequence_len": 64,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "optimizer": "sgd",
        "lr_scheduler": "constant",
        "learning_rate": 0.1,
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "attn_implementation": "eager",
        "val_set_size": 0,
        "save_strategy": "no",
        "seed": 1,
        "logging_steps": 1,
        "use_tensorboard": False,
    }
    file = folder / "run.yaml"
    file.write_text(json.dumps(defaults | changes))
    return file


def trained(folder: Path, **changes):
    """Trains as `axolotl train` does; returns the model."""
    folder.mkdir()
    torch.manual_seed(0)
    cfg = load_cfg(str(options(folder, **changes)))
    model, _, _ = train(cfg=cfg, dataset_meta=load_datasets(cfg=cfg))
    base = model.get_base_model() if "adapter" in changes else model
    assert ("plugins" in changes) == (getattr(base, "last_row_stats", None) is not None), "the plugin was not called"
    return model


@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_the_stock_loss(tmp_path, recorded, agree, case):
    stock = recorded(lambda: trained(tmp_path / "stock", **CASES[case]))
    fused = recorded(lambda: trained(tmp_path / "fused", **CASES[case], **PLUGIN))
    agree("axolotl", "1 of YAML", f"supervised finetuning, {case}", stock, fused)


def test_other_losses_are_refused(tmp_path):
    with pytest.raises(ValueError, match="mind_kernels computes the loss .* excludes chunked_cross_entropy: set"):
        load_cfg(str(options(tmp_path, chunked_cross_entropy=True, **PLUGIN)))
    cfg = load_cfg(str(options(tmp_path, chunked_cross_entropy=True, mind_kernels=False, **PLUGIN)))
    assert cfg.mind_kernels is False
    model = client_runs.model()
    MindKernelsPlugin().post_model_load(cfg, model)
    assert type(model) is type(client_runs.model())


def test_another_version_of_axolotl_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(BasePlugin, "post_model_load", lambda self, model: None)
    expected = r"axolotl \d.*BasePlugin.post_model_load takes self, model: expected self, cfg, model"
    with pytest.raises(ImportError, match=expected):
        load_cfg(str(options(tmp_path, **PLUGIN)))
