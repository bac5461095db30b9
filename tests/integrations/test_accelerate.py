"""The loop of accelerate in the integrations' README runs as it stands there, and does what one over logits does."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from trainers import Rows, distance, make, padded, weights

pytest.importorskip("accelerate", reason="accelerate is not installed (mind-kernels[train])")

from accelerate.state import AcceleratorState, GradientState
from torch.utils.data import DataLoader

from tests.guide import ROOT, block


@pytest.fixture(autouse=True)
def no_shared_state():
    """accelerate keeps its settings for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_steps_are_those_of_a_loop_over_logits(record):
    model = make("gemma2", final_logit_softcapping=3.0)
    plain, start = copy.deepcopy(model), weights(model)
    loader = DataLoader(Rows(16), batch_size=2, collate_fn=padded)  # four steps of two batches
    names = {"model": model, "loader": loader, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    exec(block(ROOT / "mind_kernels/integrations/README.md", "tests/integrations/test_accelerate.py"), names)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for number, batch in enumerate(loader):
        logits = plain(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
        (loss / 2).backward()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(names["loss"].cpu(), loss.detach(), rtol=1e-6, atol=0)
    trained = weights(model).cpu()
    moved = distance(trained, weights(plain))
    record("accelerate", "2", "a loop with accumulation and a softcap", weights=moved)
    assert moved <= 1e-6
    assert distance(trained, start) > 1e-3, "nothing was trained"
