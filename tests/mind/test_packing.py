"""Packing: labels, segments, answer rows and what each token may see; texts to tokens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import NAMES, build_questions

from mind.batches.packing import micro_batches, naive_tokens, sequence_lengths
from mind.batches.rows import branch_mask
from mind.errors import MindError
from mind.records import PackOptions, Question, Rationale, TokenizedQuestion
from mind.student.tokenization import Chat, question_text, tokenize


def sequences_of(tokenized):
    """(q, k) -> (token ids, length of the prompt), one by one."""
    return {
        (q, k): (torch.tensor([*question.prompt, *ids, *question.suffix]), len(question.prompt))
        for q, question in enumerate(tokenized)
        for k, ids in question.rationales.items()
    }


@pytest.mark.parametrize("share", [True, False])
@settings(max_examples=300, deadline=None)
@given(data=st.data(), perspectives=st.integers(2, 32), length=st.integers(12, 90))
def test_every_label_appears_once(share, data, perspectives, length):
    questions = draw_questions(data, perspectives, longest=12)
    chosen = torch.tensor([[data.draw(st.booleans()) for _ in range(perspectives)] for _ in questions])
    batches = micro_batches(questions, perspectives, PackOptions(length, share), chosen)
    expected = {(q, k): ids for (q, k), ids in sequences_of(questions).items() if chosen[q, k]}
    found = {}
    for batch in batches:
        assert batch.ids == tuple(question.id for question in questions)
        assert int(batch.tokens.sum()) == len(batch.target) == sum(len(part.rows) for part in batch.packs)
        hits = {}
        for q, k in batch.present.nonzero().tolist():
            rows = (batch.segment == q * perspectives + k).nonzero().flatten()
            assert (q, k) not in found and batch.tokens[q, k] == len(rows)
            found[q, k] = batch.target[rows].tolist()
            hits[q, k] = rows[-len(questions[q].suffix) :].tolist()
        whole = {q for q, _ in hits}
        assert sorted(hits) == sorted(key for key in expected if key[0] in whole)  # a question is in one micro-batch
        check_answer_rows(batch, hits)
        check_contexts(batch, expected)
        check_lengths(batch, questions, expected, PackOptions(length, share))
    assert found == {key: ids[prompt:].tolist() for key, (ids, prompt) in expected.items()}


def draw_questions(data, perspectives, longest):
    """Up to three questions; the tokens of each tell which part of which question they are."""
    lengths = st.integers(1, longest)
    questions = []
    for q in range(data.draw(st.integers(1, 3))):
        slots = data.draw(st.sets(st.integers(0, perspectives - 1), min_size=1, max_size=perspectives))
        rationales = {k: tuple(range(1000 * q + 20 * k, 1000 * q + 20 * k + data.draw(lengths))) for k in slots}
        questions.append(
            TokenizedQuestion(
                str(q),
                tuple(range(500_000, 500_000 + data.draw(lengths))),
                rationales,
                tuple(range(-1, -1 - data.draw(lengths), -1)),
            )
        )
    return questions


def check_answer_rows(batch, hits):
    compared = {q for q, _ in hits if sum(other == q for other, _ in hits) > 1}
    assert set(batch.answer_question.tolist()) == compared
    left = {key: list(rows) for key, rows in hits.items() if key[0] in compared}
    for rows, q in zip(batch.answer_rows.tolist(), batch.answer_question.tolist(), strict=True):
        for k, row in enumerate(rows):
            assert row == (left[q, k].pop(0) if (q, k) in left else -1)
    assert not any(left.values())


def check_contexts(batch, expected):
    """What a labeled row sees, by branch_mask, are the tokens before it in its own sequence, at their positions."""
    sequences = [
        expected[divmod(segment, batch.tokens.shape[1])] for segment in batch.segment.unique_consecutive().tolist()
    ]
    for part in batch.packs:
        sees = branch_mask(part, "sdpa", torch.float32, torch.device("cpu"))[0, 0]
        rows = part.rows.tolist()
        while rows:
            ids, prompt = sequences.pop(0)
            for place in range(prompt - 1, len(ids) - 1):
                seen = sees[rows.pop(0)].nonzero().flatten()
                assert part.input_ids[seen].tolist() == ids[: place + 1].tolist()
                assert part.position_ids[seen].tolist() == list(range(place + 1))
    assert not sequences


def check_lengths(batch, questions, expected, pack_options):
    prompts = sum(len(part.input_ids) for part in batch.packs) - int(batch.tokens.sum())
    whole = [q for q in range(len(questions)) if batch.present[q].any()]
    if not pack_options.share_prompts:
        assert prompts == sum(len(questions[q].prompt) * int(batch.present[q].sum()) for q in whole)
    longest = max(len(ids) for key, (ids, _) in expected.items() if key[0] in whole)
    assert all(len(part.input_ids) <= max(pack_options.length, longest) for part in batch.packs)
    if len(whole) > 1:
        assert batch.total_tokens <= pack_options.length
    if pack_options.share_prompts and batch.total_tokens <= pack_options.length:
        assert len(batch.packs) == 1 and prompts == sum(len(questions[q].prompt) for q in whole)


def test_tokens_without_packing(tokenizer, questions):
    """As if each sequence had a row of its own, as long as the longest one's."""
    made = tokenize(questions, tokenizer, NAMES, 512)
    lengths = [length for question in made for length in sequence_lengths(question)]
    assert len(set(lengths)) > 1
    assert naive_tokens(made) == (len(lengths) * sorted(lengths)[-1], sum(lengths))


