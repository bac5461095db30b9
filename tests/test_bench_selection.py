"""bench.selection: its measures on examples by hand, and one table from features to numbers."""

from __future__ import annotations

import pytest
import torch

from bench import selection
from bench.selection import Table, candidates, measured, rank_correlation, regret
from mind.methods.mind.features import Features


def test_regret_and_rank_correlation_by_hand():
    losses = torch.tensor([[1.0, 2.0, 3.0], [4.0, 2.0, torch.nan], [5.0, 5.0, 5.0]])
    alpha = torch.tensor([[0.0, 0.5, 0.5], [0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    # (2.5 - 1) / (2 - 1) and (2.5 - 2) / (3 - 2); the losses of the third do not differ.
    assert regret(alpha, losses) == pytest.approx((1.5 + 0.5) / 2)
    present = ~losses.isnan()
    scores = torch.tensor([[0.9, 0.5, 0.7], [0.1, 0.2, 0.0], [0.1, 0.2, 0.3]])
    assert rank_correlation(scores[:2], -losses[:2], present[:2]) == pytest.approx((0.5 + 1) / 2)


def test_a_table_is_measured(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features = Features(torch.randn(6, 8, generator=generator), torch.randn(6, 3, 8, generator=generator))
    present = torch.ones(6, 3, dtype=torch.bool)
    present[0, 1] = False
    losses = torch.where(present, 1 + torch.rand(6, 3, generator=generator), torch.nan)
    seen = []
    monkeypatch.setattr(selection, "saturated", lambda *given: seen.append(given) or 0.25)
    found = measured(Table(features, present, losses), next(candidates()))
    assert set(found) == set(selection.COLUMNS) and found["saturated"] == 0.25
    ((scores, there),) = seen
    assert scores.shape == (6, 3) and there is present
    assert 1 / 3 <= found["selected"] <= 1 and 0 <= found["evenness"] <= 1 and found["meta_loss"] >= 0
