"""Shared prompts on real architectures: hidden states and gradients are those of sequences on their own."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import NAMES, build_family, build_model

from mind import word_problems
from mind.batches import prompt_sharing
from mind.batches.packing import micro_batches
from mind.batches.prompt_sharing import (
    attention_and_pack_options,
    choose_attention,
    choose_pack_options,
    obstacle,
    use_attention,
)
from mind.batches.rows import branch_mask
from mind.batches.trunk import labeled_hidden, pack_hidden
from mind.config import MindConfig, StudentConfig
from mind.errors import MindError
from mind.perspectives import PAPER_PERSPECTIVES
from mind.records import PackOptions, TokenizedQuestion
from mind.student.model import SPAN_ATTENTION, attention_of, set_attention
from mind.student.tokenization import tokenize

FAMILIES = ("gemma3_text", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
"""Those that tiny.py builds with full attention."""


def alone(model, question, k):
    """Hidden states of the labeled positions of one sequence, computed by itself."""
    ids = torch.tensor([*question.prompt, *question.rationales[k], *question.suffix], device=model.device)
    return model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0, len(question.prompt) - 1 : -1]


def check_against_single_sequences(model, questions, perspectives, pack_options, tolerance):
    """Hidden states and every parameter's gradient of packed micro-batches equal those of sequences one by one."""
    model.zero_grad()
    weights = {}
    for batch in micro_batches(questions, perspectives, pack_options):
        hidden = labeled_hidden(model, batch)
        weight = torch.randn(hidden.shape, dtype=hidden.dtype)
        (hidden * weight).sum().backward()
        for q, k in batch.present.nonzero().tolist():
            rows = batch.segment == q * perspectives + k
            weights[q, k] = weight[rows], hidden[rows].detach()
    packed = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert len(weights) == sum(len(question.rationales) for question in questions)
    for (q, k), (weight, hidden) in weights.items():
        expected = alone(model, questions[q], k)
        assert relative(hidden, expected.detach()) < tolerance
        (expected * weight).sum().backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert relative(packed[name], p.grad) < tolerance, name
    model.zero_grad()


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


# transformers' RMS norms compute in float32 even in a float64 model.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager", SPAN_ATTENTION])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_branches_as_if_alone(tokenizer, questions, family, attention, share, dtype, tolerance):
    model = build_family(family).to(dtype)
    assert obstacle(model, attention, 1000, 1000) is None
    set_attention(model, attention)
    tokenized = tokenize(questions[:3], tokenizer, NAMES, 512)
    check_against_single_sequences(model, tokenized, 3, PackOptions(300, share), tolerance)


def test_a_window_that_nothing_fills_is_no_obstacle(tokenizer, questions):
    layers = {"layer_types": ["sliding_attention", "full_attention"]}
    tokenized = tokenize(questions, tokenizer, NAMES, 512)
    wide, narrow = (build_family("gemma3_text", sliding_window=window, **layers).double() for window in (512, 8))
    assert choose_pack_options(wide, "sdpa", tokenized, 300, "always").share_prompts
    check_against_single_sequences(wide, tokenized, 3, PackOptions(300, True), 1e-6)
    with pytest.warns(RuntimeWarning, match="its sliding_window is 8 tokens"):
        pack_options = choose_pack_options(narrow, "sdpa", tokenized, 300, "auto")
    check_against_single_sequences(narrow, tokenized, 3, pack_options, 1e-6)


@pytest.mark.nightly
def test_a_real_model_computes_branches_as_if_alone(smollm2):
    """SmolLM2-135M in float32 on word problems: hidden states, and the gradient of every weight."""
    model, tokenizer, _ = smollm2
    questions = [replace(q, rationales=q.rationales[:3]) for q in word_problems.generate(2, seed=5)]
    tokenized = tokenize(questions, tokenizer, PAPER_PERSPECTIVES, 1024)
    check_against_single_sequences(model, tokenized, 8, PackOptions(2048, True), 1e-4)


