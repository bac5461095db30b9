"""Method compact: its worked example in float64 through plan, packs and loss, what rationales weigh by, and a run."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from method_cases import PACKINGS, build, config_of, context_of_run, short, total
from small_run import train_rows
from tiny import build_model, build_questions, build_tokenizer
from torch import nn
from worked_example import FIRST_ROWS, QUESTION, SEQUENCES, ZT, Z, head, hidden_of, losses_of

import mind
from mind.batches.packing import micro_batches
from mind.config import ObjectiveConfig
from mind.errors import MindError
from mind.methods.compact import Compact, CompactOptions, _single_tokens, last_attention, weights_of
from mind.methods.step import Step
from mind_kernels import Head

INFORMATION = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.float64)
AGREEMENT = torch.tensor([[0.2, 0.5, 0.8]], dtype=torch.float64)
ALPHA = torch.tensor([[0.011457015272, 0.624306888173, 0.364236096554]], dtype=torch.float64)


def example(monkeypatch, **objective):
    """The method with the example's information and agreement in place of what it measures."""
    built = build(Compact, CompactOptions())
    config = dataclasses.replace(built.context.config, objective=ObjectiveConfig(**objective))
    built.context = dataclasses.replace(built.context, config=config)
    monkeypatch.setattr(built, "information", lambda *_: INFORMATION, raising=False)
    monkeypatch.setattr(built, "agreement", lambda *_: AGREEMENT, raising=False)
    return built


@pytest.mark.parametrize("packing", PACKINGS)
def test_compact_by_hand(packing, monkeypatch):
    built = example(monkeypatch)
    torch.testing.assert_close(
        weights_of(INFORMATION, AGREEMENT, losses_of(QUESTION), CompactOptions()), ALPHA, rtol=0, atol=1e-12
    )
    plan, loss, gradients = total(built, FIRST_ROWS, packing)
    assert loss == pytest.approx(1.700179943666, abs=1e-12) and plan.trained.all()
    assert all(gradients[k].any() for k in range(3))


def test_the_terms_of_compact_by_hand(monkeypatch):
    built = example(monkeypatch)
    plan = built.prepare(Step(0, 0, [QUESTION], lambda chosen: chosen))
    (batch,) = micro_batches(plan.questions, 3, PACKINGS[-1], plan.trained)
    terms = built.loss(hidden_of(batch), head(), batch, plan)
    assert float(terms.sums["sft"]) == pytest.approx(1.695967063017, abs=1e-12)
    assert float(terms.sums["consistency"]) == pytest.approx(0.042128806488, abs=1e-12)
    entropy = -sum(a * math.log(a) for a in ALPHA.flatten().tolist())
    assert float(terms.sums["alpha_entropy"]) == pytest.approx(entropy, abs=1e-10)


def test_the_gradient_of_compact_is_that_of_its_loss_with_constant_weights(monkeypatch):
    """By autograd, to all rows and to the head; the positions are all that two rationales have in common."""
    built = example(monkeypatch)
    plan = built.prepare(Step(0, 0, [QUESTION], lambda chosen: chosen))
    packing = dataclasses.replace(PACKINGS[-1], answer_span="all")
    (batch,) = micro_batches(plan.questions, 3, packing, plan.trained)
    hidden, weight = hidden_of(batch), torch.eye(6, dtype=torch.float64, requires_grad=True)
    loss = built.loss(hidden, Head(weight), batch, plan).loss
    loss.backward()
    z, w = Z.clone().requires_grad_(), torch.eye(6, dtype=torch.float64, requires_grad=True)
    log_p = (z @ w.T).log_softmax(1)
    alpha = weights_of(INFORMATION, AGREEMENT, losses_of(QUESTION), CompactOptions())[0]
    expected = sum(
        a * -log_p[range(FIRST_ROWS[k], FIRST_ROWS[k] + len(t)), t].mean()
        for a, (k, t) in zip(alpha, SEQUENCES.items(), strict=True)
    )
    for i, j in ((0, 1), (0, 2), (1, 2)):
        common = min(len(SEQUENCES[i]), len(SEQUENCES[j]))
        p, q = (log_p[FIRST_ROWS[k] : FIRST_ROWS[k] + common] for k in (i, j))
        expected = expected + 0.1 * alpha[i] * alpha[j] * ((p.exp() - q.exp()) * (p - q)).sum(1).mean()
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-12)
    torch.testing.assert_close(weight.grad, w.grad, rtol=0, atol=1e-12)
    seen = dict(FIRST_ROWS)
    for segment, gradient in zip(batch.segment.tolist(), hidden.grad, strict=True):
        torch.testing.assert_close(gradient, z.grad[seen[segment]], rtol=0, atol=1e-12)
        seen[segment] += 1


