"""The student's tokenizer: a byte-level BPE within words, in which each digit is a token of its own.

A space before a digit belongs to the token before it, so a digit is the same token wherever it is found: operands are
copied token by token, without a blank between them.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
_PIECES = Regex(r" ?(?:[A-Za-z]+|#+|[^\sA-Za-z\d])(?: (?=\d))?|\d|\s")
_TEMPLATE = (
    "{% for message in messages %}"
    f"{{{{ '{USER}' if message['role'] == 'user' else '{ASSISTANT}' }}}}"
    "{{ message['content'] }}"
    f"{{% if message['role'] == 'assistant' %}}{{{{ '{END}' }}}}{{% endif %}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{ASSISTANT}' }}}}{{% endif %}}"
)


def build_tokenizer(texts: Iterable[str], size: int, context: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `size` tokens that are frequent in the texts, for a model with this context."""
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(_PIECES, "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        chat_template=_TEMPLATE,
        model_max_length=context,
    )