SINGLE = build_family("llama", num_hidden_layers=1, hidden_size=16, intermediate_size=16, vocab_size=64).double()


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    perspectives=st.sampled_from([2, 3, 5, 8, 32]),
    length=st.integers(40, 200),
    prompts=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    longest=st.integers(1, 20),
    suffix=st.integers(1, 4),
    share=st.booleans(),
    missing=st.floats(0, 0.9),
)
@example(seed=0, perspectives=2, length=40, prompts=[40], longest=1, suffix=1, share=True, missing=0.0)
@example(seed=24, perspectives=2, length=40, prompts=[1], longest=1, suffix=1, share=False, missing=0.0)
@example(seed=1, perspectives=32, length=200, prompts=[3, 40], longest=25, suffix=3, share=True, missing=0.0)
@pytest.mark.nightly
def test_hundreds_of_packed_steps(seed, perspectives, length, prompts, longest, suffix, share, missing):
    """Lengths of all kinds, down to one-token rationales and prompts longer than them, against padded single rows."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count):
        return tuple(torch.randint(64, (count,), generator=generator).tolist())

    questions = []
    for q, prompt in enumerate(prompts):
        there = (torch.rand(perspectives, generator=generator) >= missing).nonzero().flatten().tolist() or [0]
        lengths = torch.randint(1, longest + 1, (len(there),), generator=generator).tolist()
        questions.append(
            TokenizedQuestion(
                str(q),
                tokens(prompt),
                {k: tokens(count) for k, count in zip(there, lengths, strict=True)},
                tokens(suffix),
            )
        )
    expected, gradients = padded(questions, generator)
    SINGLE.zero_grad()
    for batch in micro_batches(questions, perspectives, PackOptions(length, share)):
        hidden = labeled_hidden(SINGLE, batch)
        weight = torch.empty_like(hidden)
        for q, k in batch.present.nonzero().tolist():
            rows = batch.segment == q * perspectives + k
            states, weights = expected.pop((q, k))
            torch.testing.assert_close(hidden[rows], states, rtol=1e-5, atol=1e-6)
            weight[rows] = weights
        (hidden * weight).sum().backward()
    assert not expected
    # Gradients of queries are rounding alone if each sequence has one token: what they are small beside counts, too.
    size = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
    for p, gradient in zip(SINGLE.base_model.parameters(), gradients, strict=True):
        assert float((p.grad - gradient).norm()) < 1e-5 * float(gradient.norm()) + 1e-9 * size


def padded(questions, generator):
    """(q, k) -> hidden states of its labeled rows and weights; and the gradients of their weighted sum.

    A row a sequence, padded on the right, where causal attention never looks.
    """
    keys = [(q, k) for q, question in enumerate(questions) for k in question.rationales]
    sequences = [[*questions[q].prompt, *questions[q].rationales[k], *questions[q].suffix] for q, k in keys]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(s) for s in sequences], batch_first=True)
    hidden = SINGLE.base_model(input_ids=ids, use_cache=False).last_hidden_state
    states, total = {}, 0.0
    for row, (q, k) in enumerate(keys):
        labeled = hidden[row, len(questions[q].prompt) - 1 : len(sequences[row]) - 1]
        weight = torch.randn(labeled.shape, dtype=torch.float64, generator=generator)
        states[q, k] = labeled.detach(), weight
        total = total + (labeled * weight).sum()
    return states, torch.autograd.grad(total, list(SINGLE.base_model.parameters()))


def build_pack():
    question = TokenizedQuestion("q", (5, 6, 7), {0: (8,), 1: (9, 10), 2: (11, 12, 13)}, (14,))
    (batch,) = micro_batches([question], 3, PackOptions(100, True))
    return batch.packs[0]


def test_flex_attention_gives_what_sdpa_gives(monkeypatch):
    """In eager mode, whose gradient is autograd's: compiled, PyTorch differentiates it on a GPU only."""
    from torch.nn.attention import flex_attention
    from transformers.integrations import flex_attention as integration

    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(
        integration,
        "compile_friendly_flex_attention",
        lambda *args, training=False, **options: flex_attention.flex_attention(*args, **options),
    )
    results = []
    for attention in ("sdpa", "flex_attention"):
        model = build_model().double()
        model.set_attn_implementation(attention)
        hidden = pack_hidden(model, build_pack())
        hidden.square().sum().backward()
        results.append([hidden.detach(), *(p.grad for p in model.base_model.parameters())])
    for sdpa, flex in zip(*results, strict=True):
        assert relative(flex, sdpa) < 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("attention", "share"), [("flex_attention", True), ("sdpa", True), ("sdpa", False), ("flash_attention_2", False)]
)
def test_every_attention_on_a_gpu(attention, share, compiled):
    """Against sequences one by one, in bfloat16: rows of several lengths, so that compiled code meets new shapes."""
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    model = build_family("llama", head_dim=64, hidden_size=256, num_hidden_layers=4).to("cuda", torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    questions = [
        TokenizedQuestion(
            str(q),
            tuple(torch.randint(258, (50 + 90 * q,), generator=generator).tolist()),
            {k: tuple(torch.randint(258, (20 + 31 * k,), generator=generator).tolist()) for k in range(4)},
            (7, 8, 9),
        )
        for q in range(4)
    ]
    single = {(q, k): alone(model, question, k).detach() for q, question in enumerate(questions) for k in range(4)}
    with use_attention(model, attention):
        if compiled:
            model.base_model.compile(dynamic=True)
        for length in (500, 900, 2500):
            for batch in micro_batches(questions, 4, PackOptions(length, share)):
                hidden = labeled_hidden(model, batch)
                hidden.float().square().mean().backward()
                for q, k in batch.present.nonzero().tolist():
                    rows = (batch.segment == q * 4 + k).to(hidden.device)
                    assert relative(hidden[rows].float(), single[q, k].float()) < 0.15  # a wrong mask is off by about 1
    assert all(p.grad.isfinite().all() for p in model.base_model.parameters())


def test_the_mask_by_hand():
    """Prompt 5 6 7; branches 8 14, 9 10 14 and 11 12 13 14, in that order."""
    sees = branch_mask(build_pack(), "sdpa", torch.float32, torch.device("cpu"))[0, 0]
    assert [row.nonzero().flatten().tolist() for row in sees] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 5],
        [0, 1, 2, 5, 6],
        [0, 1, 2, 5, 6, 7],
        [0, 1, 2, 8],
        [0, 1, 2, 8, 9],
        [0, 1, 2, 8, 9, 10],
        [0, 1, 2, 8, 9, 10, 11],
    ]
    additive = branch_mask(build_pack(), "eager", torch.float32, torch.device("cpu"))[0, 0]
    assert torch.equal(additive == 0, sees) and additive.min() == torch.finfo(torch.float32).min


