"""What MethodTrainer saves, trains on and refuses: checkpoints, adapters, epochs, windows."""

from __future__ import annotations

import pytest
import torch
from test_trainer import build_trainer, step
from tiny import build_model

from mind.config import (
    StudentConfig,
)
from mind.errors import MindError
from mind.student.model import load_student


def test_a_checkpoint_is_a_plain_model(tmp_path):
    from transformers import AutoModelForCausalLM

    trainer = build_trainer(tmp_path, dtype=torch.float32, max_steps=2, save_steps=2)
    trainer.train()
    ((last_step, folder),) = trainer.folder.checkpoints().items()
    assert last_step == 2 and (folder / "model.safetensors").exists()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for (name, p), q in zip(loaded.named_parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0, msg=name)
    (folder / "calibration.pt").unlink()
    assert not trainer.folder.checkpoints()


def test_a_parameter_that_takes_no_part_in_the_loss_is_named(tmp_path):
    model = build_model()
    model.extra = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(MindError, match="parameters that take no part in the loss are to be trained: extra"):
        step(build_trainer(tmp_path, model=model))


def test_adapters_that_cannot_be_right_are_refused_before_the_run(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build_model(), LoraConfig(target_modules=["lm_head"], use_dora=True))
    with pytest.raises(MindError, match="the LM head has an adapter .DoraLinearVariant. that cannot be part of its"):
        build_trainer(tmp_path, model=model)


def test_lora_trains_adapters_alone(tmp_path, model_folder):
    config = StudentConfig(model=str(model_folder), lora=True, lora_rank=2, lora_targets=("q_proj",))
    model, _ = load_student(config)
    trainer = build_trainer(tmp_path, dtype=torch.float32, model=model, max_steps=2, learning_rate=1e-2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p.detach(), before[name])}
    assert changed and all("lora" in name for name in changed)


def test_epochs_are_those_of_the_questions(tmp_path):
    trainer = build_trainer(tmp_path, dtype=torch.float32, max_steps=-1, epochs=1.5, questions_per_step=2)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["epoch"] for row in rows] == pytest.approx([2 / 6, 4 / 6, 1, 8 / 6, 9 / 6])  # 6 and 3 questions


def test_what_cannot_train_is_refused(tmp_path, monkeypatch):
    from transformers import TrainingArguments

    with pytest.raises(MindError, match="flex_attention: PyTorch cannot train with it on a CPU"):
        build_trainer(tmp_path / "flex", attention="flex_attention")
    with pytest.raises(MindError, match="student.attention flash_attention_2: .*installed"):
        build_trainer(tmp_path / "flash", attention="flash_attention_2")
    with pytest.raises(
        MindError,
        match="share_prompts is always, but prompts cannot be shared: its sliding_window "
        "is 8 tokens, and the longest sequence has",
    ):
        build_trainer(tmp_path / "window", model=build_windowed(), share_prompts="always")
    with pytest.warns(RuntimeWarning, match="its own copy of the prompt: its sliding_window is 8"):
        assert not build_trainer(tmp_path / "auto", model=build_windowed()).context.pack_options.share_prompts
    with pytest.raises(MindError, match=r"question sum-0: its prompt alone has \d+ tokens; train.tokens_per_step"):
        build_trainer(tmp_path / "budget", tokens_per_step=20, questions_per_step=None)
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(MindError, match="sees 2 GPUs"):
        build_trainer(tmp_path / "two")


def build_windowed():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=258,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            use_sliding_window=True,
            sliding_window=8,
            max_window_layers=1,
        )
    )
