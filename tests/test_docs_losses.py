"""docs/tutorials/losses-in-your-trainer.md: its code runs from top to bottom, and its module is the plain loss."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from tests.docs_pages import blocks
from tests.self_distillation import PAGE, objective, plain_loss, rationales, small_model


def capped_model():
    """Another family, whose logits a softcap bounds."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Gemma2ForCausalLM(
        Gemma2Config(vocab_size=61, num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.05, **sizes)
    )


def gradient(loss, model):
    """Of all parameters, as one vector."""
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    pytest.importorskip("trl", reason="trl is not installed (mind-kernels[test])")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for one in blocks(PAGE):
        if one.language == "python":
            exec(compile(one.text, f"{PAGE.name}:{one.line}", "exec"), names)
    said = capsys.readouterr().out
    assert "of tokens right" in said and "tensor([" in said
    assert names["losses"][-1] < names["losses"][0]
    assert names["model"](input_ids=names["tokens"][:2], labels=names["tokens"][:2]).logits.shape == (2, 0, 500)


@pytest.mark.parametrize("make", [small_model, capped_model])
def test_the_module_trains_as_the_plain_loss(make):
    model = make()
    plain, start = copy.deepcopy(model), copy.deepcopy(model)
    batch, fused = rationales(), objective(model)
    optimizers = [torch.optim.SGD(one.parameters(), lr=1.0) for one in (model, plain)]
    for _ in range(3):
        fused(batch).backward()
        plain_loss(plain, batch).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for (name, found), expected, first in zip(
        model.named_parameters(), plain.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)
        assert not torch.equal(found, first), name


def test_the_module_follows_autocast():
    """The products are taken in bfloat16, of the trunk too: no further from float32 than the plain loss is there."""
    truth = small_model()
    exact = gradient(plain_loss(truth, rationales()), truth)
    distances = []
    for loss_of in (plain_loss, lambda model, batch: objective(model)(batch)):
        model = small_model()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, rationales())
        distances.append(float((gradient(loss, model) - exact).norm() / exact.norm()))
    assert 1e-4 < distances[1] < 1.2 * distances[0]