@pytest.mark.parametrize(
    ("model", "attention", "reason"),
    [
        (
            lambda: build_family("gemma3_text", layer_types=["sliding_attention", "full_attention"], sliding_window=8),
            "sdpa",
            "its sliding_window is 8 tokens, and the longest sequence has 50",
        ),
        (lambda: build_family("mistral", sliding_window=16), "sdpa", "its sliding_window is 16 tokens"),
        (lambda: build_family("llama"), "flash_attention_2", "flash_attention_2 takes no attention mask"),
    ],
    ids=["layers", "window", "flash"],
)
def test_obstacles_are_named(tokenizer, questions, model, attention, reason):
    model = model()
    tokenized = [TokenizedQuestion("q", tuple(range(40)), {0: (1,) * 8}, (2, 2))]
    with pytest.raises(MindError, match=f"train.share_prompts is always, but prompts cannot be shared: .*{reason}"):
        choose_pack_options(model, attention, tokenized, 300, "always")
    with pytest.warns(RuntimeWarning, match=f"each rationale is computed with its own copy of the prompt: .*{reason}"):
        assert choose_pack_options(model, attention, tokenized, 300, "auto") == PackOptions(300, False)
    assert choose_pack_options(model, attention, tokenized, 300, "never") == PackOptions(300, False)


