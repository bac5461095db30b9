"""verl's own forward passes take the same steps with the fused log-probabilities, and RL losses their gradients."""

from __future__ import annotations

import copy
import importlib
import math
import sys

import pytest

pytest.importorskip("verl", reason="verl is not installed (make integrations)")

import client_runs
import torch
from processes import joined, start
from torch import distributed
from trainers import weights
from verl.models.transformers.monkey_patch import patch_forward_with_backends
from verl.utils.experimental.torch_functional import FusedLinearForPPO
from verl.utils.import_utils import import_external_libs
from verl.utils.kernel import linear_cross_entropy as kernel

NAME = "mind_kernels.integrations.verl"
STOCK = FusedLinearForPPO.forward, kernel.linear_cross_entropy


@pytest.fixture
def installed(monkeypatch):
    """As verl's configuration of a model does it; undone after the test."""
    monkeypatch.setattr(FusedLinearForPPO, "forward", STOCK[0])
    monkeypatch.setattr(kernel, "linear_cross_entropy", STOCK[1])
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    return lambda: import_external_libs(NAME)


def trained(model, backend, temperature):
    """Four steps of PPO's clipped objective with an entropy bonus."""
    patched = type("Patched", (type(model),), {})  # verl changes the class
    model.__class__ = patched
    patch_forward_with_backends(model, use_fused_kernels=True, fused_kernels_backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    generator = torch.Generator().manual_seed(0)
    run = client_runs.Run(weights(model))
    for _ in range(4):
        ids = torch.randint(4, client_runs.VOCABULARY, (3, 14), generator=generator)
        advantage = torch.randn(3, 14, generator=generator)
        old = torch.randn(3, 14, generator=generator) * 0.3 - 4
        output = model(ids, temperature=temperature, return_dict=True)
        log_prob, entropy = output.log_probs.view(3, 14), output.entropy.view(3, 14)
        ratio = (log_prob - old).clamp(-2, 2).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        loss = -(gain + 0.1 * entropy)[:, :-1].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.losses.append(float(loss))
    run.end = weights(model)
    return run


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_steps_are_those_of_verl(installed, agree, backend, temperature):
    """verl's Triton kernels need a GPU: their place is compared with verl's PyTorch form."""
    model = client_runs.model()
    stock = trained(copy.deepcopy(model), "torch", temperature)
    installed()
    assert FusedLinearForPPO.forward is not STOCK[0] and kernel.linear_cross_entropy is not STOCK[1]
    fused = trained(copy.deepcopy(model), backend, temperature)
    agree("verl", "2 of YAML", f"PPO, {backend} at temperature {temperature}", stock, fused)


def work_on_parts(rank: int, port: int) -> None:
    """What verl's forward pass for Megatron asks for: its kernel leaves the gradient of the hidden states in parts."""
    with joined(rank, port):
        import_external_libs(NAME)
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(3, 5, 16, generator=generator).requires_grad_()
        whole = torch.randn(99, 16, generator=generator)
        labels = torch.randint(99, (3, 5), generator=generator)
        of_log_prob, of_entropy = torch.randn(2, 15, generator=generator)
        rows = slice(0, 60) if rank == 0 else slice(60, 99)
        part = whole[rows].clone().requires_grad_()
        found = kernel.linear_cross_entropy(hidden, part, labels, 0.7, "none", distributed.group.WORLD)
        torch.autograd.backward(found, (of_log_prob, of_entropy))
        d_hidden = hidden.grad.double()
        distributed.all_reduce(d_hidden)  # of the parts, as the gather of sequence parallelism does it
        d_weight = part.grad
        hidden, whole = hidden.detach().double().requires_grad_(), whole.double().requires_grad_()
        log_p = (hidden @ whole.T / 0.7).log_softmax(-1).flatten(0, 1)
        expected = log_p[range(15), labels.flatten()], -(log_p.exp() * log_p).sum(-1)
        torch.autograd.backward(expected, (of_log_prob.double(), of_entropy.double()))
        for value, exact in zip((*found, d_hidden, d_weight), (*expected, hidden.grad, whole.grad[rows]), strict=True):
            torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="PyTorch without gloo")
def test_parts_of_the_vocabulary(record):
    start(work_on_parts)
    record("verl", "2 of YAML", "tensor parallelism (the function that Megatron's forward pass calls)")


def test_what_is_no_such_function_is_refused(installed):
    installed()
    hidden, weight, labels = torch.randn(5, 8), torch.randn(11, 8), torch.arange(5)
    with pytest.raises(ValueError, match="reduction is 'mean': expected 'none'"):
        kernel.linear_cross_entropy(hidden, weight, labels, 1.0, "mean")
    log_prob, entropy = kernel.linear_cross_entropy(hidden, weight, labels)
    expected = (hidden.double() @ weight.double().T).log_softmax(-1)
    torch.testing.assert_close(log_prob.double(), expected[range(5), labels], rtol=1e-5, atol=1e-5)
    assert (entropy < math.log(11)).all()


def test_another_version_of_verl_is_refused(installed, monkeypatch):
    monkeypatch.setattr(FusedLinearForPPO, "forward", lambda self, hidden_states, head: None)
    with pytest.raises(ImportError, match=r"verl \d.*FusedLinearForPPO.forward takes self, hidden_states, head: exp"):
        importlib.import_module(NAME)
