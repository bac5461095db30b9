"""Rows: what a model mixes or misplaces in them is found on the very model, in any dtype, and without a trace."""

from __future__ import annotations

import warnings

import pytest
import torch
from families import build
from tiny import NAMES, build_family, build_model

from mind.batches.isolation import branch_fault, fault, keeps_sequences_apart
from mind.batches.packing import document_pack, plain_pack
from mind.batches.prompt_sharing import choose_pack_options, use_attention
from mind.batches.trunk import pack_hidden
from mind.config import EvaluationConfig
from mind.errors import MindError
from mind.evaluation.evaluate import evaluation_prompts, heldout_nll
from mind.methods.mind.features import StudentEncoder
from mind.records import PackOptions
from mind.student.model import SPAN_ATTENTION, set_attention
from mind.student.tokenization import tokenize

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def with_state(model, change):
    """The model, whose second layer gets its hidden states (B, T, D) changed."""
    model.model.layers[1].register_forward_pre_hook(lambda layer, args: (change(args[0]), *args[1:]))
    return model


def convolution(hidden):
    return hidden + 1e-3 * torch.nn.functional.pad(hidden, (0, 0, 1, -1))


def recurrence(hidden):
    return hidden + 1e-3 * hidden.cumsum(1)


def far_recurrence(hidden):
    """A token sees the one 16 before it."""
    return hidden + 1e-3 * torch.nn.functional.pad(hidden, (0, 0, 16, 0))[:, : hidden.shape[1]]


def row_mean(hidden):
    return hidden + 1e-3 * hidden.mean(1, keepdim=True)


def batch_mean(hidden):
    return hidden + 1e-3 * hidden.mean(0, keepdim=True)


def row_positions(hidden):
    return hidden + torch.linspace(-4, 4, hidden.shape[1], dtype=hidden.dtype)[:, None]


def absolute_positions(hidden):
    return hidden + (torch.arange(hidden.shape[1], dtype=hidden.dtype)[:, None] / 3).sin()


@pytest.mark.parametrize("attention", ["sdpa", "eager", SPAN_ATTENTION])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("change", "plain", "padded"),
    [
        (convolution, "lets a sequence see the others", None),
        (recurrence, "lets a sequence see the others", None),
        (far_recurrence, "lets a sequence see the others", None),
        (row_mean, "lets a sequence see the others", "lets a sequence see the others"),
        (batch_mean, None, "lets a sequence see the others"),
        (lambda hidden: hidden.flip(1), "lets a sequence see the others", "lets a sequence see the others"),
        (absolute_positions, "gives a sequence other states than alone", None),
        (row_positions, "gives a sequence other states than alone", "gives a sequence other states than alone"),
        (lambda hidden: hidden * torch.ones(1, 9, 1), "raises RuntimeError: The size of tensor", "raises RuntimeError"),
        (lambda hidden: hidden.detach(), "lets no gradient through", "lets no gradient through"),
        (lambda hidden: hidden * 1.5, None, None),
    ],
)
def test_what_a_model_mixes_is_found_however_faint(change, plain, padded, dtype, attention):
    model = with_state(build_model().to(dtype), lambda hidden: change(hidden).to(dtype))
    set_attention(model, attention)
    for layout, expected in (("plain", plain), ("padded", padded)):
        found = fault(model, layout, 100)
        assert found is None if expected is None else found.startswith(expected), (layout, found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ["sdpa", "eager", SPAN_ATTENTION])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_what_mixes_nothing_passes_in_every_dtype(family, attention, dtype):
    model = build_family(family).to(dtype)
    set_attention(model, attention)
    assert [fault(model, layout, 100) for layout in ("plain", "shared", "padded")] == [None] * 3


def test_a_model_that_sees_later_tokens_is_no_student():
    model = build_model()
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    model.set_attn_implementation("eager")
    model.model.register_forward_pre_hook(
        lambda trunk, args, options: (
            args,
            options | {"attention_mask": torch.zeros(1, 1, 1, 1), "position_ids": None},
        ),
        with_kwargs=True,
    )
    with pytest.raises(MindError, match="LlamaForCausalLM cannot be trained: .* padded, it lets a sequence see the"):
        pack_hidden(model, plain_pack([[3, 4, 5]]))


def test_a_row_for_each_sequence_is_said_once(tokenizer, questions):
    model = build("lfm2", vocab_size=258)
    tokenized = tokenize(questions, tokenizer, NAMES, 512)
    with pytest.warns(RuntimeWarning) as told:
        options = choose_pack_options(model, "sdpa", tokenized, 300, "auto")
        encoder = StudentEncoder(model, tokenizer, 300)
        encoder.encode(["one", "a longer text"], lambda _: None)
        with use_attention(model, "eager"):
            choose_pack_options(model, "eager", tokenized, 200, "auto")
    assert options == PackOptions(300, False)
    assert [str(warning.message) for warning in told] == [
        "each sequence is computed in a row of its own, with padding: "
        "in a row of several, Lfm2ForCausalLM lets a sequence see the others"
    ]
    with pytest.raises(MindError, match="train.share_prompts is always, but prompts cannot be shared: in a row with"):
        choose_pack_options(model, "sdpa", tokenized, 300, "always")


