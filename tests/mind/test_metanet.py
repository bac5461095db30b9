"""MetaNet and its calibration: masks, L_meta and its gradient, inertia, warm-up, state."""

from __future__ import annotations

import pytest
import torch

from mind.config import MetaNetConfig
from mind.errors import NotFiniteError
from mind.methods.mind.calibration import Calibrator, meta_loss
from mind.methods.mind.metanet import MetaNet

IDS = [f"q{i}" for i in range(6)]


def inputs(questions=6, perspectives=5, features=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(questions, perspectives, generator=generator) > 0.3
    present[:, 0] = True
    return (
        torch.randn(questions, features, generator=generator),
        torch.randn(questions, perspectives, features, generator=generator),
        present,
    )


def build(**changes):
    torch.manual_seed(0)
    config = MetaNetConfig(**{"width": 16, "accumulation": 2, "spread": None} | changes)  # losses in nats
    return Calibrator(MetaNet(12, 5, config.width, config.synergy_heads), config, learning_rate=1e-2)


def l_real_of(question, rationales, present):
    """A loss that the features determine, so that it can be learned."""
    return torch.where(present, rationales[..., 0].abs() + 0.2, float("nan"))


def add_feedback(calibrator, question, rationales, present):
    scores = calibrator.metanet(question, rationales, present)
    return calibrator.add_feedback(IDS, scores, l_real_of(question, rationales, present))


def test_scores_lie_in_the_open_unit_interval_and_missing_ones_are_zero():
    question, rationales, present = inputs()
    scores = build().metanet(question, rationales, present)
    assert scores.shape == (6, 5)
    assert ((scores > 0) & (scores < 1))[present].all() and (scores[~present] == 0).all()


def test_missing_perspectives_influence_nothing():
    metanet = build().metanet
    question, rationales, present = inputs()
    changed = torch.where(present[..., None], rationales, 1e3)
    torch.testing.assert_close(metanet(question, changed, present), metanet(question, rationales, present))


def test_perspectives_see_one_another_and_the_question():
    metanet = build().metanet
    question, rationales, _ = inputs()
    present = torch.ones(6, 5, dtype=torch.bool)
    scores = metanet(question, rationales, present)
    other = rationales.clone()
    other[:, 4] = torch.randn(6, 12, generator=torch.Generator().manual_seed(9))
    assert not torch.allclose(metanet(question, other, present)[:, 0], scores[:, 0])
    assert not torch.allclose(metanet(question + torch.randn_like(question), rationales, present), scores)


def test_meta_loss_is_the_kl_divergence_of_the_present():
    scores = torch.tensor([[0.2, 0.9, 0.5]])
    l_real = torch.tensor([[1.0, float("nan"), 2.0]])
    present = torch.tensor([[True, False, True]])
    p = torch.softmax(torch.tensor([0.2, 0.5]) / 0.7, 0)
    target = torch.softmax(torch.tensor([-1.0, -2.0]) / 0.7, 0)
    expected = (p * (p / target).log()).sum()
    torch.testing.assert_close(meta_loss(scores, l_real, present, 0.7), expected)


def test_meta_gradient_is_the_published_one():
    scores = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    l_real, present = torch.rand(3, 4, dtype=torch.float64), torch.ones(3, 4, dtype=torch.bool)
    tau = 0.6
    (3 * meta_loss(scores, l_real, present, tau)).backward()
    p, target = torch.softmax(scores.detach() / tau, 1), torch.softmax(-l_real / tau, 1)
    ratio = (p / target).log()
    kl = (p * ratio).sum(1, keepdim=True)
    torch.testing.assert_close(scores.grad, p * (ratio - kl) / tau)


def test_metanet_steps_once_a_window_with_the_mean_gradient():
    calibrator, reference = build(accumulation=3), build()
    weights = [p.detach().clone() for p in calibrator.metanet.parameters()]
    gradients = None
    for step in range(3):
        question, rationales, present = inputs(seed=step)
        add_feedback(calibrator, question, rationales, present)
        loss = meta_loss(
            reference.metanet(question, rationales, present), l_real_of(question, rationales, present), present, 1.0
        )
        parts = torch.autograd.grad(loss, list(reference.metanet.parameters()))
        gradients = parts if gradients is None else [a + b for a, b in zip(gradients, parts, strict=True)]
        moved = calibrator.end_step()
        same = [torch.equal(a, b) for a, b in zip(weights, calibrator.metanet.parameters(), strict=True)]
        assert moved == (step == 2) and all(same) == (step < 2)
    for p, gradient in zip(reference.metanet.parameters(), gradients, strict=True):
        p.grad = gradient / 3
    reference.optimizer.step()
    for a, b in zip(calibrator.metanet.parameters(), reference.metanet.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_warm_up_learns_which_rationales_are_easy():
    calibrator = build(warmup_epochs=60)
    question, rationales, present = inputs(questions=40)
    l_real = l_real_of(question, rationales, present)
    history = calibrator.warm_up(question, rationales, present, l_real, seed=0)
    assert len(history) == 60 and history[-1] < 0.4 * history[0]
    scores = calibrator.metanet(question, rationales, present)
    best = torch.where(present, scores, -1).argmax(1)
    easiest = torch.where(present, l_real, 99).argmin(1)
    assert (best == easiest).float().mean() > 0.6


def test_a_warm_up_tells_the_mean_of_each_epoch():
    """With a learning rate that moves nothing: L_meta of all questions, in batches of any size."""
    question, rationales, present = inputs()
    calibrator = build(warmup_epochs=2, warmup_questions=4, warmup_learning_rate=1e-30)
    l_real = l_real_of(question, rationales, present)
    with torch.no_grad():
        loss = float(meta_loss(calibrator.metanet(question, rationales, present), l_real, present, 1.0))
    assert calibrator.warm_up(question, rationales, present, l_real, seed=0) == pytest.approx([loss, loss], rel=1e-6)


def test_the_variance_of_losses_is_followed_slowly():
    unit = build(spread=0.25).unit
    for losses in (torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 4.0]]), torch.tensor([[1.0, torch.nan]])):
        unit.follow(losses)
    assert unit.variance == pytest.approx(0.9 * 1.0 + 0.1 * 4.0)  # the last has no spread


