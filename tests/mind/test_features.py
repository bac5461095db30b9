"""Features: pooled as if alone, placed by perspective, cached by weights and texts."""

from __future__ import annotations

import torch
from tiny import NAMES, build_model

from mind.methods.mind.features import StudentEncoder, build_features


def test_features_are_mean_hidden_states_in_their_places(tokenizer, questions, tmp_path):
    model = build_model()
    features = build_features(questions, NAMES, StudentEncoder(model, tokenizer, 90), tmp_path)
    assert features.question.shape == (6, 32) and features.rationales.shape == (6, 3, 32)

    def alone(text):
        ids = torch.tensor(tokenizer(text)["input_ids"])[None]
        with torch.no_grad():
            return model.base_model(input_ids=ids).last_hidden_state[0].mean(0)

    torch.testing.assert_close(features.question[3], alone(questions[3].question), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.rationales[2, 2], alone(questions[2].rationales[1].text), rtol=1e-4, atol=1e-5)
    assert features.rationales[2, 1].count_nonzero() == 0  # the perspective that question 2 lacks


def test_the_cache_knows_weights_and_texts(tokenizer, questions, tmp_path):
    calls = []

    class Counting(StudentEncoder):
        def encode(self, texts, progress):
            calls.append(len(texts))
            return super().encode(texts, progress)

    first = build_features(questions, NAMES, Counting(build_model(), tokenizer, 90), tmp_path)
    again = build_features(questions, NAMES, Counting(build_model(), tokenizer, 90), tmp_path)
    assert len(calls) == 1 and torch.equal(first.rationales, again.rationales)
    build_features(questions, NAMES, Counting(build_model(seed=1), tokenizer, 90), tmp_path)
    build_features(questions[:2], NAMES, Counting(build_model(), tokenizer, 90), tmp_path)
    assert len(calls) == 3
