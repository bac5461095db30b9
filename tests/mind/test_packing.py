"""Packing: labels, segments and answer rows; no sequence sees another, on a real architecture."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import NAMES, build_model, build_questions

from mind import word_problems
from mind.errors import MindError
from mind.packing import pack
from mind.perspectives import PAPER_PERSPECTIVES
from mind.records import Question, Rationale, TokenizedQuestion
from mind.tokenization import end_of_turn_id, prompt_ids, question_text, tokenize
from mind.trunk import labelled_hidden


def sequences_of(tokenized):
    """(q, k) -> (token ids, length of the prompt), one by one."""
    return {(q, k): (torch.tensor([*question.prompt, *ids, *question.suffix]), len(question.prompt))
            for q, question in enumerate(tokenized) for k, ids in question.rationales.items()}


def families():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Qwen2Config, Qwen2ForCausalLM

    small = {"vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    return {
        "llama": lambda: build_model(),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**small)),
        "gemma3, sliding window": lambda: Gemma3ForCausalLM(Gemma3TextConfig(
            **small, sliding_window=8, layer_types=["sliding_attention", "full_attention"])),
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", list(families()))
@pytest.mark.parametrize("pack_length", [1, 150, 100_000])
def test_packed_equals_one_by_one(tokenizer, questions, family, attention, pack_length):
    torch.manual_seed(0)
    model = families()[family]().double()
    model.set_attn_implementation(attention)
    tokenized = tokenize(questions, tokenizer, NAMES, 512)
    batch = pack(tokenized, 3, pack_length)
    hidden = labelled_hidden(model, batch)
    weight = torch.randn(hidden.shape, dtype=torch.float64)
    (hidden * weight).sum().backward()
    packed_gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for (q, k), (ids, prompt) in sequences_of(tokenized).items():
        alone = model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0, prompt - 1:-1]
        rows = batch.segment == q * 3 + k
        torch.testing.assert_close(hidden[rows].detach(), alone.detach(), rtol=1e-6, atol=1e-6)
        assert batch.target[rows].tolist() == ids[prompt:].tolist()
        (alone * weight[rows]).sum().backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            # transformers' RMS norms compute in float32 even in a float64 model.
            difference = (packed_gradients[name] - p.grad).norm() / p.grad.norm()
            assert difference < 1e-6, name


@pytest.mark.slow
def test_packed_equals_one_by_one_on_a_real_model(smollm2):
    """SmolLM2-135M in float32 on word problems: hidden states, and the gradient of every weight."""
    model, tokenizer, _ = smollm2
    questions = [replace(q, rationales=q.rationales[:3]) for q in word_problems.generate(2, seed=5)]
    tokenized = tokenize(questions, tokenizer, PAPER_PERSPECTIVES, 1024)
    batch = pack(tokenized, 8, 2048)
    assert len(batch.packs) == 1
    model.zero_grad()
    hidden = labelled_hidden(model, batch)
    weight = torch.randn(hidden.shape)
    (hidden * weight).sum().backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for (q, k), (ids, prompt) in sequences_of(tokenized).items():
        alone = model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0, prompt - 1:-1]
        rows = batch.segment == q * 8 + k
        assert (hidden[rows] - alone).norm() / alone.norm() < 1e-5
        (alone * weight[rows]).sum().backward()
    for name, p in model.named_parameters():
        assert (packed[name] - p.grad).norm() / p.grad.norm() < 1e-4, name
    model.zero_grad()


@settings(max_examples=40, deadline=None)
@given(data=st.data(), perspectives=st.integers(2, 32), pack_length=st.integers(1, 60))
def test_every_label_appears_once(data, perspectives, pack_length):
    lengths = st.integers(1, 12)
    questions = []
    for q in range(data.draw(st.integers(1, 4))):
        slots = data.draw(st.sets(st.integers(0, perspectives - 1), min_size=1, max_size=perspectives))
        rationales = {k: tuple(range(1000 * q + 20 * k, 1000 * q + 20 * k + data.draw(lengths))) for k in slots}
        questions.append(TokenizedQuestion(str(q), tuple(range(data.draw(lengths))), rationales,
                                           tuple(range(-1, -1 - data.draw(lengths), -1))))
    batch = pack(questions, perspectives, pack_length)
    hits = {}
    for (q, k), (ids, prompt) in sequences_of(questions).items():
        rows = (batch.segment == q * perspectives + k).nonzero().flatten()
        assert batch.target[rows].tolist() == ids[prompt:].tolist()
        assert batch.tokens[q, k] == len(rows)
        hits[q, k] = rows[-len(questions[q].suffix):].tolist()
    assert int(batch.tokens.sum()) == len(batch.target) == sum(len(p.rows) for p in batch.packs)
    for p, question in zip(batch.answer_rows, batch.answer_question.tolist(), strict=True):
        for k, row in enumerate(p.tolist()):
            if (question, k) in hits:
                assert row == hits[question, k].pop(0)
            else:
                assert row == -1
    assert not any(hits.values())
    longest = max(len(ids) for ids, _ in sequences_of(questions).values())
    for part in batch.packs:
        assert len(part.input_ids) <= max(pack_length, longest)
        assert part.position_ids[part.boundaries[:-1]].tolist() == [0] * (len(part.boundaries) - 1)


def test_aligned_answer_rows_predict_the_same_token(tokenizer, questions):
    batch = pack(tokenize(questions, tokenizer, NAMES, 512), 3, 200)
    for rows in batch.answer_rows:
        assert len(set(batch.target[rows[rows >= 0]].tolist())) == 1
    assert (batch.answer_rows[batch.answer_question == 2][:, 1] == -1).all()
    assert batch.present.tolist()[2] == [True, False, True]


def test_a_sequence_is_template_rationale_suffix_end(tokenizer):
    question = build_questions(1)[0]
    tokenized = tokenize([question], tokenizer, NAMES, 512)[0]
    text = tokenizer.decode([*tokenized.prompt, *tokenized.rationales[0], *tokenized.suffix])
    assert text == ("<|im_start|>user\nWhat is 2 plus 1?<|im_end|>\n<|im_start|>assistant\n"
                    "2 + 1 = 3.\n#### 3<|im_end|>")
    assert end_of_turn_id(tokenizer) == 1


def test_choices_are_part_of_the_prompt(tokenizer):
    question = Question("c", "Which?", "B", {"A": "left", "B": "right"})
    assert question_text(question) == "Which?\n(A) left\n(B) right"
    assert "(B) right" in tokenizer.decode(prompt_ids(question, tokenizer))


def test_bad_input_is_named(tokenizer, questions):
    with pytest.raises(MindError, match=r"question sum-0: its first rationale makes a sequence of \d+ tokens; "
                                        r"student.max_length is 40"):
        tokenize(questions, tokenizer, NAMES, 40)
    stranger = Question("q", "?", "1", None, (Rationale("odd", "x"),))
    with pytest.raises(MindError, match="question q: unknown perspective 'odd'"):
        tokenize([stranger], tokenizer, NAMES, 512)
    with pytest.raises(MindError, match="tiny: its tokenizer has no chat template"):
        end_of_turn_id(SimpleNamespace(chat_template=None, name_or_path="tiny"))