@pytest.mark.parametrize("packing", PACKINGS)
def test_over_all_tokens(packing, monkeypatch):
    """Each token has alpha of its rationale, over the sum of these weights: two questions, of which the second has two
    rationales, so that neither 1 / K nor alpha of a question alone gives it."""
    built = example(monkeypatch, normalize="token")
    second = dataclasses.replace(QUESTION, id="second", rationales={k: QUESTION.rationales[k] for k in (0, 2)})
    built.made["second"], questions, firsts = second, [QUESTION, second], FIRST_ROWS | {3: 0, 5: FIRST_ROWS[2]}
    losses = losses_of(QUESTION).expand(2, 3).clone()
    losses[1, 1] = math.nan
    monkeypatch.setattr(built, "information", lambda *_: INFORMATION.expand(2, 3), raising=False)
    monkeypatch.setattr(built, "agreement", lambda *_: AGREEMENT.expand(2, 3), raising=False)

    def observe(chosen, some, measure):
        table = torch.full(chosen.shape, torch.nan, dtype=torch.float64)
        for batch in micro_batches(some, 3, packing, chosen):
            hidden = hidden_of(batch, firsts).detach()
            table = torch.where(batch.present, measure(hidden, head(), batch), table)
        return table

    plan = built.prepare(Step(0, 0, questions, observe))
    loss, consistency = 0.0, 0.0
    for batch in micro_batches(plan.questions, 3, packing, plan.trained):
        terms = built.loss(hidden_of(batch, firsts), head(), batch, plan)
        loss, consistency = loss + float(terms.loss.detach()), consistency + float(terms.sums["consistency"])
    alpha = weights_of(INFORMATION.expand(2, 3), AGREEMENT.expand(2, 3), losses, CompactOptions())
    torch.testing.assert_close(plan.weights, alpha)
    weighted = alpha * torch.tensor([len(SEQUENCES[k]) for k in range(3)])
    expected = float((weighted * losses).nansum() / weighted.sum()) + 0.1 * consistency
    assert loss == pytest.approx(expected, abs=1e-12) and consistency > 0.02


def test_missing_rationales_have_no_weight_and_change_none():
    nan = math.nan
    losses = torch.tensor([[2.0, nan, 1.5, 1.0], [nan, nan, nan, nan]], dtype=torch.float64)
    information, agreement = (
        torch.tensor([[1.0, 99.0, 3.0, 2.0], [0.0] * 4]),
        torch.tensor([[0.2, 99.0, 0.5, 0.8], [0.0] * 4]),
    )
    found = weights_of(information, agreement, losses, CompactOptions())
    kept = [0, 2, 3]
    alone = weights_of(information[:1, kept], agreement[:1, kept], losses[:1, kept], CompactOptions())
    torch.testing.assert_close(found[:1, kept], alone)
    assert found[0, 1] == 0 and not found[1].any() and float(found[0].sum()) == pytest.approx(1)


