"""Method mcc-kd: its worked example in float64 through plan, packs and loss, the answer's tokens, and a short run."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from method_cases import PACKINGS, build, config_of, context_of_run, total
from tiny import build_questions
from worked_example import FIRST_ROWS, QUESTION, head, hidden_of

from mind.batches.packing import micro_batches
from mind.config import ObjectiveConfig
from mind.methods.comparing import symmetric_kl
from mind.methods.mcc_kd import MccKd, MccKdOptions
from mind.methods.step import Step
from mind_kernels import Head, linear_pairwise_jsd


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    ("alpha", "temperature", "expected"), [(0.01, 1.3, 1.8442402132851652), (0.1, 1.0, 1.8552125393253005)]
)
def test_mcc_kd_by_hand(alpha, temperature, expected, packing):
    built = build(MccKd, MccKdOptions(alpha=alpha, temperature=temperature), name="mcc-kd", _pools={"example": [0, 1]})
    plan, loss, _ = total(built, FIRST_ROWS, packing)
    assert plan.trained.tolist() == [[True, True, False]] and loss == pytest.approx(expected, abs=1e-12)


def test_mcc_kd_trains_both_sides_of_its_divergence():
    """The gradients of hidden states and head are those of the objective as it is written, by autograd."""
    built = build(MccKd, MccKdOptions(alpha=0.7, temperature=1.3), name="mcc-kd", _pools={"example": [0, 2]})
    plan = built.prepare(Step(0, 0, [QUESTION], lambda chosen: chosen))
    (batch,) = micro_batches(plan.questions, 3, PACKINGS[-1], plan.trained)
    gradients = []
    for written_out in (False, True):
        hidden, weight = hidden_of(batch), torch.eye(6, dtype=torch.float64, requires_grad=True)
        if written_out:
            logits = hidden @ weight.T
            nll = -logits.log_softmax(1)[torch.arange(len(hidden)), batch.target]
            loss = sum(nll[batch.segment == k].mean() for k in (0, 2)) / 2
            p, q = ((logits[batch.answer_rows[:, k]] / 1.3).log_softmax(1) for k in (0, 2))
            loss = loss + 0.35 * ((p.exp() - q.exp()) * (p - q)).sum(1).mean()
        else:
            loss = built.loss(hidden, Head(weight), batch, plan).loss
        loss.backward()
        gradients.append((loss.detach(), hidden.grad, weight.grad))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_mcc_kd_of_two_equal_rationales_has_no_divergence():
    built = build(MccKd, MccKdOptions(alpha=0.7), name="mcc-kd", _pools={"example": [0, 1]})
    plan = built.prepare(Step(0, 0, [QUESTION], lambda chosen: chosen))
    (batch,) = micro_batches(plan.questions, 3, PACKINGS[-1], plan.trained)
    hidden = hidden_of(batch)
    rows = batch.answer_rows[:, :2]
    hidden = hidden.detach().index_copy(0, rows[:, 1], hidden.detach()[rows[:, 0]]).requires_grad_()
    divergence = symmetric_kl(hidden, head(), batch, torch.ones(1, 3, 3))
    divergence.backward()
    assert float(divergence.detach()) == 0 and not hidden.grad.any()


def test_mcc_kd_computes_its_divergence_by_the_backend_that_is_configured(monkeypatch):
    used = []

    def spy(*arguments, backend, **options):
        used.append(backend)
        return linear_pairwise_jsd(*arguments, **options)

    monkeypatch.setattr("mind.methods.comparing.linear_pairwise_jsd", spy)
    built = build(MccKd, MccKdOptions(), name="mcc-kd", _pools={"example": [0, 1]})
    config = dataclasses.replace(built.context.config, objective=ObjectiveConfig(backend="reference"))
    built.context = dataclasses.replace(built.context, config=config)
    total(built, FIRST_ROWS, PACKINGS[-1])
    assert used and set(used) == {"reference"}


def test_mcc_kd_takes_every_pair_of_its_pool_in_turn():
    built = build(MccKd, MccKdOptions(), name="mcc-kd", _pools={"example": [0, 1, 2]})
    pairs = [built._pair("example", epoch) for epoch in range(6)]
    assert sorted(pairs[:3]) == [(0, 1), (0, 2), (1, 2)] and pairs[3:] == pairs[:3]


@pytest.mark.parametrize(
    ("span", "rows"), [("suffix", [[2, 5], [3, 6]]), ("answer", [[2, 5]]), ("all", [[0, 4], [1, 5], [2, 6]])]
)
def test_mcc_kd_compares_at_the_answer_that_is_configured(span, rows):
    """Suffix (4, 5), of which 4 is the answer; of all tokens those that the shorter rationale has too."""
    question = dataclasses.replace(QUESTION, answer=(0,))
    built = build(MccKd, MccKdOptions(alpha=0.7, temperature=1.3), name="mcc-kd", _pools={"example": [0, 1]})
    plan = built.prepare(Step(0, 0, [question], lambda chosen: chosen))
    packing = dataclasses.replace(PACKINGS[-1], answer_span=span)
    (batch,) = micro_batches(plan.questions, 3, packing, plan.trained)
    assert batch.answer_rows.tolist() == [[*pair, -1] for pair in rows]
    hidden = hidden_of(batch)
    found = built.loss(hidden, head(), batch, plan)
    p, q = ((hidden[[pair[side] for pair in rows]] / 1.3).log_softmax(1) for side in (0, 1))
    expected = ((p.exp() - q.exp()) * (p - q)).sum(1).mean()
    assert float(found.sums["symmetric_kl"]) == pytest.approx(float(expected.detach()), abs=1e-13)


def test_mcc_kd_compares_at_the_answer_if_nothing_else_is_said(tmp_path, model_folder):
    config = config_of(tmp_path, model_folder, "mcc-kd")
    context = context_of_run(config, build_questions())
    assert context.pack_options.answer_span == "answer"
    by_id = {question.id: question for question in build_questions()}
    for question in context.tokenized:  # one byte is one token
        assert len(question.answer) == len(by_id[question.id].answer)
        assert question.answer == tuple(
            range(len(question.suffix) - 1 - len(question.answer), len(question.suffix) - 1)
        )
    mind_context = context_of_run(dataclasses.replace(config, method="mind"), build_questions())
    assert mind_context.pack_options.answer_span == "suffix" and not any(q.answer for q in mind_context.tokenized)
