"""Weights of rows by hand, and the mean losses of rationales beside those of single sequences."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import NAMES, build_model, build_questions, build_tokenizer
from worked_example import QUESTION

from mind.batches import cross_entropy
from mind.batches.cross_entropy import losses_work, rationale_losses, row_weights, token_mean
from mind.batches.packing import micro_batches
from mind.errors import NotFiniteError
from mind.records import PackOptions, TokenizedQuestion
from mind.student.tokenization import tokenize

OPTIONS = PackOptions(200, True)


@pytest.fixture(scope="module")
def tokenized():
    return tokenize(build_questions(3), build_tokenizer(), NAMES, 512)


def test_a_row_has_its_share_of_its_rationales_weight():
    """Four, three and five rows; of two questions in the step, this micro-batch has the first."""
    (batch,) = micro_batches([QUESTION], 3, PackOptions(20, False))
    weights = torch.tensor([[0.5, 0.3, 0.1], [9.0, 9.0, 9.0]], dtype=torch.float64)
    found = row_weights(weights, batch, torch.zeros(12, 2, dtype=torch.float16))
    expected = torch.tensor([0.5 / 8] * 4 + [0.3 / 6] * 3 + [0.1 / 10] * 5, dtype=torch.float64)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected)
    exact = row_weights(weights, batch, torch.zeros(12, 2, dtype=torch.float64))
    torch.testing.assert_close(exact, expected, rtol=1e-15, atol=0)


def test_a_sequence_may_have_one_token():
    question = TokenizedQuestion("one", (0, 3), {0: (), 1: (1,)}, (4,))
    (batch,) = micro_batches([question], 3, PackOptions(20, False))
    found = row_weights(torch.ones(1, 3), batch, torch.zeros(3, 2))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5, 0.5]))


def test_a_token_has_a_weight_of_its_own():
    (batch,) = micro_batches([QUESTION], 3, PackOptions(20, False))
    assert batch.token_weight is None
    batch = dataclasses.replace(batch, token_weight=torch.arange(12.0, dtype=torch.float64))
    found = row_weights(torch.ones(1, 3), batch, torch.zeros(12, 2))
    expected = torch.tensor([1 / 4] * 4 + [1 / 3] * 3 + [1 / 5] * 5) * torch.arange(12.0)
    torch.testing.assert_close(found, expected)


def test_a_mean_over_tokens_by_hand():
    weights = torch.tensor([[0.5, 0.25, -0.2], [0.5, 0.0, 0.0]], dtype=torch.float64)
    tokens = torch.tensor([[2, 8, 5], [4, 6, 7]])
    # The first two slots are one term: 0.5 * 2 + 0.25 * 8 + 0.5 * 4 = 5 tokens of the weight 1.25.
    expected = torch.tensor([[0.25, 0.5, -0.2], [0.5, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(token_mean(weights, tokens, [0, 0, 1]), expected)
    assert token_mean(weights.float(), tokens, [0, 0, 1]).dtype == torch.float32
    # Each slot a term: the second has one sequence with weight, and its weight stays.
    expected = torch.tensor([[1 / 3, 0.25, -0.2], [2 / 3, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(token_mean(weights, tokens, [7, 3, 5]), expected)
    one = torch.tensor([[0.5, 0.25]])  # 0.5 * 1 + 0.25 * 2 = 1
    torch.testing.assert_close(token_mean(one, torch.tensor([[1, 2]]), [0, 0]), torch.tensor([[0.375, 0.375]]))
    nothing = token_mean(torch.zeros(2, 3), tokens, [0, 0, 1])
    assert torch.equal(nothing, torch.zeros(2, 3))


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_losses_are_those_of_single_sequences(tokenized, monkeypatch, at_once):
    monkeypatch.setattr(cross_entropy, "QUESTIONS_AT_ONCE", at_once)
    model, told = build_model().double(), []
    losses, tokens = rationale_losses(model, tokenized, 3, OPTIONS, told.append)
    assert losses.dtype == torch.float32 and tokens.dtype == torch.int64
    assert told == {1: [1, 2, 3], 2: [2, 3], 100: [3]}[at_once]
    for q, question in enumerate(tokenized):
        for k in range(3):
            if k not in question.rationales:
                assert losses[q, k].isnan() and tokens[q, k] == 0
                continue
            answer = [*question.rationales[k], *question.suffix]
            ids = torch.tensor([[*question.prompt, *answer]])
            logits = model(input_ids=ids).logits[0, len(question.prompt) - 1 : -1]
            truth = torch.nn.functional.cross_entropy(logits, ids[0, len(question.prompt) :])
            assert tokens[q, k] == len(answer)
            assert float(losses[q, k]) == pytest.approx(truth.item(), rel=1e-6)
    work = losses_work(tokenized, 3, OPTIONS)
    alone = [sum(batch.total_tokens for batch in micro_batches([one], 3, OPTIONS)) for one in tokenized]
    together = sum(batch.total_tokens for batch in micro_batches(tokenized, 3, OPTIONS))
    assert work == {1: sum(alone), 100: together}.get(at_once, work) and work >= int(tokens.sum())


def test_a_loss_that_is_no_number_is_told_with_its_question(tokenized):
    """A token that the second rationales of two questions have, and nothing else, has no embedding."""
    model, token = build_model(tie_word_embeddings=False), tokenized[0].rationales[1][0]
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = torch.nan
    assert [token in question.rationales.get(1, ()) for question in tokenized] == [True, True, False]
    assert not any(token in (*one.prompt, *one.rationales[0], *one.rationales[2]) for one in tokenized)
    with pytest.raises(NotFiniteError) as told:
        rationale_losses(model, tokenized, 3, PackOptions(80, False))
    assert str(told.value) == "the loss of questions sum-0, sum-1 is not finite"


def test_a_rationale_of_one_token_has_a_loss_too():
    question = TokenizedQuestion("one", (5, 6, 7), {0: (), 1: (8, 9)}, (10,))
    model = build_model(tie_word_embeddings=False)
    losses, tokens = rationale_losses(model, [question], 3, PackOptions(80, False))
    assert tokens.tolist() == [[1, 3, 0]] and losses.isfinite().tolist() == [[True, True, False]]
    with torch.no_grad():
        model.lm_head.weight[11] = torch.nan
    with pytest.raises(NotFiniteError, match="the loss of question one is not finite"):
        rationale_losses(model, [TokenizedQuestion("one", (5, 6, 7), {0: ()}, (10,))], 3, PackOptions(80, False))