def test_the_longest_sequence_may_fill_the_context(monkeypatch):
    longest = [TokenizedQuestion("q", (5,) * 30, {0: (6,) * 3, 1: (6,) * 8}, (2, 2))]  # 40 tokens
    for context, questions in ((40, longest), (None, longest), (0, [])):
        monkeypatch.setattr(prompt_sharing, "context_of", lambda model, context=context: context)
        assert choose_pack_options(build_model(), "sdpa", questions, 300, "never") == PackOptions(300, False)
    monkeypatch.setattr(prompt_sharing, "context_of", lambda model: 39)
    with pytest.raises(MindError, match="the longest sequence has 40 tokens; the context of LlamaForCausalLM is 39"):
        choose_pack_options(build_model(), "sdpa", longest, 300, "never")


def test_logits_that_are_not_of_the_head_are_refused():
    model = build_model()
    other = torch.nn.Linear(32, 258, bias=False)
    model.get_output_embeddings = lambda: other
    with pytest.raises(MindError, match="its logits do not come from the LM head that it names"):
        choose_pack_options(model, "sdpa", [], 300, "never")


def test_the_attention_is_the_models_own_again():
    model = build_model()
    with use_attention(model, "eager"):
        assert attention_of(model) == "eager"
    assert attention_of(model) == "sdpa"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImportError("the package flash_attn seems to be not installed"), "flash-attn is not installed: pip install"),
        (ValueError("Invalid version: 'N/A'"), "flash-attn is not installed: pip install"),  # transformers 5.0
        (ValueError("Llama does not support Flash Attention 2 yet"), "Llama does not support Flash Attention 2 yet"),
    ],
)
def test_why_there_is_no_flash_attention_is_told(monkeypatch, error, reason):
    model = build_model()

    def refuse(name):
        raise error

    monkeypatch.setattr(model, "set_attn_implementation", refuse)
    monkeypatch.setattr("mind.student.model.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MindError, match=f"student.attention flash_attention_2: {reason}"):
        set_attention(model, "flash_attention_2")


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_what_is_probed_is_what_trains(monkeypatch):
    """The model on the process's device, with the attention of training."""
    seen = []
    monkeypatch.setattr(prompt_sharing.processes, "device", lambda: torch.device("meta"))
    monkeypatch.setattr(prompt_sharing, "check_trainable", lambda model: seen.append(str(model.device)))
    monkeypatch.setattr(
        prompt_sharing,
        "choose_pack_options",
        lambda model, name, *_: seen.append((str(model.device), name, attention_of(model))),
    )
    config = MindConfig(student=StudentConfig(attention="eager"))
    for device in ("cpu", "cuda"):
        attention_and_pack_options(build_model(), config, [], device)
    assert seen == ["cpu", ("cpu", "eager", "eager"), "meta", ("meta", "eager", "eager")]


def test_auto_attention_by_device_and_length(monkeypatch):
    def auto(*arguments):
        return choose_attention("auto", *arguments)

    assert auto("cpu", 100_000, "auto") == SPAN_ATTENTION
    assert auto("cuda", 2048, "auto") == "flex_attention" and auto("cuda", 1024, "always") == "sdpa"
    monkeypatch.setattr(prompt_sharing.importlib.util, "find_spec", lambda name: None)
    assert auto("cuda", 4096, "never") == "sdpa"
    monkeypatch.setattr(prompt_sharing.importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    assert auto("cuda", 4096, "never") == "flash_attention_2"
    assert choose_attention("eager", "cuda", 4096, "auto") == "eager"
