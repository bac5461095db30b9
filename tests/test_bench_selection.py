"""bench.selection: its measures on examples by hand, MetaNet on a small table, and the tables from file to file."""

from __future__ import annotations

import math

import pytest
import torch

from bench import selection, selection_tables
from bench.measure import write_results
from bench.selection import Selection, Table, Target, followed, measured, rank_correlation, regret, scores_of, warmed_up
from mind.errors import MindError
from mind.methods.mind.features import Features


def test_regret_and_rank_correlation_by_hand():
    losses = torch.tensor([[1.0, 2.0, 3.0], [4.0, 2.0, torch.nan], [5.0, 5.0, 5.0]])
    alpha = torch.tensor([[0.0, 0.5, 0.5], [0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    # (2.5 - 1) / (2 - 1) and (2.5 - 2) / (3 - 2); the losses of the third do not differ.
    assert regret(alpha, losses) == pytest.approx((1.5 + 0.5) / 2)
    present = ~losses.isnan()
    scores = torch.tensor([[0.9, 0.5, 0.7], [0.1, 0.2, 0.0], [0.1, 0.2, 0.3]])
    assert rank_correlation(scores[:2], -losses[:2], present[:2]) == pytest.approx((0.5 + 1) / 2)


@pytest.fixture
def table():
    generator = torch.Generator().manual_seed(0)
    features = Features(torch.randn(6, 8, generator=generator), torch.randn(6, 3, 8, generator=generator))
    losses = 1 + torch.rand(6, 3, generator=generator)
    losses[0, 1] = torch.nan
    return Table(features, losses)


def test_a_selection_is_measured_by_hand(table):
    two = Table(table.features, torch.tensor([[1.0, 2.0, 3.0], [4.0, 2.0, torch.nan]]))
    scores = torch.tensor([[0.995, 0.9, 0.2], [0.9, 0.5, 0.0]])
    found = measured(two, scores, Selection("none", 0.8, 1e6))
    assert found["selected"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["evenness"] == pytest.approx(math.log(2) / math.log(3) / 2)
    assert found["saturated"] == pytest.approx(1 / 5) and found["easiest"] == 0.5
    assert found["order"] == pytest.approx((1 - 1) / 2)
    assert found["regret"] == pytest.approx((0.5 + 2) / 2)
    wide = measured(two, scores, Selection("max", 0.8, 1e6))  # 0.995 and 0.9 are within 0.2, 0.9 and 0.5 are not
    assert wide["selected"] == found["selected"]
    assert measured(two, scores, Selection("max", 0.55, 1e6))["selected"] == pytest.approx((2 / 3 + 1) / 2)


def test_metanet_learns_a_table_and_follows_when_it_is_turned(table, monkeypatch):
    calibrator, history = warmed_up(table, Target(1.0, 0.25))
    assert history[-1] < history[0]
    found = measured(table, scores_of(calibrator, table), Selection("max", 0.8, 0.25))
    assert found["order"] > 0.4
    torch.testing.assert_close(table.turned().turned().losses, table.losses, equal_nan=True)
    assert torch.equal(table.turned().losses[1:].argmin(1), table.losses[1:].argmax(1))
    monkeypatch.setattr(selection, "STEPS", 100)
    quick = followed(table, Target(1.0, 0.25), 1e-3)
    still = followed(table, Target(1.0, 0.25), 1e-9)
    assert quick["turned"] < 100 and quick["order_100"] > 0.3
    assert still["turned"] is None and still["order_100"] == pytest.approx(-found["order"])


def test_the_easiest_are_trained_and_the_tables_are_read_again(tmp_path, monkeypatch):
    losses = torch.tensor([[3.0, 1.0, 2.0], [torch.nan, 1.0, torch.nan]])
    assert selection_tables.easiest(losses).tolist() == [[False, True, True], [False, True, False]]
    questions, names = selection_tables.questions_of(None, 2)
    rows = [selection_tables.row("w", questions, names, step, losses + step) for step in (0, 8, 16)]
    assert rows[0]["l_real"] == [[3.0, 1.0, 2.0], [None, 1.0, None]] and rows[0]["mean"] == 1.75
    write_results(rows, tmp_path / "selection_tables.jsonl")
    monkeypatch.setattr(selection, "load_student", lambda _: (None, None))
    monkeypatch.setattr(selection, "StudentEncoder", lambda *_: None)
    monkeypatch.setattr(selection, "build_features", lambda *_: "features")
    (first, before), (last, after) = selection.load_tables(None, tmp_path)
    assert (first, last) == (0, 16) and before.features == "features"
    torch.testing.assert_close(after.losses - before.losses, losses - losses + 16, equal_nan=True)
    (rows[0]["questions"])[0] = "another"
    write_results(rows, tmp_path / "selection_tables.jsonl")
    with pytest.raises(MindError, match="its tables are of other questions"):
        next(selection.load_tables(None, tmp_path))
