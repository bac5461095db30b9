"""Every causal language model of transformers that can be made tiny: right, or refused with one line.

    python tests/mind/families.py [MODEL_TYPE ...]

A model is right if the NLL of its packed sequences is what its own forward pass gives for each sequence alone, and the
gradients of all its weights, too. Ten families of every kind are in test_families.py.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2])]

from mind.batches.isolation import branch_fault, fault, keeps_sequences_apart
from mind.batches.packing import micro_batches, sequence_lengths
from mind.batches.trunk import labeled_hidden
from mind.errors import MindError
from mind.records import PackOptions, TokenizedQuestion
from mind.student.model import head_of
from mind_kernels import linear_cross_entropy
from mind_kernels.integrations.probe import without_cache

VOCABULARY = 99
SMALL = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "lru_width", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("embedding_dim", "emb_dim", "input_embedding_dim", "qkv_channels", "dim", "mamba_d_ssm"), 32),
    **dict.fromkeys(("attention_hidden_size", "shared_intermediate_size", "moe_intermediate_size", "hidden_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "d_inner"), 64),
    **dict.fromkeys(("dff", "ffn_hidden_size", "intermediate_dim", "expert_ffn_hidden_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_ngram_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("attention_heads", "mamba_num_heads", "mamba_n_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "mamba_d_head", "mamba_head_dim", "linear_key_head_dim"), 8),
    **dict.fromkeys(("linear_value_head_dim", "rotary_dim", "kv_lora_rank", "q_lora_rank", "v_head_dim"), 8),
    **dict.fromkeys(("hidden_size_per_layer_input", "mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "index_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "context_length"), 256),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("sliding_window", "attention_window_size", "attention_chunk_size", "keep_window_size"), 16),
    **dict.fromkeys(("local_attention", "index_topk"), 16),
    "first_k_dense_replace": 1,
    "vocab_size_per_layer_input": VOCABULARY,
    "dropout_rate": 0.0,
}
"""Settings of any name that make a model tiny; a family gets those that its configuration has."""

SCALES = {
    "logits_scaling": 8.0,
    "logit_scale": 0.0625,
    "final_logit_softcapping": 3.0,
    "logits_soft_cap": 3.0,
    "lm_head_multiplier": 0.05,
    "dim_model_base": 8,
    "logits_softcap": 3.0,
    "embedding_multiplier": 5.0,
    "output_multiplier_scale": 0.1,
    "logit_softcap": 3.0,
}
"""Settings by which families scale their logits, away from their defaults."""

_LATENT = ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa")
SPECIAL: dict[str, dict[str, Any]] = {
    # Latent attention, whose keys are not grouped.
    **dict.fromkeys((*_LATENT, "longcat_flash", "minicpm3", "youtu", "dots3_note_text"), {"num_key_value_heads": 4}),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), {"head_dim": 8}),
    "bailing_hybrid": {
        "layer_group_size": 2,
        "num_key_value_heads": 4,
        "num_expert_group": 1,
        "num_local_experts": 4,
        "num_experts_per_token": 2,
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2},
    "bamba": {"mamba_d_head": 16},
    "dots1": {
        "num_experts_per_tok": 2,
        "n_routed_experts": 4,
        "moe_intermediate_size": 32,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "granitemoehybrid": {"mamba_d_head": 16, "layer_types": ["mamba", "attention"]},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"num_experts_per_token": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "moshi": {"audio_vocab_size": 9},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "lsh"]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "hybrid"],
        "n_mamba_heads": 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"],
        "mamba_headdim": 16,
        "n_mamba_heads": 4,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What a family needs beside that."""