def test_information_by_hand():
    """Rises of the answer's mean logit behind each token of the rationale: in full at a connective, else a tenth."""
    built = build(Compact, CompactOptions(), _connectives=torch.tensor([2, 4]))
    question = dataclasses.replace(QUESTION, answer=(0, 1))
    plan = built.prepare(Step(0, 0, [question], lambda chosen: chosen))
    for packing in PACKINGS:
        found = torch.zeros(1, 3, dtype=torch.float64)
        for batch in micro_batches(plan.questions, 3, packing, plan.trained):
            hidden = hidden_of(batch, FIRST_ROWS, ZT).detach()
            found += built.information(hidden, head(), batch, plan.questions)
        for k, tokens in SEQUENCES.items():
            of_answer = ZT[FIRST_ROWS[k] :, 4:].mean(1).tolist()  # tokens 4 and 5, and the head is the identity
            expected = sum(
                max(0.0, of_answer[t + 1] - of_answer[t]) * (1.0 if token in (2, 4) else 0.1)
                for t, token in enumerate(tokens[:-2])
            )
            assert float(found[0, k]) == pytest.approx(expected, abs=1e-12)
        assert found.count_nonzero() == 2, found


class Attention(nn.Module):
    """Two query heads of three numbers each, and one key head."""

    head_dim = 3

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(6, 6, bias=False).double(), nn.Linear(6, 3, bias=False).double()
        self.q_proj.weight.data, self.k_proj.weight.data = ZT[:6].clone(), ZT[6:9].clone()


def test_agreement_by_hand():
    built = build(Compact, CompactOptions(), _attention=Attention())
    plan = built.prepare(Step(0, 0, [QUESTION], lambda chosen: chosen))
    (batch,) = micro_batches(plan.questions, 3, PACKINGS[-1], plan.trained)
    found = built.agreement(hidden_of(batch).detach(), batch)
    states = [Z[FIRST_ROWS[k] + len(t) - 1] for k, t in SEQUENCES.items()]
    queries = [[float(ZT[row] @ state) for row in range(6)] for state in states]
    keys = [2 * [float(ZT[6 + row] @ state) for row in range(3)] for state in states]  # one key head for both
    scores = [[sum(x * y for x, y in zip(q, k, strict=True)) for k in keys] for q in queries]
    attended = torch.softmax(torch.tensor(scores, dtype=torch.float64) / math.sqrt(6), 1)
    expected = attended.sum(0) - attended.diagonal()
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-12)


def test_agreement_has_no_dropout():
    attention = Attention()
    attention.q_proj = nn.Sequential(attention.q_proj, nn.Dropout(0.5))
    built = build(Compact, CompactOptions(), _attention=attention.train())
    plan = built.prepare(Step(0, 0, [QUESTION], lambda chosen: chosen))
    (batch,) = micro_batches(plan.questions, 3, PACKINGS[-1], plan.trained)
    first, second = (built.agreement(hidden_of(batch).detach(), batch) for _ in range(2))
    assert torch.equal(first, second) and attention.q_proj.training


def test_connectives_are_tokens_of_the_student():
    assert _single_tokens(build_tokenizer(), ["a", "ab"]) == {build_tokenizer().convert_tokens_to_ids("a")}


def test_a_model_without_such_projections_is_told():
    with pytest.raises(MindError, match="q_proj and k_proj of the last attention layer, which Linear does not have"):
        last_attention(nn.Linear(2, 2))
    model = build_model()
    assert last_attention(model) is model.model.layers[-1].self_attn


def test_questions_with_one_rationale_are_left_out(tmp_path, model_folder, capsys):
    config = config_of(tmp_path, model_folder, "compact")
    one, *others = build_questions()
    one = dataclasses.replace(one, rationales=one.rationales[:1])
    context = context_of_run(config, [one, *others])
    assert one.id not in [question.id for question in context.questions] and context.pack_options.answer_span == "all"
    assert "5 of 6 questions are trained on" in capsys.readouterr().err
    with pytest.raises(
        MindError, match="^method compact needs two rationales of a question: 0 of 1 questions qualify$"
    ):
        context_of_run(config, [one])


def test_what_a_run_of_compact_logs(tmp_path, model_folder):
    (row,) = train_rows(mind.train(short(config_of(tmp_path, model_folder, "compact"))).path)
    assert row["loss"] == pytest.approx(row["sft_loss"] + 0.1 * row["consistency"], rel=1e-5)
    assert 0 < row["alpha_entropy"] <= math.log(3)
