"""A fused model under torch.compile: one graph, with the loss and the gradient of the stock model."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from test_fuse import BATCH, losses_and_gradient
from torch._dynamo.testing import CompileCounter
from trainers import VOCABULARY, distance, make

from mind_kernels.integrations.transformers import fuse


def check(backend: str, dynamic: bool) -> None:
    stock = make(num_hidden_layers=1)
    fused = fuse(copy.deepcopy(stock))
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend=backend, dynamic=dynamic)
    for width in (9, 7):
        batch = {name: value[:, :width] for name, value in BATCH.items()}
        for items in (None, torch.tensor(5)):
            given = batch | ({} if items is None else {"num_items_in_batch": items})
            fused.zero_grad()
            loss = compiled(**given, use_cache=False).loss
            loss.backward()
            gradient = torch.cat([p.grad.flatten() for p in fused.parameters()])
            expected, d_expected = losses_and_gradient(stock, **given, use_cache=False)
            torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=0)
            assert distance(gradient, d_expected) < 1e-5


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_compiles_whole(dynamic):
    check("aot_eager", dynamic)


@pytest.mark.slow
@pytest.mark.skipif("MIND_INTEGRATIONS" not in os.environ, reason="it takes a minute (make integrations)")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole_with_inductor(dynamic, record):
    check("inductor", dynamic)
    record("transformers", "2", f"torch.compile, {'dynamic' if dynamic else 'static'} shapes")


@pytest.mark.nightly
def test_counts_of_items_make_no_further_graph():
    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = torch.compile(fuse(make(num_hidden_layers=1)), fullgraph=True, backend=graphs, dynamic=True)
    for items in range(3, 12, 2):
        compiled(**BATCH, num_items_in_batch=torch.tensor(items), use_cache=False).loss.backward()
    assert graphs.frame_count <= 2


def test_in_evaluation():
    stock = make(num_hidden_layers=1).eval()
    torch._dynamo.reset()
    compiled = torch.compile(fuse(copy.deepcopy(stock)), fullgraph=True, backend="eager")
    output = compiled(**BATCH, use_cache=False)
    torch.testing.assert_close(output.loss, stock(**BATCH).loss, rtol=1e-6, atol=0)
    assert output.logits.shape == (4, 17, VOCABULARY)
    assert compiled(**BATCH, use_cache=False, skip_logits=True).logits.shape == (4, 0, VOCABULARY)
    assert compiled(input_ids=BATCH["input_ids"], use_cache=False).loss is None
