"""MoDE-CoTD: mixtures of adapters and their search by hand, and runs with their experts."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from tiny import build_model

from mind.errors import MindError
from mind.student.adapters import merged
from mind.student.mixture import mixture, read_adapter, set_adapter, widen_adapter

EXPERTS = [
    {"x.lora_A.weight": torch.tensor([[1.0, 2]]), "x.lora_B.weight": torch.tensor([[1.0], [0]])},
    {"x.lora_A.weight": torch.tensor([[0.0, 1]]), "x.lora_B.weight": torch.tensor([[1.0], [1]])},
]
MIXTURES = {"lorahub": [[-0.25, 0], [-0.5, 0]], "exact": [[0.5, 0], [0, -1]]}


@pytest.mark.parametrize(("mix", "expected"), MIXTURES.items())
def test_mixtures_by_hand(mix, expected):
    matrices = mixture(EXPERTS, [0.5, -1.0], mix)
    assert torch.equal(matrices["x.lora_B.weight"] @ matrices["x.lora_A.weight"], torch.tensor(expected))


def adapted(**lora):
    model = get_peft_model(build_model(tie_word_embeddings=False).double(), LoraConfig(r=2, lora_alpha=3, **lora))
    return model.double()


@pytest.mark.parametrize("mix", MIXTURES)
def test_a_model_computes_with_the_mixture(mix, tmp_path):
    """Linear layers, the head and the embeddings, against the merged weights of each expert."""
    targets = ["q_proj", "down_proj", "lm_head", "embed_tokens"]
    weights, experts, factors = (0.5, -1.25, 2.0), [], []
    for seed in range(3):
        expert = adapted(target_modules=targets)
        torch.manual_seed(seed)
        for parameter in expert.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter)
        expert.save_pretrained(tmp_path / str(seed), save_embedding_layers=False)
        experts.append(read_adapter(tmp_path / str(seed)))
        factors.append({name: matrix.clone() for name, matrix in get_peft_model_state_dict(expert).items()})
    model = adapted(target_modules=targets)
    if mix == "exact":
        widen_adapter(model, 3)
    set_adapter(model, mixture(experts, weights, mix))
    plain = dict(build_model(tie_word_embeddings=False).double().named_parameters())
    for name, found in merged(model.double()).named_parameters():
        names = [key for key in factors[0] if name.removesuffix(".weight") in key and "lora_" in key]
        expected = plain[name]
        if names:
            first, second = sorted(names)
            pairs = [(w * one[second], one[first]) for w, one in zip(weights, factors, strict=True)]
            if mix == "lorahub":
                added = sum(b for b, _ in pairs) @ sum(w * a for w, (_, a) in zip(weights, pairs, strict=True))
            else:
                added = sum(b @ a for b, a in pairs)
            expected = expected + 1.5 * (added.T if "embed" in name else added)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=name)


def test_a_folder_without_an_adapter_is_named(tmp_path):
    with pytest.raises(MindError, match="holds no adapter: adapter_model.safetensors is missing"):
        read_adapter(tmp_path)
