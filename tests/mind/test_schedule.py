"""The learning rate of each step, against the formulas, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from test_trainer import build_trainer

from mind.config import TrainConfig
from mind.errors import MindError
from mind.run.schedule import rate_factors

DECAYS = {
    # Of step i >= w of a run of n steps; a run without a warm-up begins with the full rate as its first.
    "constant_with_warmup": lambda i, w, n: 1.0,
    "linear": lambda i, w, n: (n - i) / (n + 1 - w) if w else (n - i) / n,
    "cosine": lambda i, w, n: (1 + math.cos(math.pi * ((i + 1 - w) / (n + 1 - w) if w else i / n))) / 2,
}


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 8, 21])
@pytest.mark.parametrize("name", list(DECAYS))
def test_the_rates_are_the_formulas(name, steps, ratio):
    factor = rate_factors(TrainConfig(lr_scheduler=name, warmup_ratio=ratio), steps)
    warmup = math.ceil(ratio * steps)
    for i in range(steps):
        expected = (i + 1) / warmup if i < warmup else DECAYS[name](i, warmup, steps)
        assert factor(i) == pytest.approx(expected, abs=1e-12) and factor(i) > 0, i


@pytest.mark.parametrize(
    "name", ["cosin", "-", "COSINE", "reduce_lr_on_plateau", "greedy", "cosine_with_min_lr", "warmup_stable_decay"]
)
def test_a_schedule_that_needs_more_than_its_name_is_refused(name):
    with pytest.raises(MindError, match=f"^train.lr_scheduler is '{name}': expected one of linear, cosine, .*constant"):
        rate_factors(TrainConfig(lr_scheduler=name), 5)


@pytest.mark.parametrize("options", [{"warmup_ratio": 0.05, "lr_scheduler": "cosine"}, {"warmup_ratio": 0.5}])
def test_the_first_step_trains_and_the_rates_are_logged(tmp_path, options):
    trainer = build_trainer(tmp_path, method="sft", dtype=torch.float32, **options)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    factor = rate_factors(trainer.context.config.train, 4)
    moved = []
    plain = trainer.log

    def log(logs, *rest):
        if not moved:
            moved.append(any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters()))
        plain(logs, *rest)

    trainer.log = log
    trainer.train()
    assert moved == [True]
    rates = [row["learning_rate"] for row in trainer.state.log_history if "loss" in row]
    assert rates == pytest.approx([1e-3 * factor(step) for step in range(4)])
