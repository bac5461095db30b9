"""The examples of the operations' READMEs run as they stand there, and do what plain PyTorch on logits does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.guide import ROOT, block


def example(folder: str) -> str:
    """The code block behind the comment that names this file, in the README of `folder`."""
    return block(ROOT / folder / "README.md", "tests/test_readme.py")


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
