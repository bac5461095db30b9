"""Tiny random models, tiny data, and transformers' Trainer on both, for what compares the fused loss with the stock."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

VOCABULARY = 99
IGNORED = -100


class Rows(Dataset):
    """Sequences of 8 to 20 tokens, whose first four are a prompt without labels."""

    def __init__(self, count: int = 24, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rows = []
        for _ in range(count):
            length = int(torch.randint(8, 21, (), generator=generator))
            ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
            self.rows.append({"input_ids": ids, "labels": [IGNORED] * 4 + ids[4:]})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return dict(self.rows[index])


def padded(features: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """A batch with padding on the right."""
    width = max(len(feature["input_ids"]) for feature in features)

    def pad(name: str, value: int) -> Tensor:
        return torch.tensor([feature[name] + [value] * (width - len(feature[name])) for feature in features])

    mask = torch.tensor([[1] * len(f["input_ids"]) + [0] * (width - len(f["input_ids"])) for f in features])
    return {"input_ids": pad("input_ids", 0), "labels": pad("labels", IGNORED), "attention_mask": mask}


def make(family: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random model in training mode, without dropout, whose logits are wide enough to meet a softcap."""
    from tests.mind.families import build  # imports mind, whose packages the environments of clients/ lack

    model = build(family, **changes).to(dtype)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def arguments(folder: Any, **changes: Any) -> TrainingArguments:
    """Four steps of six sequences, in three pieces each."""
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "max_steps": 4,
        "logging_steps": 1,
        "learning_rate": 0.1,
        "optim": "sgd",  # Adam would make a step of the rounding in a gradient that is zero, as that of a key's bias
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return TrainingArguments(**defaults | changes)


class _Recorder(Trainer):
    """Keeps the loss of every backward pass; its log rounds."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses.append(float(loss))
        return loss


def train(
    model: nn.Module, folder: Any, collate: Any = padded, rows: Dataset | None = None, **changes: Any
) -> tuple[Tensor, Tensor]:
    """The losses of all backward passes, and the trained parameters, flat, after a Trainer's run."""
    trainer = _Recorder(model, arguments(folder, **changes), data_collator=collate, train_dataset=rows or Rows())
    trainer.losses = []
    trainer.train()
    return torch.tensor(trainer.losses, dtype=torch.float64), weights(model)


def weights(model: nn.Module) -> Tensor:
    """All parameters, flat, float64."""
    return torch.cat([parameter.detach().double().flatten() for parameter in model.parameters()])


def distance(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|."""
    return float((found - expected).norm() / expected.norm())