def build(model_type: str, **changes: Any) -> Any:
    """A random model of a family in float32 and evaluation mode; raises whatever its code raises if it cannot be built
    tiny, and ValueError for one of more than 20 million parameters. A test of a family that this version of
    transformers lacks is skipped."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {model_type}")
    config = CONFIG_MAPPING[model_type](**_settings(CONFIG_MAPPING[model_type]) | changes)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > 20e6:
        raise ValueError(f"{size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.3)
    return model


def _settings(kind: Any) -> dict[str, Any]:
    known = kind().to_dict()
    small = {name: value for name, value in SMALL.items() if known.get(name) is not None}
    small |= {name: value for name, value in SCALES.items() if name in known}
    parts = {name: part for name, part in kind.sub_configs.items() if hasattr(part, "sub_configs")}
    small |= {name: _settings(part) for name, part in parts.items() if known.get(name) is not None}
    return small | SPECIAL.get(kind.model_type, {})


def build_questions() -> list[TokenizedQuestion]:
    """Three questions with rationales of unequal lengths, up to 60 tokens a sequence."""
    generator = torch.Generator().manual_seed(1)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 90, (count,), generator=generator).tolist())

    return [
        TokenizedQuestion(str(q), tokens(8 + 6 * q), {k: tokens(5 + 7 * k + 9 * q) for k in range(3)}, tokens(3))
        for q in range(3)
    ]


def errors(model: Any, questions: list[TokenizedQuestion], options: PackOptions) -> tuple[float, float]:
    """The largest difference of a sequence's NLL, in nats per token, and the relative one of the weights' gradients."""
    own = {}
    model.zero_grad()
    for q, question in enumerate(questions):
        for k, rationale in question.rationales.items():
            ids = torch.tensor([[*question.prompt, *rationale, *question.suffix]])
            start = len(question.prompt)
            logits = model(input_ids=ids, **without_cache(model)).logits[0, start - 1 : -1].float()
            own[q, k] = torch.nn.functional.cross_entropy(logits, ids[0, start:])
            own[q, k].backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    worst = 0.0
    for batch in micro_batches(questions, 3, options):
        losses = linear_cross_entropy(labeled_hidden(model, batch), head_of(model), batch.target, reduction="none")
        total = torch.zeros(())
        for q, k in batch.present.nonzero().tolist():
            loss = losses[batch.segment == 3 * q + k].mean()
            worst = max(worst, abs(float(loss) - float(own[q, k])))
            total = total + loss
        total.backward()
    found = dict(model.named_parameters())
    norm = sum(float(value.square().sum()) for value in expected.values())
    gone = sum(
        float(((found[name].grad if found[name].grad is not None else 0) - value).square().sum())
        for name, value in expected.items()
    )
    model.zero_grad()
    return worst, (gone / norm) ** 0.5


def outcome(model_type: str) -> str:
    """One line: how a family is computed and that it is right, or why it is refused or not here."""
    try:
        model = build(model_type)
    except Exception as error:  # of transformers' code
        return f"not built: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    if not isinstance(model.get_output_embeddings(), torch.nn.Linear):
        return f"refused: its LM head is {type(model.get_output_embeddings()).__name__}"
    questions = build_questions()
    try:
        head = head_of(model)
        apart = keeps_sequences_apart(model, 200)
        shared = branch_fault(model, max(map(max, map(sequence_lengths, questions))), 200) is None
    except MindError as error:
        return f"refused: {error}"
    nll, gradient = errors(model, questions, PackOptions(200, False))
    if shared:
        nll, gradient = (
            max(pair) for pair in zip((nll, gradient), errors(model, questions, PackOptions(200, True)), strict=True)
        )
    right = nll < 1e-3 and gradient < 1e-3
    reason = "" if apart else f" ({fault(model, 'plain', 200)})"
    return (
        f"{'right' if right else 'WRONG'}: {'packed' if apart else 'padded'}{', shared prompts' if shared else ''}; "
        f"NLL {nll:.0e}, gradient {gradient:.0e}; softcap {head.softcap}, temperature {head.temperature:g}{reason}"
    )


def main(names: list[str]) -> None:
    """Prints the table of the named families, or of all."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    counts: Counter[str] = Counter()
    for name in names or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        line = outcome(name)
        counts[line.partition(":")[0]] += 1
        print(f"{name:28}{line}", flush=True)
    print(dict(counts))


if __name__ == "__main__":
    main(sys.argv[1:])
