"""MIND and its ablations: a worked example in float64 through plan, packs and loss, and what each preset changes."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from small_run import expect_error, train_rows
from tiny import NAMES, build_questions
from worked_example import QUESTION, Z, head, hidden_of, losses_of

import mind
from mind.batches.packing import micro_batches
from mind.config import (
    DataConfig,
    MetaNetConfig,
    MindConfig,
    ObjectiveConfig,
    StudentConfig,
    TrainConfig,
)
from mind.data.questions import save_questions
from mind.errors import MindError
from mind.methods import METHODS, PRESETS, load_run_config, method_title, with_options
from mind.methods.method import MethodContext
from mind.methods.mind.calibration import Calibrator, mean_variance, meta_loss
from mind.methods.mind.metanet import MetaNet
from mind.methods.mind.objective import anchored, select
from mind.methods.mind.scorers import MetaNetScorer, Scored, Scorer, saturated, scores_of_losses
from mind.methods.step import Step
from mind.records import PackOptions
from mind.report.reading import Metrics

OPTIONS = PackOptions(length=64, share_prompts=True)
CE = torch.tensor([[2.096122946838727, 1.590928367217727, 1.863418311855762]], dtype=torch.float64)


class GivenScorer(Scorer):
    """Scores that a test gives."""

    given = torch.empty(0)

    def score(self, step, present):
        return Scored(self.given, self.given)


def method(name="mind", scorer=None, **metanet):
    """The method of the example's question, without a model, in the form of the paper unless `metanet` says else."""
    metanet = {"spread": None, "anchor": "none", **metanet}
    config = MindConfig(method=name, data=DataConfig(perspectives=NAMES), objective=ObjectiveConfig(tau_student=1.0))
    if name in PRESETS:  # a preset refuses another value than its own
        metanet |= PRESETS[name].options.get("metanet", {})
    config = with_options(dataclasses.replace(config, metanet=MetaNetConfig(**metanet)))
    context = MethodContext(config, None, None, [], [QUESTION], [[0]], "sdpa", OPTIONS)
    built = METHODS["mind"].__new__(METHODS["mind"])
    built.context, built.options = context, config.options
    built.scorer = scorer(context) if scorer else _scorer(built)
    return built


def _scorer(built):
    from mind.methods.mind.scorers import SCORERS

    return SCORERS[built.context.config.metanet.scores](built.context)


def step_of(number=0, question=QUESTION):
    return Step(number, 0, [question], lambda chosen: torch.where(chosen, losses_of(QUESTION)[:, :3], torch.nan))


def total(built, number=0, question=QUESTION, answer_span="suffix"):
    plan = built.prepare(step_of(number, question))
    packing = dataclasses.replace(OPTIONS, answer_span=answer_span)
    (batch,) = micro_batches(plan.questions, 3, packing, plan.trained)
    terms = built.loss(hidden_of(batch), head(), batch, plan)
    return plan, {name: float(value.detach()) for name, value in (("total", terms.loss), *terms.sums.items())}


def given(*scores, **metanet):
    built = method(scorer=GivenScorer, **metanet)
    built.scorer.given = torch.tensor([scores], dtype=torch.float64)
    return built


def test_the_example_has_the_losses_that_it_says():
    torch.testing.assert_close(losses_of(QUESTION)[:, :3], CE, rtol=0, atol=1e-14)
    assert Z.shape == (21, 6)