@pytest.mark.filterwarnings("ignore:each sequence is computed in a row of its own")
@pytest.mark.parametrize("family", ["lfm2", "mamba2", "opt"])
def test_nll_and_features_do_not_depend_on_packing(tokenizer, questions, family):
    model = build(family, vocab_size=258)
    tokenized = tokenize(questions, tokenizer, NAMES, 512)
    nll = [heldout_nll(model, tokenized, NAMES, PackOptions(length, False))["nll"] for length in (60, 200, 1000)]
    assert nll == pytest.approx(nll[:1] * 3, rel=1e-5)
    texts = ["one", "a longer text", "x"]
    encoder = StudentEncoder(model, tokenizer, 100)
    with torch.no_grad():
        for text, vector in zip(texts, encoder.encode(texts, lambda _: None), strict=True):
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            alone = model.base_model(input_ids=ids).last_hidden_state[0].mean(0)
            torch.testing.assert_close(vector, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:each sequence is computed in a row of its own")
def test_padded_rows_hold_no_more_tokens_than_the_pack():
    model = build("mamba2")
    lengths = [3, 50, 4, 4, 30, 2, 29, 1]
    sequences = [list(range(3, 3 + length)) for length in lengths]
    pack = plain_pack(sequences)
    pack_hidden(model, pack)
    shapes = []
    model.base_model.register_forward_pre_hook(
        lambda trunk, args, options: shapes.append(options["input_ids"].shape), with_kwargs=True
    )
    hidden = pack_hidden(model, pack)
    assert [tuple(shape) for shape in shapes] == [(2, 50), (4, 29), (2, 2)]
    for sequence, states in zip(sequences, hidden.split(lengths), strict=True):
        alone = model.base_model(input_ids=torch.tensor([sequence])).last_hidden_state[0]
        torch.testing.assert_close(states, alone, rtol=1e-4, atol=1e-5)


def test_a_student_that_has_moved_since_the_first_probe_is_not_misjudged():
    model = build_model()
    assert fault(model, "plain", 100) is None
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    assert fault(model, "shared", 100) is None and fault(model, "padded", 100) is None


def test_branches_are_refused_where_they_would_be_wrong():
    pack = document_pack([((3, 4, 5), ((6, 7), (8, 9, 10)))])
    with pytest.raises(MindError, match="prompts cannot be shared: in a row with shared prompts, Lfm2ForCausalLM lets"):
        pack_hidden(build("lfm2"), pack)
    with pytest.raises(MindError, match="prompts cannot be shared: its window_size is 5 tokens, and the longest .* 6"):
        pack_hidden(build("gpt_neo", window_size=5), pack)


def test_what_begins_beyond_a_window_is_probed_beyond_it():
    """GPT-Neo's window counts tokens of the row, so that a branch far behind its prompt does not see it."""
    model = build("gpt_neo", window_size=60)
    assert branch_fault(model, 20, 50) is None
    assert "in a row with shared prompts, GPTNeoForCausalLM gives a sequence other" in branch_fault(model, 20, 100)
    assert branch_fault(model, 61, 100) == "its window_size is 60 tokens, and the longest sequence has 61"
    assert keeps_sequences_apart(model, 100)


def test_positions_that_are_scaled_by_the_longest_sequence_are_found():
    """longrope computes a whole row by other factors if one of its sequences is long."""
    scaled = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
    model = build_family(
        "phi3",
        max_position_embeddings=256,
        original_max_position_embeddings=40,
        rope_parameters=scaled | {"original_max_position_embeddings": 40},
    )
    assert keeps_sequences_apart(model, 40)
    with pytest.raises(
        MindError, match="Phi3ForCausalLM cannot be trained: .* gives a sequence other states than alone"
    ):
        keeps_sequences_apart(model, 100)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        # Rotations that depend on the longest sequence of a row once that is beyond the context; a table of positions.
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}),
        ("gpt2", {}),
    ],
)
def test_what_is_longer_than_the_context_is_refused(family, settings, tokenizer, questions):
    model = build_family(family, max_position_embeddings=64, **settings)
    tokenized = tokenize(questions, tokenizer, NAMES, 512)
    with pytest.raises(MindError, match=r"the longest sequence has \d+ tokens; the context of \w+ is 64"):
        choose_pack_options(model, "sdpa", tokenized, 300, "auto")
    prompt = len(tokenized[0].prompt)
    assert evaluation_prompts(model, tokenizer, questions, EvaluationConfig(questions=1, max_new_tokens=64 - prompt))
    with pytest.raises(MindError, match=f"question sum-0: its prompt has {prompt} tokens; .* context of 64"):
        evaluation_prompts(model, tokenizer, questions, EvaluationConfig(questions=1, max_new_tokens=65 - prompt))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "lfm2", "mamba2", "gpt_neo"])
def test_the_probe_leaves_no_trace(family):
    model = build(family).train()
    model.requires_grad_(False)
    state = {name: value.clone() for name, value in [*model.state_dict().items(), *model.named_buffers()]}
    torch.manual_seed(3)
    random = torch.get_rng_state()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keeps_sequences_apart(model, 100)
        branch_fault(model, 20, 100)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in [*model.state_dict().items(), *model.named_buffers()])
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


def test_adapters_and_autocast():
    peft = pytest.importorskip("peft")
    model = build_model(attention_dropout=0.3)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5)).train()
    with torch.autocast("cpu", torch.bfloat16):
        assert pack_hidden(adapted, plain_pack([[3, 4], [5, 6, 7]])).shape == (5, 32)
        assert fault(model, "plain", 10) is None and fault(model, "shared", 10) is None
