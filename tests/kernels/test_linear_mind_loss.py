"""linear_mind_loss: against float64, against its two parts, absent answers, errors."""

from __future__ import annotations

import pytest
import torch

from mind_kernels import linear_cross_entropy, linear_mind_loss, linear_pairwise_jsd, row_chunks
from mind_kernels.testing import assert_within_budget, make_inputs

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def make(rows=60, groups=5, count=4, *, absent=0.2, ignored=0.1, seed=0):
    """make_inputs' tensors with answer_rows and pair_weight; every third row has weight zero."""
    inputs = make_inputs(rows, 16, 67, dtype=torch.float64, ignored=ignored, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    answer_rows = torch.randperm(rows, generator=generator)[:groups * count].view(groups, count).clone()
    answer_rows[torch.rand(groups, count, generator=generator) < absent] = -1
    row_weight = inputs["row_weight"] * (torch.arange(rows) % 3 > 0)
    return inputs | {"row_weight": row_weight, "answer_rows": answer_rows,
                     "pair_weight": torch.rand(groups, count, count, generator=generator, dtype=torch.float64)}


def run(inputs, dtype, backend, **options):
    inputs = dict(inputs)
    hidden, weight = (inputs.pop(name).detach().to(dtype).requires_grad_() for name in ("hidden", "weight"))
    bias = torch.linspace(-1, 1, 67).to(dtype).requires_grad_()
    loss, stats = linear_mind_loss(hidden, weight, **inputs, bias=bias, segment=torch.arange(hidden.shape[0]) % 4,
                                   num_segments=4, return_stats=True, backend=backend, **options)
    (1.3 * loss).backward()
    return {"loss": loss, "cross_entropy": stats.cross_entropy, "consistency": stats.consistency,
            "jsd": stats.pairs.jsd, "nll": stats.rows.nll, "lse": stats.rows.lse, "entropy": stats.rows.entropy,
            "segment_nll": stats.rows.segment_nll, "d_hidden": hidden.grad, "d_weight": weight.grad,
            "d_bias": bias.grad}


@pytest.mark.parametrize("options", [{}, {"softcap": 4.0, "temperature": 0.8}], ids=str)
@pytest.mark.parametrize("kind", [{}, {"absent": 0.0, "ignored": 0.0}, {"rows": 20}, {"rows": 4, "groups": 0},
                                  {"count": 2, "groups": 1, "absent": 1.0}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_float64(dtype, kind, options):
    inputs = make(**kind)
    inputs = {k: v.to(dtype) if k in ("hidden", "weight") else v for k, v in inputs.items()}
    truth = run(inputs, torch.float64, "reference", **options)
    peer = run(inputs, dtype, "reference", **options)
    assert_within_budget(run(inputs, dtype, "torch", **options), peer, truth, dtype)


def test_equals_its_two_parts():
    inputs = make(absent=0.0)
    joint = run(inputs, torch.float64, "torch")
    hidden, weight = inputs["hidden"].requires_grad_(), inputs["weight"].requires_grad_()
    bias = torch.linspace(-1, 1, 67).double()
    ce = linear_cross_entropy(hidden, weight, inputs["target"], row_weight=inputs["row_weight"], bias=bias,
                              reduction="sum")
    jsd = linear_pairwise_jsd(hidden[inputs["answer_rows"]], weight, inputs["pair_weight"], bias=bias)
    (1.3 * (ce + jsd)).backward()
    torch.testing.assert_close(joint["loss"], ce + jsd)
    torch.testing.assert_close(joint["cross_entropy"], ce)
    torch.testing.assert_close(joint["consistency"], jsd)
    torch.testing.assert_close(joint["d_hidden"], hidden.grad)
    torch.testing.assert_close(joint["d_weight"], weight.grad)


@pytest.mark.parametrize("chunk", [1, 3, 40])
def test_chunk_sizes_change_nothing(monkeypatch, chunk):
    inputs = make()
    whole = run(inputs, torch.float64, "torch")
    monkeypatch.setattr(row_chunks, "_CHUNK_BYTES", {"cpu": 8 * 67 * 8 * chunk})
    monkeypatch.setattr(row_chunks, "_BLOCK_BYTES", {"cpu": 67 * 4 * chunk})
    for name, value in run(inputs, torch.float64, "torch").items():
        torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-12)


def test_answer_rows_are_projected_once(monkeypatch):
    inputs = make(ignored=0.0, absent=0.0)
    projected = []
    project = row_chunks.Head.project
    monkeypatch.setattr(row_chunks.Head, "project", lambda self, h: (projected.append(h.shape[0]), project(self, h))[1])
    run(inputs, torch.float64, "torch")
    assert sum(projected) == 60


def test_opcheck_and_compile():
    inputs = make()
    hidden, weight = inputs["hidden"].requires_grad_(), inputs["weight"].requires_grad_()
    rest = (inputs["target"], inputs["row_weight"], inputs["answer_rows"], inputs["pair_weight"])
    torch.library.opcheck(torch.ops.mind_kernels.linear_mind_loss.default,
                          (hidden, weight, None, *rest, None, 0, -100, None, 1.0, [True, True, False], "torch"))

    def step(hidden):
        return linear_mind_loss(hidden * 2, weight, *rest)

    expected, = torch.autograd.grad(step(hidden), hidden)
    found, = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(hidden), hidden)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("changes, kind, message", [
    ({"answer_rows": torch.zeros(5).long()}, ValueError, r"answer_rows has shape \(5,\): expected 2 dimensions"),
    ({"answer_rows": torch.zeros(5, 4)}, TypeError, r"answer_rows has dtype torch.float32"),
    ({"answer_rows": torch.full((5, 4), -2)}, ValueError, r"answer_rows: expected rows in \[0, 60\)"),
    ({"answer_rows": torch.full((5, 4), 60)}, ValueError, r"answer_rows: expected rows in \[0, 60\)"),
    ({"answer_rows": torch.full((5, 4), 3)}, ValueError, r"answer_rows: expected each row at most once"),
    ({"pair_weight": torch.zeros(5, 3, 3)}, ValueError, r"pair_weight has shape"),
    ({"pair_weight": torch.full((5, 4, 4), float("inf"))}, ValueError, r"pair_weight: expected finite"),
    ({"target": torch.full((60,), 67)}, ValueError, r"got 67 in row 0"),
])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_bad_input_is_named(backend, changes, kind, message):
    with pytest.raises(kind, match=message):
        linear_mind_loss(**make() | changes, backend=backend)