def test_mind_by_hand():
    plan, sums = total(given(0.9, 0.8, 0.5))
    assert plan.trained.tolist() == [[True, True, False]]
    assert plan.weights[0].tolist() == pytest.approx([0.524979187479, 0.475020812521, 0], abs=1e-12)
    assert sums["sft"] == pytest.approx(1.856145007146, abs=1e-12)
    assert sums["consistency"] == pytest.approx(0.007148973479351058, abs=1e-14)
    assert sums["total"] == pytest.approx(1.8568599044938596, abs=1e-12)
    first = dataclasses.replace(QUESTION, answer=(0,))  # the first token of the suffix alone is compared
    assert total(given(0.9, 0.8, 0.5), 0, first, "answer")[1]["total"] == pytest.approx(1.856915955113, abs=1e-12)
    scores = torch.tensor([[0.9, 0.8, 0.5]], dtype=torch.float64, requires_grad=True)
    loss = meta_loss(scores, CE, torch.ones(1, 3, dtype=torch.bool), 1.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.04266376119150823, abs=1e-14)
    expected = [0.14653195869576605, -0.08006064020330482, -0.06647131849246124]
    assert scores.grad[0].tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(
    ("name", "alpha", "value"),
    [
        ("mind-uniform", [1 / 3, 1 / 3, 1 / 3], 1.8509942126720451),
        ("mind-instant", [0, 1, 0], 1.5909283672177272),
    ],
)
def test_presets_by_hand(name, alpha, value):
    plan, sums = total(method(name))
    assert plan.weights[0].tolist() == pytest.approx(alpha, abs=1e-15)
    assert sums["total"] == pytest.approx(value, abs=1e-12)
    assert not plan.observed.any()


def test_random_scores_by_hand_and_by_step():
    plan, sums = total(given(0.2, 0.9, 0.85))
    assert plan.weights[0].tolist() == pytest.approx([0, 0.5124973964842103, 0.48750260351578956], abs=1e-14)
    assert sums["total"] == pytest.approx(1.7243028371168825, abs=1e-12)
    built, again = method("mind-random"), method("mind-random")
    drawn = [built.prepare(step_of(n)).scored.scores for n in (0, 1, 0)]
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    assert torch.equal(again.prepare(step_of(1)).scored.scores, drawn[1])
    assert all(((scores > 0) & (scores <= 1)).all() for scores in drawn)


def test_instant_scores_by_hand():
    scores = method("mind-instant").prepare(step_of()).scored.scores
    assert scores[0].tolist() == pytest.approx([0.494805420379, 1, 0.7275100553619653], abs=1e-12)
    # Their L_meta is the smallest there is.
    assert float(meta_loss(scores, CE, torch.ones(1, 3, dtype=torch.bool), 1.0)) == pytest.approx(0, abs=1e-15)


def test_table_by_hand():
    built = method("mind-table")
    before = torch.tensor([1.5, torch.nan, 1.9], dtype=torch.float64)
    built.load_state_dict({"average": {QUESTION.id: before}})
    built.scorer.finish_step([QUESTION], Scored(before, before), CE)
    table = built.state_dict()["average"][QUESTION.id]
    assert table.tolist() == pytest.approx([1.5596122946838729, 1.5909283672177272, 1.8963418311855762], abs=1e-14)
    plan, sums = total(built)
    assert plan.scored.scores[0].tolist() == pytest.approx([1, 0.9686839274661456, 0.6632704634982967], abs=1e-14)
    assert plan.weights[0].tolist() == pytest.approx([0.5078283783720471, 0.49217162162795286, 0], abs=1e-14)
    assert sums["total"] == pytest.approx(1.84819702174603, abs=1e-12)
    assert plan.observed.tolist() == [[False, False, True]]  # it learns what is not trained on


def test_a_table_without_losses_says_what_to_call():
    with pytest.raises(MindError, match=f"question {QUESTION.id}: the table has no losses of it: call before_training"):
        method("mind-table").prepare(step_of())


def test_saturated_scores_are_in_the_outer_hundredths():
    scores = torch.tensor([[0.009, 0.011, 0.5], [0.989, 0.991, 0.0]])
    present = torch.tensor([[True, True, True], [True, True, False]])
    assert saturated(scores, present) == pytest.approx(2 / 5)
    edge = torch.tensor([[0.99, 0.5]], dtype=torch.float64)
    assert saturated(edge, torch.ones(1, 2, dtype=torch.bool)) == 0


