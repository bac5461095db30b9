"""objective.normalize: a mean over sequences or over all tokens of a step, whatever the packing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from method_cases import PACKINGS, build, by_tokens, total
from test_trainer import build_trainer
from worked_example import EXPLAIN, EXPLAIN_ROW, FIRST_ROWS, LABEL, LABEL_ROW, QUESTION, SEQUENCES, Z, head, hidden_of

from mind.batches.cross_entropy import token_mean
from mind.batches.packing import micro_batches
from mind.config import MethodOptions, ObjectiveConfig
from mind.methods.sbs import Sbs, SbsOptions
from mind.methods.sft import Sft
from mind.methods.step import Step
from mind.records import TokenizedQuestion


def nll(first, tokens):
    return -Z.log_softmax(1)[range(first, first + len(tokens)), tokens]


@pytest.mark.parametrize("packing", PACKINGS)
def test_sft_over_all_tokens_is_their_mean(packing):
    _, loss, _ = total(by_tokens(build(Sft, MethodOptions())), FIRST_ROWS, packing)
    every = torch.cat([nll(FIRST_ROWS[k], tokens) for k, tokens in SEQUENCES.items()])
    assert loss == pytest.approx(float(every.mean()), abs=1e-12)


@pytest.mark.parametrize("packing", PACKINGS)
def test_each_term_has_a_mean_of_its_own(packing):
    """sbs with two questions: answers of two tokens and of one, rationales of three and of four."""
    answers = {"a": LABEL, "b": dataclasses.replace(LABEL, ids=(4,))}
    explanations = {"a": EXPLAIN, "b": dataclasses.replace(EXPLAIN, ids=(1, 2, 4, 5))}
    made = {name: TokenizedQuestion.of_sequences(name, {0: answers[name], 1: explanations[name]}) for name in answers}
    built = by_tokens(build(Sbs, SbsOptions(alpha=0.3), made=made))
    step = Step(0, 0, [dataclasses.replace(QUESTION, id=name) for name in answers], lambda chosen: chosen)
    plan = built.prepare(step)
    firsts = {0: LABEL_ROW, 1: EXPLAIN_ROW, 2: 7, 3: 0}
    loss = sum(
        float(built.loss(hidden_of(batch, firsts), head(), batch, plan).loss.detach())
        for batch in micro_batches(plan.questions, 2, packing, plan.trained)
    )
    of_answers = torch.cat([nll(LABEL_ROW, LABEL.ids), nll(7, (4,))]).mean()
    of_rationales = torch.cat([nll(EXPLAIN_ROW, EXPLAIN.ids), nll(0, (1, 2, 4, 5))]).mean()
    assert loss == pytest.approx(float(0.3 * of_answers + 0.7 * of_rationales), abs=1e-12)


def test_weights_over_all_tokens():
    """w T over the weighted mean length of the term; the sum of the weights stays. Signs are the terms' own."""
    weights = torch.tensor([[1.0, -0.8, 0.0, 0.0], [1.0, -0.8, 1.0, -0.8]], dtype=torch.float64)
    tokens = torch.tensor([[4, 2, 0, 0], [6, 3, 2, 7]])
    found = token_mean(weights, tokens, [0, 1, 0, 1])
    expected = torch.tensor([[1.0, -0.4, 0, 0], [1.5, -0.6, 0.5, -1.4]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    assert not token_mean(torch.zeros(2, 4), tokens, [0] * 4).any()


@pytest.mark.parametrize("method", ["mind", "compact"])
def test_packing_changes_nothing_of_a_mean_over_all_tokens(method, tmp_path):
    runs = []
    for number, train in enumerate(({"pack_length": 150}, {"pack_length": 4000, "share_prompts": "never"})):
        objective = ObjectiveConfig(beta=0.97, consistency_weight=0.5, normalize="token", answer_span="all")
        path = tmp_path / str(number)
        path.mkdir()
        trainer = build_trainer(path, method=method, objective=objective, max_steps=2, **train)
        trainer.train()
        (first, *_) = [row for row in trainer.state.log_history if "loss" in row]
        weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        runs.append(([first["loss"], first["grad_norm"]], weights))
    (numbers, weights), (others, same) = runs
    # The student's norms are float32 whatever its weights, and AdamW divides by gradients that are nearly 0.
    assert numbers == pytest.approx(others, rel=1e-7)
    assert float((weights - same).norm() / same.norm()) < 1e-6
