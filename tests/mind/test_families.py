"""A dozen kinds of models: the NLL and gradients of their rows are those of single sequences, or they are refused.

`python tests/mind/families.py` does it for every family of transformers that can be made tiny.
"""

from __future__ import annotations

import re

import pytest
from families import outcome


@pytest.mark.filterwarnings("ignore:each sequence is computed in a row of its own")
@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("gpt2", "right: packed, shared prompts"),  # learned positions that are given
        ("gemma2", "right: packed"),  # alternating windows, shorter than the sequences; a softcap
        ("qwen3_moe", "right: packed, shared prompts"),
        ("granitemoehybrid", "right: padded"),  # Mamba layers between attention, scaled logits
        ("falcon_h1", "right: padded"),  # both in each layer, a scale by a name of its own
        ("lfm2", "right: padded"),  # short convolutions
        ("qwen3_5_text", "right: padded"),  # a linear attention's state
        ("rwkv", "right: padded"),
        ("recurrent_gemma", "right: padded"),
        ("bloom", "right: padded"),  # ALiBi
        ("opt", "right: padded, shared prompts"),  # a mask that knows no positions
        ("gpt_oss", "right: padded;"),
        ("deepseek_v4", "right: padded"),  # keys that are compressed
        ("gpt_neo", "right: packed;"),  # a window under another name
        ("llama4_text", "right: "),  # chunks; a trunk under another name
        ("doge", "refused: DogeForCausalLM cannot be trained: in a row of several"),  # chooses among later keys
        ("bert-generation", "refused: .* lets a token see later ones of its sequence"),
        ("bert", "refused: .* transforms the hidden states of its trunk"),
    ],
)
def test_a_family_is_right_or_refused(family, expected):
    line = outcome(family)
    assert re.match(expected, line), line