def test_scores_of_losses_are_positive_where_a_rationale_is_and_zero_elsewhere():
    losses = torch.tensor([[9.0, torch.nan, 1.0, torch.inf], [0.5, 0.5, torch.nan, torch.nan]])
    present = ~losses.isnan()
    scores = scores_of_losses(losses, present)
    assert (scores[present] > 0).all() and (scores[~present] == 0).all()
    assert scores[0, 0] == scores[0, 3] == 2.0**-40
    selected, alpha = select(scores, present, beta=0.8, tau_student=1.0)
    assert selected.tolist() == [[False, False, True, False], [True, True, False, False]]
    torch.testing.assert_close(alpha.sum(1), torch.ones(2))


def test_an_anchor_makes_beta_a_distance_from_the_best():
    """L_meta leaves the offset of the scores free, and without an anchor the selection depends on it."""
    present = torch.ones(3, 4, dtype=torch.bool)
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.5, 0.4, 0.3, 0.2], [0.35, 0.25, 0.15, 0.05]], dtype=torch.float64)
    losses = torch.tensor([[1.0, 1.1, 1.2, 1.3]], dtype=torch.float64).expand(3, 4)
    assert float(meta_loss(scores, losses, present, 1.0)) == pytest.approx(0, abs=1e-15)
    assert select(scores, present, 0.8, 1.0)[0].sum(1).tolist() == [2, 2, 1]
    chosen, alpha = select(anchored(scores, present), present, 0.85, 1.0)
    assert chosen.sum(1).tolist() == [2, 2, 2]
    torch.testing.assert_close(alpha, alpha[:1].expand(3, 4))
    plan, _ = total(given(0.5, 0.35, 0.32, anchor="max"))
    assert plan.trained.tolist() == [[True, True, True]]  # 0.8 of 1 is 0.2 below the best
    missing = torch.tensor([[True, False, True, True]])
    assert anchored(scores[:1], missing)[0].tolist() == pytest.approx([1, 0, 0.8, 0.7])


@pytest.mark.parametrize("name", ["mind-instant", "mind-table"])
def test_scores_of_losses_are_in_the_unit_of_metanet(name):
    """Whatever the scale of the losses, their standard deviation is `metanet.spread`."""
    deviation = mean_variance(CE) ** 0.5
    for scale in (1e-3, 1.0, 1e3):
        built = method(name, spread=0.1)
        if name == "mind-table":
            built.scorer._average = {QUESTION.id: scale * CE[0]}
            built.scorer._unit.follow(scale * CE)
        step = Step(0, 0, [QUESTION], lambda chosen, scale=scale: torch.where(chosen, scale * CE, torch.nan))
        scores = built.prepare(step).scored.scores
        torch.testing.assert_close(scores, 1 - (CE - CE.min()) * 0.1 / deviation, rtol=0, atol=1e-12)
        again = method(name, spread=0.1)
        again.load_state_dict(built.state_dict())
        assert again.scorer._unit.variance == built.scorer._unit.variance


def test_the_paper_is_a_preset():
    config = with_options(MindConfig(method="mind-paper"))
    assert (config.metanet.spread, config.metanet.anchor, config.objective.tau_student) == (None, "none", 1.0)
    assert (config.metanet.tau, config.objective.beta) == (1.0, 0.8)
    own = MindConfig()
    assert (own.metanet.spread, own.metanet.anchor, own.objective.tau_student) == (0.25, "max", 0.25)
    assert own.metanet_learning_rate == pytest.approx(1e-4)  # whatever the student's
    given = dataclasses.replace(own, metanet=MetaNetConfig(learning_rate=3e-6))
    assert given.metanet_learning_rate == 3e-6


