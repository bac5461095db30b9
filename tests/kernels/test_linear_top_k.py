"""linear_top_k: the k most likely tokens of each row, against float64, in chunks, in graphs."""

from __future__ import annotations

import pytest
import torch
from cases import opcheck
from torch._dynamo.testing import CompileCounter

from mind_kernels import Head, linear_divergence, linear_top_k, row_chunks
from mind_kernels.linear_top_k.contract import TopKArguments
from mind_kernels.linear_top_k.op import operator
from mind_kernels.testing import assert_within_budget, make_inputs

BACKENDS = ["reference", "torch"]


def make(rows=13, vocabulary=101, dtype=torch.float32):
    inputs = make_inputs(rows, 16, vocabulary, dtype=dtype)
    bias = torch.randn(vocabulary, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return inputs["hidden"], inputs["weight"], bias.to(dtype)


def log_softmax(hidden, weight, bias, softcap, temperature):
    return Head(weight, bias, softcap, temperature).logits(hidden).log_softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("softcap", "temperature"), [(None, 1.0), (4.0, 0.7)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_float64(backend, dtype, softcap, temperature, monkeypatch):
    monkeypatch.setattr(row_chunks, "_CHUNK_BYTES", {"cpu": 5 * 101 * 4, "cuda": 5 * 101 * 4})
    hidden, weight, bias = make(dtype=dtype)
    found = linear_top_k(hidden, weight, 7, bias=bias, softcap=softcap, temperature=temperature, backend=backend)
    truth = log_softmax(hidden.double(), weight.double(), bias.double(), softcap, temperature)
    peer = log_softmax(hidden, weight, bias, softcap, temperature)
    assert_within_budget(
        {"log_prob": found.log_prob},
        {"log_prob": peer.gather(1, found.ids)},
        {"log_prob": truth.gather(1, found.ids)},
        dtype,
        conditioning=8.0,
    )
    # Whatever is listed is as likely as what should be, to the rounding of the logits.
    torch.testing.assert_close(found.log_prob.double(), truth.topk(7).values, rtol=0, atol=32 * torch.finfo(dtype).eps)
    logits = Head(weight.double(), bias.double(), softcap, temperature).logits(hidden.double())
    torch.testing.assert_close(found.lse.double(), logits.logsumexp(-1), rtol=0, atol=32 * torch.finfo(dtype).eps)
    assert (found.log_prob.diff() <= 0).all() and all((row.unique().numel() == 7) for row in found.ids)


def test_a_list_is_what_the_divergence_takes():
    """Of all tokens, it is the divergence from the head itself."""
    hidden, weight, _ = make(12)
    teacher, teacher_weight, _ = make(12, dtype=torch.float32)
    known = linear_top_k(teacher.view(3, 4, 16), teacher_weight, 101, temperature=2.0)
    found = linear_divergence(
        hidden.view(3, 4, 16), weight, teacher_ids=known.ids, teacher_log_prob=known.log_prob, temperature=2.0
    )
    expected = linear_divergence(hidden, weight, teacher, teacher_weight, temperature=2.0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_constants_of_any_leading_shape(backend):
    hidden, weight, bias = make(12)
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    found = linear_top_k(leaves[0].view(2, 3, 2, 16), leaves[1], 3, bias=leaves[2], backend=backend)
    assert found.ids.shape == found.log_prob.shape == (2, 3, 2, 3) and found.lse.shape == (2, 3, 2)
    assert not any(part.requires_grad for part in found)
    assert torch.equal(found.ids.flatten(0, 2), linear_top_k(hidden, weight, 3, bias=bias, backend=backend).ids)
    assert linear_top_k(hidden[:0], weight, 3, backend=backend).ids.shape == (0, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ruled_out_tokens_come_last(backend):
    hidden, weight, bias = make()
    bias[5:] = -torch.inf
    found = linear_top_k(hidden, weight, 8, bias=bias, backend=backend)
    assert (found.ids[:, :5] < 5).all() and (found.log_prob[:, 5:] == -torch.inf).all()
    torch.testing.assert_close(found.log_prob.exp().sum(1), torch.ones(13))


def test_opcheck_and_one_graph():
    hidden, weight, bias = make()
    opcheck(operator, TopKArguments(hidden, Head(weight, bias, 4.0, 0.7), 5, "torch"))
    compiled = torch.compile(linear_top_k, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (13, 9):
        for one, other in zip(compiled(hidden[:rows], weight, 5), linear_top_k(hidden[:rows], weight, 5), strict=True):
            assert torch.equal(one, other)


def test_a_temperature_may_change_without_another_graph():
    hidden, weight, _ = make()
    graphs = CompileCounter()
    compiled = torch.compile(
        lambda hidden, temperature: linear_top_k(hidden, weight, 3, temperature=temperature),
        fullgraph=True,
        backend=graphs,
    )
    for temperature in (0.5, 0.7, 1.1, 1.3):
        expected = linear_top_k(hidden, weight, 3, temperature=temperature)
        assert torch.equal(compiled(hidden, temperature).log_prob, expected.log_prob)
    assert graphs.frame_count <= 2


def test_autocast_is_followed():
    hidden, weight, _ = make()
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_top_k(hidden, weight, 4)
    assert torch.equal(found.log_prob, linear_top_k(hidden.bfloat16(), weight.bfloat16(), 4).log_prob)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 0}, ValueError, "k is 0: expected 1 to 101, the vocabulary"),
        ({"k": 102}, ValueError, "k is 102: expected 1 to 101"),
        ({"k": 1.5}, TypeError, "k is 1.5: expected an integer"),
        ({"hidden": torch.zeros(3)}, ValueError, "hidden has shape"),
        ({"backend": "cpp"}, RuntimeError, "it has no kernels for this operation; torch has$"),
    ],
)
def test_wrong_arguments(change, error, message):
    hidden, weight, _ = make()
    arguments = {"hidden": hidden, "weight": weight, "k": 3} | change
    with pytest.raises(error, match=message):
        linear_top_k(**arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_with_an_infinite_logit_has_no_log_probabilities(backend):
    """As in a softmax; the other rows do not notice."""
    hidden, weight, _ = make()
    weight[7, 0] = 1e30
    clean = linear_top_k(hidden, weight, 3, backend=backend)
    hidden[4, 0] = 1e30  # whose logit for token 7 alone overflows
    found = linear_top_k(hidden, weight, 3, backend=backend)
    assert found.log_prob[4].isnan().all()
    others = torch.arange(len(hidden)) != 4
    torch.testing.assert_close(found.log_prob[others], clean.log_prob[others], rtol=0, atol=0)
