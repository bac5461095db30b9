"""Every causal language model of transformers that can be made tiny: the fused loss and gradient are the stock ones, or
the model is refused with one line.

A family that is in neither list below is expected to be right, so that a newer transformers with a family that is not
fails here, until somebody has looked at it. `make integrations` takes all; `make test` some of every kind.
"""

from __future__ import annotations

import copy
import os
import random
import re

import numpy
import pytest
import torch
import transformers
from trainers import IGNORED, distance
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mind_kernels.integrations.probe import without_cache
from mind_kernels.integrations.transformers import fuse
from tests.mind.families import _settings, build

OWN_LOSS = "it does not take its loss from its loss_function"
REFUSED = {
    **dict.fromkeys(("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "cpmant", "marian"), OWN_LOSS),
    **dict.fromkeys(("mbart", "mvp", "pegasus", "plbart", "prophetnet", "trocr", "whisper", "xlm", "xlnet"), OWN_LOSS),
    "git": "a forward pass of 9 tokens failed",  # labels of the text alone, behind the image's positions
}
NOT_BUILT = {
    "dbrx": "has no attribute 'rope_theta'",  # of transformers 5.23, at any size
    "dots3_note": "per_layer_config",
    "gemma3n": "requires the timm library",
    "gemma4_assistant": "hidden_size_per_layer_input must be 0",  # a draft that reads another model's cache
    "gemma4_unified_assistant": "layer types producing a cache",
    "musicgen": "has no attribute 'dropout'",  # MusicgenForCausalLM takes the configuration of a part of it
    "musicgen_melody": "has no attribute 'dropout'",
}
if transformers.__version__.startswith("5.0."):
    REFUSED["mamba"] = OWN_LOSS
    NOT_BUILT["llama4"] = "has no attribute 'pad_token_id'"
RANDOM_IN_TRAINING = {"big_bird", "reformer"}
"""Two calls of the stock model differ, whatever the seeds: of these the losses in evaluation mode are compared."""

TELLING = (
    "gpt2",
    "gemma2",  # softcap
    "cohere",  # scales by three names
    "falcon_h1",
    "minicpm3",
    "mixtral",  # an auxiliary loss
    "bert-generation",
    "mamba",
    "deepseek_v3",
    "llama4",  # with a vision tower
    "mllama",
    "opt",
    "whisper",
    "git",
    "reformer",
    "dbrx",
)
ALL = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
needs_time = pytest.mark.skipif(
    "MIND_INTEGRATIONS" not in os.environ, reason="a minute of one core (make integrations)"
)


def tiny(family: str):
    """A random model, without dropout."""
    eyes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    bytes_of = {"hidden_size_global": 32, "cross_attn_k": 2}
    parts = {
        "blt": lambda: {
            "encoder_hash_byte_group_vocab": 64,
            "encoder_config": text("blt_local_encoder") | bytes_of,
            "decoder_config": text("blt_local_decoder") | bytes_of,
        },
        "fuyu": lambda: {"text_config": text("persimmon"), "patch_size": 4},
        "gemma3": lambda: {
            "text_config": text("gemma3_text"),
            "vision_config": {**eyes, "image_size": 56, "patch_size": 14},
            "mm_tokens_per_image": 4,
        },
        "got_ocr2": lambda: {
            "text_config": text("qwen2"),
            "vision_config": {
                **eyes,
                "output_channels": 16,
                "image_size": 64,
                "mlp_dim": 64,
                "global_attn_indexes": [1],
            },
        },
        "moss_transcribe_diarize": lambda: {"text_config": text("qwen3")},
    }  # each made for its family alone: a version of transformers may lack others
    model = build(family, **parts.get(family, dict)())
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def text(family: str) -> dict:
    return {**_settings(CONFIG_MAPPING[family]), "model_type": family}


def outcome(family: str) -> str:
    """One line: that it is right, or by how much not, or why it is refused or not here."""
    try:
        stock = tiny(family)
    except Exception as error:  # of transformers' code
        return f"not built: {type(error).__name__}: {' '.join(str(error).split())}"
    fused = copy.deepcopy(stock)
    try:
        fuse(fused)
    except ValueError as error:
        return f"refused: {error}"
    ids = torch.randint(3, 90, (2, 11), generator=torch.Generator().manual_seed(1))
    labels = torch.where(torch.arange(11) < 3, IGNORED, ids)
    worst = 0.0
    for given in ({"labels": labels}, {"labels": labels, "num_items_in_batch": torch.tensor(7)}):
        (loss, gradient), (expected, d_expected) = (
            step(model, family not in RANDOM_IN_TRAINING, input_ids=ids, **given) for model in (fused, stock)
        )
        worst = max(worst, abs(loss - expected) / abs(expected))
        if gradient.keys() != d_expected.keys():
            return f"WRONG: without a gradient are {sorted(gradient.keys() ^ d_expected.keys())}"
        if gradient:
            whole = [torch.cat([*map(torch.flatten, each.values())]).double() for each in (gradient, d_expected)]
            worst = max(worst, distance(*whole) / 100)
    return f"{'right' if worst <= 1e-6 else 'WRONG'}: {worst:.1e}"


def step(model, train: bool, **given):
    """The loss and, in training mode, the gradients by name."""
    for seed in (torch.manual_seed, numpy.random.seed, random.seed):
        seed(0)
    model.train(train).zero_grad()
    loss = model(**given, **without_cache(model)).loss
    if train:
        loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check(family: str) -> str:
    """The outcome, which is as the lists above say."""
    line = outcome(family)
    if family in NOT_BUILT:
        assert re.match(f"not built: .*{NOT_BUILT[family]}", line), line
    elif family in REFUSED:
        assert re.match(f"refused: .*{REFUSED[family]}", line), line
    else:
        assert line.startswith("right: "), line
    return line


@pytest.mark.parametrize("family", TELLING)
def test_some_families(family):
    check(family)


@needs_time
@pytest.mark.slow
@pytest.mark.parametrize("family", ALL)
def test_all_families(record, family):
    if check(family).startswith("right"):
        record("transformers", "2", f"families of causal language models, {family}")
