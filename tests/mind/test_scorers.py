"""The scorers of a run on a tiny student: what happens before training, what a step teaches, what is drawn."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import NAMES, build_model, build_questions, build_tokenizer
from torch import nn

from mind.batches.cross_entropy import losses_work, rationale_losses
from mind.batches.packing import present_rationales
from mind.config import DataConfig, MetaNetConfig, MindConfig, StudentConfig, TrainConfig
from mind.methods.method import MethodContext
from mind.methods.mind import scorers
from mind.methods.mind.calibration import mean_variance
from mind.methods.mind.scorers import SCORERS, Scored
from mind.methods.step import Step

QUESTIONS = build_questions(3)


def scorer(name, *, model=None, seed=0, **metanet):
    config = MindConfig(
        data=DataConfig(perspectives=NAMES),
        student=StudentConfig(max_length=512),
        train=TrainConfig(questions_per_step=3, max_steps=4, pack_length=300, seed=seed, report_to="none"),
        metanet=MetaNetConfig(**{"width": 16, "scores": name, "accumulation": 2} | metanet),
    )
    context = MethodContext.build(config, model or build_model(), build_tokenizer(), QUESTIONS)
    return SCORERS[name](context)


def with_dropout():
    """A student whose losses are random while it trains."""
    return build_model(attention_dropout=0.5).train()


def losses(built):
    context = built.context
    return rationale_losses(context.model.eval(), context.tokenized, 3, context.pack_options)


def weights(built):
    return torch.cat([p.detach().flatten() for p in built.networks()["metanet"].parameters()])


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_what_a_warm_up_says_and_does(epochs):
    built = scorer("metanet", model=with_dropout(), warmup_epochs=epochs)
    before, context = weights(built), built.context
    first, *rows = built.before_training()
    observed = losses_work(context.tokenized, 3, context.pack_options) if epochs else 0
    assert observed == 0 or observed >= sum(int(tokens) for tokens in losses(built)[1].flatten())
    assert first == {"phase": "warmup", "work": {"encoded": first["work"]["encoded"], "observed": observed}}
    assert first["work"]["encoded"] > 0
    assert [(row["phase"], row["epoch"]) for row in rows] == [("warmup", n + 1) for n in range(epochs)]
    assert torch.equal(before, weights(built)) == (epochs == 0)
    # The same as on the table of losses itself.
    other = scorer("metanet", warmup_epochs=epochs)
    table, tokens = losses(other)
    history = other.calibrator.warm_up(other.features.question, other.features.rationales, tokens > 0, table, 0)
    assert [row["meta_loss"] for row in rows] == history and torch.equal(weights(built), weights(other))


def test_a_warm_up_takes_rationales_of_one_token(monkeypatch):
    tokens, seen = torch.tensor([[1, 1, 2]] * 2 + [[3, 0, 1]]), []
    monkeypatch.setattr(scorers, "rationale_losses", lambda *_: (torch.rand(3, 3), tokens))
    built = scorer("metanet", warmup_epochs=1)
    monkeypatch.setattr(built.calibrator, "warm_up", lambda *given: seen.append(given) or [])
    list(built.before_training())
    assert torch.equal(seen[0][2], tokens > 0)


def test_metanet_is_the_seeds():
    torch.manual_seed(1)
    first = scorer("metanet")
    torch.manual_seed(2)
    assert torch.equal(weights(first), weights(scorer("metanet")))
    assert not torch.equal(weights(first), weights(scorer("metanet", seed=1)))


@pytest.mark.parametrize("joint", [True, False])
def test_a_step_teaches_metanet_once_a_window(joint):
    built = scorer("metanet", joint=joint, warmup_epochs=0, learning_rate=1e-2, spread=None)
    before, present = weights(built), present_rationales(built.context.tokenized, 3)
    l_real = torch.where(present, torch.arange(9.0).view(3, 3) / 10, torch.nan)
    for step in range(2):
        scores = built.scores(built.context.tokenized, present)
        said = built.finish_step(built.context.tokenized, Scored(scores, scores), l_real)
        assert torch.equal(before, weights(built)) == (not joint or step == 0)
        assert set(said.means) == {"saturated", *(["meta_loss"] if joint else [])}
        assert dict(said.latest) == ({"meta_learning_rate": 1e-2} if joint else {})
    assert not joint or said.means["meta_loss"] > 0


def test_what_is_drawn_lies_where_a_rationale_is():
    built = scorer("random")
    present = present_rationales(built.context.tokenized, 3)
    assert not present.all()
    scores = built.score(Step(0, 0, built.context.tokenized, lambda chosen: chosen), present).scores
    assert (scores[~present] == 0).all() and ((scores > 0) & (scores <= 1))[present].all()


def test_a_table_begins_with_the_losses_of_the_untrained_student():
    built = scorer("table", model=with_dropout(), table_decay=0.9)
    (row,) = built.before_training()
    table, _ = losses(built)
    work = losses_work(built.context.tokenized, 3, built.context.pack_options)
    assert row == {"phase": "warmup", "work": {"observed": work}}
    found = torch.stack([built.state_dict()["average"][question.id] for question in QUESTIONS])
    torch.testing.assert_close(found, table.double(), rtol=0, atol=0, equal_nan=True)
    assert built.state_dict()["variance"] == mean_variance(table)


def test_a_table_follows_the_spread_of_the_steps():
    built = scorer("table", spread=0.25)
    one, other = torch.tensor([[0.1, 0.3, 0.5]]), torch.tensor([[0.0, 3.0, 6.0]])
    question = [SimpleNamespace(id="q")]
    built.finish_step(question, Scored(one, one), one)
    assert built.state_dict()["variance"] == pytest.approx(mean_variance(one))
    built.finish_step(question, Scored(one, one), other)
    assert built.state_dict()["variance"] == pytest.approx(0.9 * mean_variance(one) + 0.1 * mean_variance(other))


def test_an_instant_scorer_follows_the_spread_of_each_step():
    built = scorer("instant", spread=0.25)
    present = torch.ones(1, 3, dtype=torch.bool)
    for scale in (1.0, 4.0):
        step = Step(0, 0, [], lambda chosen, scale=scale: torch.where(chosen, scale * torch.arange(3.0), torch.nan))
        built.score(step, present)
    assert built.state_dict() == {"variance": pytest.approx((0.9 + 0.1 * 16) * 2 / 3)}


def test_networks_are_what_is_trained():
    assert isinstance(scorer("metanet").networks()["metanet"], nn.Module) and not scorer("uniform").networks()
