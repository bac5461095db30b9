"""Generation with a tiny random model, greedy and sampled."""

from __future__ import annotations

import pytest
import torch
from families import build
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mind.evaluation.generation import generate_ids, generate_responses

WORDS = 60
END = 1
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15, 16], [17, 18], [19, 20, 21, 22], [23]]


@pytest.fixture(scope="module")
def tokenizer():
    words = {"<pad>": 0, "<end>": END} | {f"w{i}": i for i in range(2, WORDS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).double()  # so that no two logits tie up to rounding


def test_batches_give_what_single_prompts_give(model, tokenizer):
    single = [generate_responses(model, tokenizer, [prompt], max_new_tokens=12, batch_size=1)[0] for prompt in PROMPTS]
    assert len(set(single)) == len(PROMPTS)
    for batch_size in (1, 2, 4, 6, 100):
        assert generate_responses(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=batch_size) == single


@pytest.mark.parametrize("family", ["recurrent_gemma", "mamba2", "bloom", "gpt2"])
def test_families_that_see_padding_get_batches_without(family, tokenizer):
    """The first heeds no mask of padding, so that only prompts of one length share a batch."""
    model = build(family, vocab_size=WORDS, eos_token_id=END)
    prompts = [prompt for prompt in (*PROMPTS, [7, 6, 5], [30, 31]) if len(prompt) > 1]
    single = [generate_responses(model, tokenizer, [prompt], max_new_tokens=4, batch_size=1)[0] for prompt in prompts]
    widths = []
    model.register_forward_pre_hook(
        lambda module, args, options: widths.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    assert generate_responses(model, tokenizer, prompts, max_new_tokens=4, batch_size=10) == single
    assert ((6, 8) in widths) == (family != "recurrent_gemma")


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mamba2"])
def test_rows_that_are_done_leave_the_batch(family, tokenizer):
    """With many tokens that end a response, rows end at different steps; a recurrent state stays whole."""
    model = build(family, vocab_size=WORDS, eos_token_id=list(range(1, WORDS, 6))).double()
    prompts = [[5 + i, *range(20, 23 + i)] for i in range(10)]
    single = [generate_responses(model, tokenizer, [prompt], max_new_tokens=9, batch_size=1)[0] for prompt in prompts]
    assert len({len(reply.text.split()) for reply in single}) > 1
    assert {reply.cut_off for reply in single} == {True, False}
    rows = []
    model.register_forward_pre_hook(
        lambda module, args, options: rows.append(len(options["input_ids"])), with_kwargs=True
    )
    assert generate_responses(model, tokenizer, prompts, max_new_tokens=9, batch_size=10) == single
    assert (min(rows[1:]) < 10) == (family != "mamba2")


def test_responses_are_the_greedy_continuations(model, tokenizer):
    ids = list(PROMPTS[2])
    with torch.no_grad():
        for _ in range(8):
            ids.append(int(model.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
    expected = tokenizer.decode(ids[len(PROMPTS[2]) :])
    assert generate_responses(model, tokenizer, [PROMPTS[2]], max_new_tokens=8, batch_size=1) == [(expected, True)]


def test_what_the_generation_config_of_the_model_asks_for_is_left_aside(model, tokenizer):
    greedy = generate_responses(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=3)
    for settings in (
        {"do_sample": True, "temperature": 5.0, "top_p": 0.9, "top_k": 50, "num_beams": 3, "num_return_sequences": 2},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_length": 12, "guidance_scale": 1.5},
        {"sequence_bias": [[[5], 9.0]], "suppress_tokens": [5, 7], "forced_eos_token_id": 3, "bad_words_ids": [[6]]},
        {"return_dict_in_generate": True, "output_scores": True, "stop_strings": ["w"], "max_time": 1e-9},
        {"prompt_lookup_num_tokens": 3, "cache_implementation": "static", "use_cache": False},
    ):
        model.generation_config = GenerationConfig(eos_token_id=END, **settings)
        before = model.generation_config.to_dict()
        assert generate_responses(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=3) == greedy, settings
        assert model.generation_config.to_dict() == before


def test_the_end_tokens_of_model_and_tokenizer_end_a_response(model, tokenizer):
    def respond(**options):
        options = {"max_new_tokens": 12, "batch_size": 1} | options
        (reply,) = generate_responses(model, tokenizer, PROMPTS[1:2], **options)
        return reply.text.split(), reply.cut_off

    words, cut_off = respond()
    assert len(set(words)) > 3 and cut_off
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(words[3])]
    assert respond() == (words[:3], False)
    assert respond(max_new_tokens=4) == (words[:3], False)  # the end is the last token that it may have
    assert respond(max_new_tokens=3) == (words[:3], True)
    model.generation_config.eos_token_id = None
    assert respond() == (words, True)
    assert respond(stop_text=words[2]) == respond(stop_text=words[2], max_new_tokens=3) == (words[:2], False)
    assert respond(stop_text=words[2], max_new_tokens=2) == (words[:2], True)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_even_after_an_error(model, tokenizer, training):
    def fail(_):
        assert not model.training
        raise KeyError("stop")

    model.train(training)
    generate_responses(model, tokenizer, PROMPTS, max_new_tokens=2, batch_size=4)
    assert model.training is training
    with pytest.raises(KeyError):
        generate_responses(model, tokenizer, PROMPTS, max_new_tokens=2, batch_size=4, progress=fail)
    assert model.training is training


def test_progress_counts_the_responses(model, tokenizer):
    seen = []
    generate_responses(model, tokenizer, PROMPTS, max_new_tokens=2, batch_size=4, progress=seen.append)
    assert seen == [4, 6]
    assert generate_responses(model, tokenizer, [], max_new_tokens=2, batch_size=4) == []


def sampled(model, tokenizer, draws, prompts=PROMPTS, temperature=0.7, batch_size=4):
    options = {"max_new_tokens": draws.shape[1], "batch_size": batch_size, "temperature": temperature}
    return generate_ids(model, tokenizer, prompts, draws=draws, **options)


def test_each_token_of_a_sample_is_drawn_by_its_own_number(model, tokenizer):
    """Token v is drawn by the numbers from P(< v) to P(<= v): against a loop that knows no cache and no batch."""
    draws = torch.rand(len(PROMPTS), 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = []
    for prompt, numbers in zip(PROMPTS, draws.tolist(), strict=True):
        ids = []
        for number in numbers:
            with torch.no_grad():
                logits = model.eval()(torch.tensor([prompt + ids])).logits[0, -1]
            below = (logits.double() / 0.7).softmax(0).cumsum(0) <= number
            ids.append(int(below.sum()))
            if ids[-1] == END:
                break
        expected.append(ids)
    assert len({tuple(ids) for ids in expected}) == len(PROMPTS)
    for batch_size in (1, 3, 6):
        assert sampled(model, tokenizer, draws, batch_size=batch_size) == expected
    assert sampled(model, tokenizer, draws[2:4], PROMPTS[2:4]) == expected[2:4]


def test_samples_have_the_probabilities_of_the_model(model, tokenizer):
    with torch.no_grad():
        p = (model.eval()(torch.tensor([PROMPTS[0]])).logits[0, -1].double() / 1.5).softmax(0)
    count = 4000
    draws = torch.rand(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"temperature": 1.5, "batch_size": count}
    tokens = torch.tensor(sampled(model, tokenizer, draws, [PROMPTS[0]] * count, **options)).flatten()
    found = torch.bincount(tokens, minlength=WORDS) / count
    assert ((found - p).abs() <= 4 * (p * (1 - p) / count).sqrt() + 1 / count).all()


@pytest.mark.parametrize("family", ["llama", "mamba2"])
def test_samples_keep_their_end(family, tokenizer):
    """Rows that are done leave the batch of the first; the second one's state stays whole."""
    ends = list(range(1, WORDS, 6))
    model = build(family, vocab_size=WORDS, eos_token_id=ends).double()
    draws = torch.rand(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prompts = [[5 + i, 20, 21] for i in range(5)]
    samples = sampled(model, tokenizer, draws, prompts, batch_size=5)
    assert samples == [sampled(model, tokenizer, draws[i : i + 1], prompts[i : i + 1])[0] for i in range(5)]
    for ids in samples:
        assert not set(ids[:-1]) & set(ends) and (ids[-1] in ends or len(ids) == 6)
    assert len({len(ids) for ids in samples}) > 1


def test_a_sample_ends_with_the_text_that_stops_it(model, tokenizer):
    (whole,) = generate_ids(model, tokenizer, [PROMPTS[2]], max_new_tokens=8, batch_size=1)
    place = next(i for i in range(2, 8) if whole[i] not in whole[:i])
    text = tokenizer.decode(whole[place])
    options = {"max_new_tokens": 8, "batch_size": 1, "stop_text": text}
    assert generate_ids(model, tokenizer, [PROMPTS[2]], **options) == [whole[: place + 1]]
    (reply,) = generate_responses(model, tokenizer, [PROMPTS[2]], **options)
    assert reply.text.strip() == tokenizer.decode(whole[:place])


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[5], []], {}, "prompt 1 has no tokens"),
        ([[5]], {"batch_size": 0}, "batch_size 0 and max_new_tokens 2: expected at least 1"),
        ([[5]], {"max_new_tokens": 0}, "batch_size 4 and max_new_tokens 0: expected at least 1"),
    ],
)
def test_impossible_requests_are_refused(model, tokenizer, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        generate_responses(model, tokenizer, prompts, **{"max_new_tokens": 2, "batch_size": 4} | options)


def test_an_end_token_is_needed(model):
    endless = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>")))
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="neither the model's generation config nor the tokenizer has an end-of-seq"):
        generate_responses(model, endless, [[5]], max_new_tokens=2, batch_size=4)
