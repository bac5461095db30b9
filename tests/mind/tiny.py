"""A tiny real student: a random Llama, a byte-level tokenizer with a chat template, and sums to learn."""

from __future__ import annotations

import torch

from mind.records import Question, Rationale

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMES = ("first", "second", "third")


def build_tokenizer():
    """Bytes as tokens: any text round-trips, and nothing needs training or downloads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|im_start|>": 0, "<|im_end|>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=CHAT_TEMPLATE
    )


def build_model(seed: int = 0, **changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    options = {
        "vocab_size": 258,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(**options | changes))


def build_questions(count: int = 6) -> list[Question]:
    """Sums with up to three rationales; every third question lacks its second perspective."""
    questions = []
    for i in range(count):
        a, b = i + 2, 3 * i + 1
        texts = [f"{a} + {b} = {a + b}.", f"Start at {a}, then count {b} more: {a + b}.", f"{b} and {a} are {a + b}."]
        rationales = [
            Rationale(name, text)
            for k, (name, text) in enumerate(zip(NAMES, texts, strict=True))
            if not (i % 3 == 2 and k == 1)
        ]
        questions.append(Question(f"sum-{i}", f"What is {a} plus {b}?", str(a + b), None, tuple(rationales)))
    return questions


def build_family(model_type: str, seed: int = 0, **changes):
    """A random model of a transformers family, with full attention unless `changes` say otherwise."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    options = {
        "vocab_size": 258,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "initializer_range": 0.2,
    }
    if model_type in ("gemma3_text", "qwen2", "qwen3", "smollm3"):
        options["layer_types"] = ["full_attention"] * 2
    if model_type in ("mistral", "phi3"):
        options["sliding_window"] = None
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options | changes))
