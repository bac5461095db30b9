"""Small tokenizers of the kinds that students have, trained on a few lines, with chat templates."""

from __future__ import annotations

import json

from tiny import build_questions
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ m['content'].strip() }} [/INST]"
    "{% else %} {{ m['content'].strip() }} {{ eos_token }}{% endif %}{% endfor %}"
)
TEXTS = [
    *(text for q in build_questions(12) for text in [q.question, *(r.text for r in q.rationales)]),
    *["\n#### 0 1 2 3 4 5 6 7 8 9 user assistant <|im_end|> </s> <s> [INST] We Line!?()"] * 20,
    *["Two  of them.\n\nThen\nx"] * 20,
    *[f"It is {i}.\n#### {i}" for i in range(60)],
    *[f"f({i})\n#### {i}" for i in range(60)],
]
LLAMA3_WORDS = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _wrapped(tokenizer, template):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        chat_template=template,
    )


def _trained(model, trainer, *, words, decoder, normalizer=None, texts=TEXTS, **options):
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer, tokenizer.decoder = words, decoder
    tokenizer.train_from_iterator(texts, trainer(special_tokens=SPECIAL, **options))
    return tokenizer


def _sentencepiece(template=TEMPLATE, scheme=None):
    """BPE whose pieces hold no space within and no line break, which is a byte token; the space at the beginning comes
    from Metaspace or, for None as the scheme, from the normalizer."""
    tokenizer = _trained(
        models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True),
        trainers.BpeTrainer,
        words=pre_tokenizers.Metaspace(prepend_scheme=scheme or "always"),
        decoder=decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
        texts=[text.replace("\n", " ") for text in TEXTS],
        vocab_size=600,
    )
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    tokenizer = Tokenizer.from_str(json.dumps(state))
    if scheme is None:
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _wrapped(tokenizer, template)


def _byte_level(words):
    tokenizer = _trained(
        models.BPE(),
        trainers.BpeTrainer,
        words=words,
        decoder=decoders.ByteLevel(),
        vocab_size=900,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    return _wrapped(tokenizer, TEMPLATE)


def _unigram(normalizer=None):
    tokenizer = _trained(
        models.Unigram(),
        trainers.UnigramTrainer,
        normalizer=normalizer,
        words=pre_tokenizers.Metaspace(),
        decoder=decoders.Metaspace(),
        vocab_size=300,
        unk_token="<unk>",
    )
    return _wrapped(tokenizer, TEMPLATE)


def _word_piece():
    tokenizer = _trained(
        models.WordPiece(unk_token="<unk>"),
        trainers.WordPieceTrainer,
        normalizer=normalizers.BertNormalizer(lowercase=True),
        words=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
        vocab_size=300,
    )
    return _wrapped(tokenizer, TEMPLATE)


def _in_python():
    tokenizer = ByT5Tokenizer(chat_template=TEMPLATE, bos_token="<s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    return tokenizer


def _llama3_words():
    split = pre_tokenizers.Split(LLAMA3_WORDS, "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


FAITHFUL = {
    "GPT-2": lambda: _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "GPT-2 with a space in front": lambda: _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "Llama 3": lambda: _byte_level(_llama3_words()),
    "Llama 2": _sentencepiece,
    "Llama 2 with its template": lambda: _sentencepiece(LLAMA2),
    "Metaspace always": lambda: _sentencepiece(scheme="always"),
    "Metaspace first": lambda: _sentencepiece(scheme="first"),
    "Metaspace first, Llama 2's template": lambda: _sentencepiece(LLAMA2, scheme="first"),
    "Metaspace never": lambda: _sentencepiece(scheme="never"),
    "Unigram": _unigram,
    "in Python": _in_python,
}
"""Those that give back the texts that they are given."""

LOSSY = {
    "Unigram, lower case": lambda: _unigram(normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])),
    "WordPiece": _word_piece,
}