def test_shuffled_scores_are_metanets_in_other_places(monkeypatch):
    own = torch.tensor([[0.9, 0.7, 0.1, 0.0], [0.2, 0.4, 0.6, 0.8]], requires_grad=True)
    present = torch.tensor([[True, True, True, False], [True, True, True, True]])
    monkeypatch.setattr(MetaNetScorer, "scores", lambda *_: own)
    from mind.methods.mind.scorers import ShuffledScorer

    scorer = ShuffledScorer.__new__(ShuffledScorer)
    scorer.context = SimpleNamespace(config=MindConfig())
    orders = set()
    for number in range(20):
        scores, kept = scorer.score(Step(number, 0, [QUESTION] * 2, lambda chosen: chosen), present)
        assert kept is own and not scores.requires_grad and scores[0, 3] == 0
        for q in range(2):
            assert sorted(scores[q].tolist()) == pytest.approx(sorted(own[q].tolist()))
        orders.add(tuple(scores[1].tolist()))
    assert len(orders) > 5


def test_without_synergy_the_others_are_not_seen():
    torch.manual_seed(0)
    metanet = MetaNet(12, 5, 16, 4, synergy=False)
    generator = torch.Generator().manual_seed(1)
    question, rationales = torch.randn(3, 12, generator=generator), torch.randn(3, 5, 12, generator=generator)
    present = torch.ones(3, 5, dtype=torch.bool)
    other = rationales.clone()
    other[:, 4] *= -1
    scores, changed = metanet(question, rationales, present), metanet(question, other, present)
    assert torch.equal(scores[:, :4], changed[:, :4]) and not torch.equal(scores[:, 4], changed[:, 4])
    with_synergy = MetaNet(12, 5, 16, 4)
    assert {n: p.shape for n, p in metanet.state_dict().items()} == {
        n: p.shape for n, p in with_synergy.state_dict().items()
    }


def test_the_spread_of_losses_is_their_unit():
    losses = torch.tensor([[1.0, 3.0, torch.nan], [0.0, 1.0, 2.0], [5.0, torch.nan, torch.nan]])
    assert mean_variance(losses) == pytest.approx((1 + 2 / 3) / 2)
    assert torch.tensor(mean_variance(losses[2:])).isnan()
    targets = []
    for scale in (0.01, 1.0, 100.0):
        torch.manual_seed(0)
        calibrator = Calibrator(MetaNet(4, 3, 8, 2), MetaNetConfig(width=8, synergy_heads=2, spread=0.25), 1e-3)
        calibrator.unit.follow(scale * losses)
        targets.append(calibrator.unit(scale * losses))
    for target in targets:
        torch.testing.assert_close(target, targets[1], equal_nan=True)
        assert mean_variance(target) ** 0.5 == pytest.approx(0.25)


def test_equal_losses_have_a_uniform_target():
    calibrator = Calibrator(MetaNet(4, 3, 8, 2), MetaNetConfig(width=8, synergy_heads=2, spread=0.25), 1e-3)
    scores = torch.full((1, 3), 0.5, requires_grad=True)
    assert calibrator.add_feedback(["q"], scores * 1.0, torch.ones(1, 3)) == pytest.approx(0, abs=1e-7)


def test_a_preset_is_a_method_with_options_that_are_fixed(tmp_path):
    for name, preset in PRESETS.items():
        config = with_options(MindConfig(method=name))
        assert config.method == name and method_title(name) == preset.title != "MIND"
        assert with_options(config) == config
    assert with_options(MindConfig(method="mind-nocons")).objective.consistency_weight == 0
    quick = MindConfig(method="mind-noinertia", metanet=MetaNetConfig(warmup_learning_rate=2e-4))
    assert with_options(quick).metanet_learning_rate == 2e-4
    with pytest.raises(
        MindError, match=r"objective.consistency_weight is 0.3: method mind-nocons fixes it at 0.0; mind"
    ):
        with_options(MindConfig(method="mind-nocons", objective=ObjectiveConfig(consistency_weight=0.3)))
    (tmp_path / "c.json").write_text('{"method": "mind-uniform"}')
    assert with_options(load_run_config(tmp_path / "c.json")).metanet.scores == "uniform"


