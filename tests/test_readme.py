"""The examples of the READMEs run as they stand there, and do what plain PyTorch on logits does."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.guide import ROOT, block

K, P, T = 3, 2, 9


def example(folder: str = "") -> str:
    """The code block behind the comment that names this file, in the README of `folder`."""
    return block(ROOT / folder / "README.md", "tests/test_readme.py")


def plain_loss(model, batch):
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    answers = torch.stack([logits[k, batch["answer_positions"][k]] for k in range(K)]).softmax(-1)
    pairs = [(i, j) for i in range(K) for j in range(i + 1, K)]
    for i, j in pairs:
        middle = ((answers[i] + answers[j]) / 2).log()
        jsd = sum((p * (p.log() - middle)).sum(-1) for p in (answers[i], answers[j])) / 2
        loss = loss + 0.1 * jsd.mean() / len(pairs)
    return loss


def small_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=61, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )


def capped_model():
    """Another family, whose logits a softcap bounds."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Gemma2ForCausalLM(
        Gemma2Config(vocab_size=61, num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.05, **sizes)
    )


def rationales(seed: int = 0):
    """A batch of the example: K rationales of a question, whose answers begin at other positions."""
    generator = torch.Generator().manual_seed(seed)
    batch = {
        "input_ids": torch.randint(0, 61, (K, T), generator=generator),
        "attention_mask": torch.ones(K, T, dtype=torch.long),
        "answer_positions": torch.tensor([[5, 6], [4, 5], [6, 7]]),
    }
    return batch | {"labels": torch.where(torch.arange(T) < 4, -100, batch["input_ids"])}


def objective(model):
    """The module of the example, without a step of its loop."""
    names = {"model": model, "loader": [], "optimizer": None}
    exec(example(), names)
    return names["objective"]


def gradient(loss, model):
    """Of all parameters, as one vector."""
    loss.backward()
    grads = [parameter.grad for parameter in model.parameters()]
    return torch.cat(
        [grad.full_tensor().flatten() if hasattr(grad, "full_tensor") else grad.flatten() for grad in grads]
    )


@pytest.mark.parametrize("make", [small_model, capped_model])
def test_self_distillation_in_somebody_elses_loop(make):
    model = make()
    plain, start = copy.deepcopy(model), copy.deepcopy(model)
    batch = rationales()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    names = {"model": model, "loader": [batch] * 3, "optimizer": optimizer}
    exec(example(), names)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0)
    for _ in range(3):
        plain_loss(plain, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    for (name, found), expected, first in zip(
        model.named_parameters(), plain.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)
        assert not torch.equal(found, first), name


def test_self_distillation_follows_autocast():
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


def log_probs(given, hidden="hidden", head="head"):
    return (given[hidden].double() @ given[head].double().T).log_softmax(-1)


def pairwise_jsd(p):
    """The sum over the pairs of the K distributions (..., K, V) of each group."""
    pairs = [(i, j) for i in range(p.shape[-2]) for j in range(i + 1, p.shape[-2])]
    return sum(jsd(p[..., i, :], p[..., j, :]) for i, j in pairs)


def jsd(p, q):
    middle = (p + q) / 2
    return ((p * (p / middle).log()).sum(-1) + (q * (q / middle).log()).sum(-1)) / 2


def cross_entropy(given):
    nll = F.nll_loss(log_probs(given), given["target"], reduction="none")
    return (given["row_weight"] * nll).sum() / given["row_weight"].sum()


def log_prob_loss(given):
    log_p = log_probs(given)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return -log_p.gather(1, given["target"][:, None]).mean() - 0.01 * entropy.mean()


def mind_loss(given):
    log_p = log_probs(given)
    return F.nll_loss(log_p, given["target"]) + 0.1 * pairwise_jsd(log_p.exp()[given["answer_rows"]]).mean()


@pytest.mark.parametrize(
    ("operation", "plain"),
    [
        ("linear_cross_entropy", cross_entropy),
        ("linear_log_prob", log_prob_loss),
        ("linear_pairwise_jsd", lambda given: pairwise_jsd(log_probs(given).exp()).mean() / 3),
        (
            "linear_divergence",
            lambda given: jsd(log_probs(given).exp(), log_probs(given, "teacher_hidden", "teacher_head").exp()).mean(),
        ),
        ("linear_mind_loss", mind_loss),
    ],
)
def test_the_example_of_an_operation(operation, plain):
    torch.manual_seed(0)
    given = {}
    exec(example(f"mind_kernels/{operation}"), given)
    leaves = given["hidden"], given["head"]
    expected = plain(given)
    torch.testing.assert_close(given["loss"].double(), expected, rtol=1e-5, atol=1e-6)
    for leaf, gradient in zip(leaves, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(leaf.grad, gradient, rtol=1e-3, atol=1e-5)
