"""Models that read images: the fused loss is the stock one, image positions included."""

from __future__ import annotations

import copy

import pytest
import torch
from test_fuse import assert_as_stock
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from mind_kernels.integrations.transformers import fuse

VOCABULARY, IMAGE, VIDEO, START, END = 120, 100, 101, 102, 103
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 128,
}
EYES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
PIXELS = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def llava():
    eyes = {**EYES, "model_type": "clip_vision_model", "projection_dim": 32}
    options = {"vision_config": eyes, "text_config": {**TEXT, "model_type": "llama"}}
    return "llava", options | {"image_token_index": IMAGE, "image_token_id": IMAGE}, {"pixel_values": PIXELS}


def gemma3():
    text = {**TEXT, "final_logit_softcapping": 3.0, "sliding_window": 4}
    options = {"vision_config": EYES, "text_config": text, "mm_tokens_per_image": 4}
    ids = {"image_token_index": IMAGE, "image_token_id": IMAGE, "boi_token_index": START, "eoi_token_index": END}
    kinds = {"token_type_ids": (prompt() == IMAGE).long()}
    return "gemma3", options | ids, {"pixel_values": PIXELS, **kinds}


def paligemma():
    text = {**TEXT, "model_type": "gemma"}
    options = {"vision_config": {**EYES, "projection_dim": 32, "vision_use_head": False}, "text_config": text}
    kinds = {"token_type_ids": (torch.arange(prompt().shape[1]) > 6).long().expand(2, -1).clone()}
    return (
        "paligemma",
        options | {"image_token_index": IMAGE, "image_token_id": IMAGE, "projection_dim": 32},
        {"pixel_values": PIXELS, **kinds},
    )


def qwen2_vl():
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    eyes = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 14, "in_channels": 3}
    special = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START}
    options = {"text_config": {**TEXT, "rope_parameters": rope}, "vision_config": eyes, "vision_end_token_id": END}
    # Two images of 4 x 4 patches, of which 2 x 2 become a token, in patches of two equal frames.
    patches = torch.randn(32, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0))
    pictures = {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}
    return "qwen2_vl", options | special, pictures | {"mm_token_type_ids": (prompt() == IMAGE).int()}


def smolvlm(family="smolvlm"):
    text = {**TEXT, "model_type": "llama"}
    options = {"vision_config": EYES, "text_config": text, "image_token_id": IMAGE, "scale_factor": 1}
    return family, options, {"pixel_values": PIXELS[:, None]}


def idefics3():
    return smolvlm("idefics3")


def prompt() -> torch.Tensor:
    """A word, an image of four tokens, and words."""
    ids = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    ids[:, 1], ids[:, 2:6] = START, IMAGE
    return ids


@pytest.mark.parametrize("family", [llava, gemma3, paligemma, qwen2_vl, smolvlm, idefics3])
def test_images_and_words(record, family):
    name, options, pictures = family()
    torch.manual_seed(0)
    stock = AutoModelForImageTextToText.from_config(CONFIG_MAPPING[name](**options)).train()
    for parameter in stock.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    fused = fuse(copy.deepcopy(stock))
    ids = prompt()
    labels = torch.where(torch.arange(ids.shape[1]) < 7, -100, ids)
    labels[1, 10:] = -100
    given = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), **pictures}
    assert_as_stock(fused, stock, **given)
    assert any(p.grad is not None and p.grad.any() for n, p in fused.named_parameters() if "vis" in n)
    assert fused(**given).logits.shape == (2, 0, VOCABULARY)
    record("transformers", "2", f"models that read images, {name}")


def vision_encoder_decoder():
    from transformers import VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    text = CONFIG_MAPPING["gpt2"](vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2)
    return VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**EYES), text))


def pix2struct():
    from transformers import Pix2StructConfig, Pix2StructForConditionalGeneration

    text = {"vocab_size": VOCABULARY, "hidden_size": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    eyes = {"hidden_size": 32, "d_kv": 8, "d_ff": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    return Pix2StructForConditionalGeneration(Pix2StructConfig(text_config=text, vision_config=eyes))


def blip():
    from transformers import BlipConfig, BlipForConditionalGeneration

    text = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=EYES))


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (vision_encoder_decoder, "VisionEncoderDecoderModel is an encoder-decoder"),
        (pix2struct, "Pix2StructForConditionalGeneration is an encoder-decoder"),
        (blip, "BlipForConditionalGeneration has no LM head"),
    ],
)
def test_what_is_no_causal_language_model_is_refused(make_model, message):
    with pytest.raises(ValueError, match=message):
        fuse(make_model())