def test_a_state_that_is_not_finite_is_neither_saved_nor_loaded():
    calibrator = build()
    state = calibrator.state_dict()
    with torch.no_grad():
        next(calibrator.metanet.parameters()).fill_(torch.nan)
    with pytest.raises(NotFiniteError):
        calibrator.state_dict()
    state["average"] = {"q0": torch.tensor([torch.inf])}
    with pytest.raises(NotFiniteError):
        build().load_state_dict(state)


def test_moving_average_is_a_question_and_perspective():
    calibrator = build(ema=0.75)
    question, rationales, present = inputs()
    first, second = (torch.where(present, value, torch.nan) for value in (2.0, 4.0))
    calibrator.add_feedback(IDS, calibrator.metanet(question, rationales, present), first)
    smoothed = calibrator._smoothed(IDS, second)
    torch.testing.assert_close(smoothed, torch.where(present, 2.5, torch.nan), equal_nan=True)
    assert build()._smoothed(IDS, second) is second


def test_what_was_not_computed_keeps_its_average_and_leaves_the_loss():
    """ "selected" and "every-N" feedback: nan stands for a perspective whose L_real this step lacks."""
    question, rationales, present = inputs()
    l_real = l_real_of(question, rationales, present)
    partial = l_real.clone()
    partial[:, 1] = torch.nan
    for ema in (0.0, 0.5):
        calibrator = build(ema=ema)
        scores = calibrator.metanet(question, rationales, present)
        known = present & ~partial.isnan()
        expected = meta_loss(scores, partial, known, 1.0)
        assert calibrator.add_feedback(IDS, scores, partial) == pytest.approx(float(expected.detach()))
        calibrator.add_feedback(IDS, calibrator.metanet(question, rationales, present), l_real)
        late = calibrator._smoothed(IDS, partial)
        assert bool(late[:, 1].isnan().all()) == (ema == 0)
        if ema:  # the second feedback was the first of its kind
            torch.testing.assert_close(late[:, 1], l_real[:, 1], equal_nan=True)


def test_state_resumes_in_the_middle_of_a_window(tmp_path):
    straight, stopped = build(ema=0.5, spread=0.25), build(ema=0.5, spread=0.25)
    for step in range(5):
        question, rationales, present = inputs(seed=step)
        for calibrator in (straight, stopped):
            add_feedback(calibrator, question, rationales, present)
            calibrator.end_step()
        if step == 2:
            torch.save(stopped.state_dict(), tmp_path / "state.pt")
            stopped = build(ema=0.5, spread=0.25)
            stopped.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for a, b in zip(straight.metanet.parameters(), stopped.metanet.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_missing_l_real_never_poisons_a_gradient():
    calibrator = build()
    question, rationales, present = inputs()
    loss = add_feedback(calibrator, question, rationales, present)
    assert loss == pytest.approx(loss) and loss > 0
    assert all(p.grad.isfinite().all() for p in calibrator.metanet.parameters() if p.grad is not None)
