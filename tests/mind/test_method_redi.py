"""Method redi: its worked example in float64 through plan, packs and loss, gamma, and where a run stops."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from method_cases import PACKINGS, build, config_of, total
from small_run import train_rows
from worked_example import QUESTION, RIGHT, WRONG, WRONG_ROW, Z, head, hidden_of

import mind
from mind.batches.packing import micro_batches
from mind.errors import StoppedError
from mind.methods.pairs import Pair
from mind.methods.redi import Redi, RediOptions
from mind.methods.step import Step
from mind.records import Branch

ROWS = {0: 0, 1: WRONG_ROW}


@pytest.mark.parametrize("packing", PACKINGS)
def test_redi_by_hand(packing):
    def built(alpha):
        return build(Redi, RediOptions(alpha=alpha), _pairs={"example": [Pair(RIGHT, WRONG)]})

    rows = {0: 0, 1: WRONG_ROW}
    assert total(built(0.8), rows, packing)[1] == pytest.approx(0.507139327517, abs=1e-12)
    plan, loss, gradients = total(built(0.0), rows, packing)
    assert loss == pytest.approx(2.0961229468387272, abs=1e-12)  # fine-tuning on the right one
    assert set(gradients) == {0} and plan.observed.tolist() == [[False, True]]


@pytest.mark.parametrize("packing", PACKINGS)
def test_gamma_by_hand(packing):
    built = build(Redi, RediOptions(gamma=1.0), _pairs={"example": [Pair(RIGHT, WRONG)]})
    _, loss, gradients = total(built, ROWS, packing)
    assert loss == pytest.approx(1.878095636106, abs=1e-12)
    p = Z[WRONG_ROW : WRONG_ROW + 4].softmax(1)
    of_nll = p - torch.nn.functional.one_hot(torch.tensor(WRONG.ids), 6)
    torch.testing.assert_close(gradients[1], 0.108257866627 * of_nll / 4, rtol=0, atol=1e-12)  # it is learned here


@pytest.mark.parametrize("normalize", ["sequence", "token"])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_the_gradient_is_that_of_the_loss(gamma, normalize):
    """By autograd of the objective as it is written: two questions, of other lengths."""
    ids = {0: (1, 2, 4, 5), 1: (1, 3, 0, 5), 2: (2, 0, 1, 4, 5), 3: (4, 5)}
    firsts = {0: 0, 1: 12, 2: 7, 3: 16}
    branches = {segment: Branch(QUESTION.prompt, tokens) for segment, tokens in ids.items()}
    pairs = {"a": [Pair(branches[0], branches[1])], "b": [Pair(branches[2], branches[3])]}
    built = build(Redi, RediOptions(gamma=gamma), _pairs=pairs)
    objective = dataclasses.replace(built.context.config.objective, normalize=normalize)
    built.context = dataclasses.replace(
        built.context, config=dataclasses.replace(built.context.config, objective=objective)
    )
    questions = [dataclasses.replace(QUESTION, id=name) for name in pairs]
    plan = built.prepare(Step(0, 0, questions, lambda chosen: chosen))
    losses, gradients = 0.0, torch.zeros_like(Z)
    for batch in micro_batches(plan.questions, 2, PACKINGS[0], plan.trained):
        hidden = hidden_of(batch, firsts)
        loss = built.loss(hidden, head(), batch, plan).loss
        loss.backward()
        losses += float(loss.detach())
        seen = dict(firsts)
        for segment, gradient in zip(batch.segment.tolist(), hidden.grad, strict=True):
            gradients[seen[segment]] += gradient
            seen[segment] += 1
    z = Z.clone().requires_grad_()
    log_p = z.log_softmax(1)
    total_nll = {s: -log_p[range(firsts[s], firsts[s] + len(t)), t].sum() for s, t in ids.items()}
    expected = 0.0
    for sign, slots in ((1.0, (0, 2)), (-0.8, (1, 3))):
        count = sum(len(ids[s]) for s in slots)
        for s in slots:
            ce = total_nll[s] / len(ids[s])
            factor = (-gamma * ce).exp() if sign < 0 else 1.0
            expected = expected + sign * factor * (total_nll[s] / count if normalize == "token" else ce / 2)
    expected.backward()
    assert losses == pytest.approx(float(expected.detach()), abs=1e-12)
    torch.testing.assert_close(gradients, z.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("packing", PACKINGS)
def test_pairs_weigh_the_same_in_whatever_questions_they_are(packing):
    """Two questions, of two pairs and of one: the loss is the mean over the three."""
    first_rows = {0: 0, 1: 12, 2: 4, 3: 16, 4: 7, 5: 18}  # segment -> first row of Z
    ids = {0: (1, 2, 4, 5), 1: (1, 3, 0, 5), 2: (3, 4, 5), 3: (4, 5), 4: (2, 0, 1, 4, 5), 5: (1, 2, 5)}
    branches = {segment: Branch(QUESTION.prompt, tokens) for segment, tokens in ids.items()}
    pairs = {
        "a": [Pair(branches[0], branches[1]), Pair(branches[2], branches[3])],
        "b": [Pair(branches[4], branches[5])],
    }
    built = build(Redi, RediOptions())
    step = Step(0, 0, [dataclasses.replace(QUESTION, id=name) for name in pairs], lambda chosen: chosen)
    plan = built.plan_of(step, 2, pairs.__getitem__, 1.0, -0.8)
    loss = sum(
        float(built.loss(hidden_of(batch, first_rows), head(), batch, plan).loss.detach())
        for batch in micro_batches(plan.questions, 4, packing, plan.trained)
    )
    log_p = Z.log_softmax(1)
    ce = {s: -log_p[range(first_rows[s], first_rows[s] + len(t)), t].mean() for s, t in ids.items()}
    assert loss == pytest.approx(float(sum(ce[s] - 0.8 * ce[s + 1] for s in (0, 2, 4))) / 3, abs=1e-12)


def test_a_run_stops_where_right_rationales_become_unlikely(tmp_path, model_folder):
    """It says by how much and what to do, and not to resume; without a limit it goes through."""
    config = config_of(tmp_path, model_folder, "redi")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, learning_rate=0.5, save_steps=1))
    config = dataclasses.replace(config, options=RediOptions(max_drop=0.2))
    told = r"^step \d, .*fallen by \d.* more than options.max_drop 0.2: a new run with a smaller .* keeps them$"
    with pytest.raises(StoppedError, match=told):
        mind.train(config)
    assert 1 <= len(train_rows(tmp_path / "run")) < 4
    through = dataclasses.replace(config, options=RediOptions(max_drop=None), output=str(tmp_path / "through"))
    assert len(train_rows(mind.train(through).path)) == 4


def test_the_first_value_outlives_a_kill():
    built = Redi.__new__(Redi)
    built.options = RediOptions(max_drop=0.1)
    built.load_state_dict({"first": 1.0, "average": 1.0})
    built._check_right(1.4)
    assert built.state_dict() == {"first": 1.0, "average": pytest.approx(1.08)}
    with pytest.raises(StoppedError, match="fallen by 0.14 nats"):
        built._check_right(1.4)