@pytest.mark.parametrize("name", ["mind-frozen", "mind-uniform"])
def test_what_a_run_with_metanet_and_one_without_leave(name, tmp_path, model_folder):
    save_questions(build_questions(10), tmp_path / "train.jsonl")
    config = MindConfig(
        output=str(tmp_path / "run"),
        method=name,
        student=StudentConfig(model=str(model_folder), max_length=512),
        data=DataConfig(train=str(tmp_path / "train.jsonl"), perspectives=NAMES),
        train=TrainConfig(questions_per_step=2, max_steps=2, learning_rate=1e-3, report_to="none"),
        metanet=MetaNetConfig(width=16, warmup_epochs=2) if name == "mind-frozen" else MetaNetConfig(),
    )
    folder = mind.train(config)
    rows = train_rows(folder.path)
    assert (folder.path / "metanet.safetensors").exists() == (name == "mind-frozen")
    if name == "mind-frozen":
        assert all(0 <= row["saturated"] <= 1 for row in rows)  # MetaNet at rest too
    else:
        assert all(row["selected_ratio"] == 1 for row in rows)


def test_an_option_that_a_preset_fixes_is_refused_at_its_default_too(tmp_path, capsys):
    words = ["train", "--output", str(tmp_path / "run"), "--method", "mind-nocons"]
    expect_error([*words, "--objective.consistency-weight", "0.1"], capsys, "fixes objective.consistency_weight at 0.0")
    assert not (tmp_path / "run").exists()


SHARES = [f"share_{name}" for name in NAMES]


def rows_of(count, **columns):
    """Lines of metrics.jsonl in which each number goes evenly from its first value to its last."""
    lines = [{"phase": "warmup", "epoch": n + 1, "meta_loss": 1.0 - n / count} for n in range(count)]
    for n in range(count):
        at = {name: first + (last - first) * n / (count - 1) for name, (first, last) in columns.items()}
        shares = {name: at.pop(f"share_{name}", 0.5) for name in NAMES}
        lines.append({"phase": "train", "step": n + 1, "selected_share": shares, **at})
    return lines


@pytest.mark.parametrize(
    ("columns", "remark"),
    [
        ({"meta_loss": (0.5, 0.1), "saturated": (0.0, 0.2), "share_first": (0.2, 0.9)}, None),
        ({"meta_loss": (0.5, 0.1), "saturated": (0.0, 1.0), "share_first": (0.2, 0.9)}, "% of MetaNet's latest scores"),
        ({"meta_loss": (0.1, 0.5), "saturated": (0.0, 0.0), "share_first": (0.2, 0.9)}, "L_meta rose in training"),
        ({"meta_loss": (1e-5, 5e-4), "saturated": (0.0, 0.0), "share_first": (0.2, 0.9)}, None),  # noise
        ({"meta_loss": (1e-3, 5e-3), "saturated": (0.0, 0.0), "share_first": (0.2, 0.9)}, "L_meta rose in training"),
        ({"meta_loss": (0.5, 0.1)}, "never changed: each perspective was selected for the same share"),
        ({"meta_loss": (0.5, 0.1), **dict.fromkeys(SHARES, (1, 1))}, "every rationale was selected, so nothing"),
        (
            {"meta_loss": (0.5, 0.1), **dict.fromkeys(SHARES, (0, 0)), "share_second": (1, 1)},
            "second alone was selected, whatever the question; a smaller objective.beta makes it wider",
        ),
    ],
)
def test_what_metanet_did_not_do_is_remarked_on(tmp_path, columns, remark):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(12, **columns)))
    config = MindConfig(data=DataConfig(perspectives=NAMES))
    found = METHODS["mind"].remarks(config, Metrics(path))
    assert len(found) == (remark is not None) and (remark is None or remark in found[0])
    uniform = dataclasses.replace(config, metanet=MetaNetConfig(scores="uniform"))
    assert METHODS["mind"].remarks(uniform, Metrics(path)) == []
