"""TRL's supervised finetuning of a model that reads images takes the steps that it takes with its own loss."""

from __future__ import annotations

import contextlib

import pytest
import torch
from trainers import distance

pytest.importorskip("trl", reason="trl is not installed (mind-kernels[test])")
pytest.importorskip("PIL", reason="pillow is not installed")

import trl_runs
from datasets import Dataset
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor
from transformers import LlavaForConditionalGeneration as Llava
from trl import SFTConfig, SFTTrainer

from tests.mind.families import SMALL

IMAGE = "t98"
PIXELS, PATCH = 28, 14


def small(kind, **more):
    """The configuration of a tiny part."""
    return kind(**{name: value for name, value in SMALL.items() if hasattr(kind(), name)} | more)


def model():
    eyes = small(CLIPVisionConfig, image_size=PIXELS, patch_size=PATCH, projection_dim=32)
    torch.manual_seed(0)
    made = Llava(LlavaConfig(vision_config=eyes, text_config=small(LlamaConfig), image_token_index=int(IMAGE[1:])))
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def processor():
    tokenizer = trl_runs.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    size = {"height": PIXELS, "width": PIXELS}
    eyes = CLIPImageProcessor(size={"shortest_edge": PIXELS}, crop_size=size)
    settings = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaProcessor(eyes, tokenizer, image_token=IMAGE, **settings)


def pictures():
    """A picture and a few words about it in each row."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for pair in trl_runs.dataset(prompt=4, completion=9):
        prompt, completion = (pair[name].replace(IMAGE, "t97") for name in ("prompt", "completion"))
        pixels = torch.randint(0, 256, (PIXELS, PIXELS, 3), generator=generator, dtype=torch.uint8)
        image = Image.fromarray(pixels.numpy())
        rows.append({"images": [image], "prompt": f"{IMAGE} {prompt}", "completion": completion})
    return Dataset.from_list(rows)


def sft(folder):
    arguments = SFTConfig(**trl_runs.options(folder, max_length=None, remove_unused_columns=False))
    return SFTTrainer(model(), arguments, train_dataset=pictures(), processing_class=processor())


def test_steps_are_those_of_trl(tmp_path):
    expected = trl_runs.train(sft, tmp_path, contextlib.nullcontext())
    found = trl_runs.train_fused(sft, tmp_path)
    assert distance(found.losses, expected.losses) <= 1e-6
    assert distance(found.weights, expected.weights) <= min(1e-6, 1e-2 * distance(expected.weights, expected.before))
    for own, ours in zip(expected.log, found.log, strict=True):
        assert ours == pytest.approx(own, rel=1e-4, abs=1e-5)