def test_aligned_answer_rows_predict_the_same_token(tokenizer, questions):
    (batch,) = micro_batches(tokenize(questions, tokenizer, NAMES, 512), 3, PackOptions(4000, share_prompts=True))
    for rows in batch.answer_rows:
        assert len(set(batch.target[rows[rows >= 0]].tolist())) == 1
    assert (batch.answer_rows[batch.answer_question == 2][:, 1] == -1).all()
    assert batch.present.tolist()[2] == [True, False, True]


def test_a_sequence_is_template_rationale_suffix_end(tokenizer):
    question = build_questions(1)[0]
    tokenized = tokenize([question], tokenizer, NAMES, 512)[0]
    text = tokenizer.decode([*tokenized.prompt, *tokenized.rationales[0], *tokenized.suffix])
    assert text == (
        "<|im_start|>user\nWhat is 2 plus 1?<|im_end|>\n<|im_start|>assistant\n2 + 1 = 3.\n#### 3<|im_end|>"
    )
    assert Chat(tokenizer).end_id == 1


def test_choices_are_part_of_the_prompt(tokenizer):
    question = Question("c", "Which?", "B", {"A": "left", "B": "right"})
    assert question_text(question) == "Which?\n(A) left\n(B) right"
    assert "(B) right" in tokenizer.decode(Chat(tokenizer).prompt(question))


def test_bad_input_is_named(tokenizer, questions):
    with pytest.raises(
        MindError,
        match=r"question sum-0: its first rationale makes a sequence of \d+ tokens; "
        r"student.max_length is 40",
    ):
        tokenize(questions, tokenizer, NAMES, 40)
    stranger = Question("q", "?", "1", None, (Rationale("odd", "x"),))
    with pytest.raises(MindError, match="question q: unknown perspective 'odd'"):
        tokenize([stranger], tokenizer, NAMES, 512)
    with pytest.raises(MindError, match=r"question sum-0: its prompt alone has \d+ tokens; train.pack_length is 30"):
        micro_batches(tokenize(questions, tokenizer, NAMES, 512), 3, PackOptions(30, share_prompts=False))
    with pytest.raises(MindError, match="tiny: its tokenizer has no chat template"):
        Chat(SimpleNamespace(chat_template=None, name_or_path="tiny"))
