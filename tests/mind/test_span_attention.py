"""Attention of packed rows span by span, against the softmax over all pairs in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mind.batches.packing import document_pack, plain_pack
from mind.batches.rows import branch_mask
from mind.student.model import SPAN_ATTENTION, attention_of, load_student, set_attention
from mind.student.span_attention import span_attention, spans_of

PLAIN = plain_pack([range(4), range(9), range(1), range(6)])
BRANCHED = document_pack(
    [(range(5), [range(3), range(4), range(1)]), (range(1), [range(7), range(2)]), (range(6), [range(5)])]
)


def mask_of(pack):
    return branch_mask(pack, SPAN_ATTENTION, torch.float32, torch.device("cpu"))


def definition(query, key, value, mask, scaling):
    key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], 1) for part in (key, value))
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("pack", [PLAIN, BRANCHED], ids=["plain", "branched"])
def test_outputs_and_gradients_are_those_of_all_pairs(pack):
    torch.manual_seed(0)
    mask, total = mask_of(pack), len(pack.input_ids)
    assert spans_of(mask[0, 0]) is not None
    inputs = [torch.randn(1, heads, total, 8, dtype=torch.float64, requires_grad=True) for heads in (6, 2, 2)]
    module = SimpleNamespace(num_key_value_groups=3, is_causal=True)
    found, weights = span_attention(module, *inputs, mask, dropout=0.0, scaling=0.3)
    expected = definition(*inputs, mask, 0.3)
    assert weights is None
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((output * weight).sum(), inputs) for output in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("pack", "lengths", "seen"),
    [
        (PLAIN, [4, 9, 1, 6], [(), (), (), ()]),
        (BRANCHED, [5, 3, 4, 1, 1, 7, 2, 11], [(), (0,), (0,), (0,), (), (4,), (4,), ()]),
    ],
    ids=["plain", "branched"],
)
def test_spans_are_prompts_and_branches(pack, lengths, seen):
    spans = spans_of(mask_of(pack)[0, 0])
    assert spans is not None
    assert [span.tokens for span in spans] == lengths
    assert [span.seen for span in spans] == seen


def test_every_mask_is_kept_to():
    """Windows, masks that leave out little, and noise: whatever the mask, the result is that of the definition."""
    torch.manual_seed(0)
    total = 24
    place = torch.arange(total)
    causal = place[:, None] >= place
    window = causal & (place[:, None] - place < 5)
    halves = causal & (place[:, None] // 20 == place // 20)
    holes = mask_of(BRANCHED)[0, 0, :total, :total].clone()
    holes[9, 2] = False
    later = mask_of(PLAIN)[0, 0].clone()
    later[2, 3] = True
    module = SimpleNamespace(num_key_value_groups=1, is_causal=True)
    masks = {"causal": causal, "window": window, "halves": halves, "holes": holes, "later": later}
    for name, mask in masks.items():
        inputs = torch.randn(3, 1, 2, len(mask), 4, dtype=torch.float64)
        found, _ = span_attention(module, *inputs, mask[None, None], dropout=0.0, scaling=1.0)
        torch.testing.assert_close(found, definition(*inputs, mask, 1.0), msg=name)
        assert (spans_of(mask) is None) == (name != "holes"), name


def test_a_student_on_a_cpu_takes_it(model_folder, monkeypatch):
    from mind.config import StudentConfig

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model, _ = load_student(StudentConfig(str(model_folder)))
    assert attention_of(model) == SPAN_ATTENTION
    model, _ = load_student(StudentConfig(str(model_folder), attention="sdpa"))
    assert attention_of(model) == "sdpa"
    with monkeypatch.context() as patch:
        patch.setattr(type(model.base_model), "_update_causal_mask", None, raising=False)
        set_attention(model, SPAN_ATTENTION)  # one with masks of its own stays as it is
        assert attention_of(model) == "sdpa"
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", lambda *_: False)
    set_attention(model, SPAN_ATTENTION)  # and so does one with attention of its own
    assert attention_of(model) == "sdpa"
