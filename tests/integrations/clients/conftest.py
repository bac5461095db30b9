"""What the tests of all clients share: what a Trainer's run records, and the comparison that becomes a row."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable

import pytest
from client_runs import Run
from torch import Tensor, nn
from trainers import distance, weights

# LLaMA-Factory imports torchaudio at once, of which PyPI has no build for PyTorch without CUDA, and uses it for sound.
if importlib.util.find_spec("llamafactory") and not importlib.util.find_spec("torchaudio"):
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], Run]:
    """Runs a Trainer of transformers, and keeps the loss of every backward pass: the Trainer's own log rounds."""
    from transformers import Trainer

    step = Trainer.training_step
    trained: list[tuple[nn.Module, Run]] = []

    def training_step(self: Trainer, model: nn.Module, *args: object, **kwargs: object) -> Tensor:
        if not trained:
            trained.append((model, Run(weights(model))))
        loss = step(self, model, *args, **kwargs)
        trained[0][1].losses.append(float(loss))
        return loss

    def record(train: Callable[[], object]) -> Run:
        trained.clear()
        train()
        [(model, run)] = trained
        run.end = weights(model)
        return run

    monkeypatch.setattr(Trainer, "training_step", training_step)
    return record


@pytest.fixture
def agree(record: Callable[..., None]) -> Callable[..., None]:
    """Demands that a fused run is the stock one, and records it."""

    def compare(client: str, lines: str, what: str, stock: Run, fused: Run) -> None:
        assert len(stock.losses) == len(fused.losses) >= 4
        loss, moved = distance(fused.all_losses(), stock.all_losses()), distance(fused.end, stock.end)
        record(client, lines, what, loss=loss, weights=moved)
        assert distance(fused.start, stock.start) == 0, "the two runs start from other weights"
        assert distance(stock.end, stock.start) > 1e-3, "nothing was trained"
        assert loss <= 1e-6
        assert moved <= 1e-5

    return compare
