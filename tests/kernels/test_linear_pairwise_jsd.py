"""linear_pairwise_jsd: every backend against the float64 definition, identities, cancellation, errors."""

from __future__ import annotations

import math

import pytest
import torch

from mind_kernels import linear_pairwise_jsd, row_chunks
from mind_kernels.linear_pairwise_jsd.reference import pairwise_jsd
from mind_kernels.testing import assert_within_budget

BACKENDS = ["torch"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def make(groups=4, count=8, size=16, vocabulary=67, *, scale=1.0, spread=1.0, seed=0):
    """hidden, weight, pair_weight, mask; `scale` peaks the distributions, `spread` 0 makes a group's rows equal."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden = (normal(groups, 1, size) + spread * normal(groups, count, size)) * scale
    return {"hidden": hidden, "weight": normal(vocabulary, size),
            "pair_weight": torch.rand(groups, count, count, generator=generator).double(),
            "mask": torch.rand(groups, count, generator=generator) > 0.2}


def run(inputs, dtype, backend, **options):
    hidden, weight = (inputs[name].detach().to(dtype).requires_grad_() for name in ("hidden", "weight"))
    loss, stats = linear_pairwise_jsd(hidden, weight, inputs["pair_weight"].to(torch.float64), mask=inputs["mask"],
                                      return_stats=True, backend=backend, **options)
    (1.3 * loss).backward()
    return {"loss": loss, "jsd": stats.jsd, "d_hidden": hidden.grad, "d_weight": weight.grad}


@pytest.mark.parametrize("options", [{}, {"softcap": 4.0, "temperature": 0.8}], ids=str)
@pytest.mark.parametrize("kind", [{}, {"count": 2}, {"count": 3, "scale": 4.0}, {"count": 5, "scale": 1e-3},
                                  {"count": 16, "groups": 2}, {"vocabulary": 1009, "scale": 0.5}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_float64(backend, dtype, kind, options):
    if dtype == torch.float64 and kind.get("scale") == 1e-3:
        pytest.skip("the float64 definition itself cancels there; test_nearly_equal_rows_do_not_cancel has the case")
    inputs = make(**kind)
    inputs = {k: v.to(dtype) if k in ("hidden", "weight") else v for k, v in inputs.items()}
    truth = run(inputs, torch.float64, "reference", **options)
    peer = run(inputs, dtype, "reference", **options)
    found = run(inputs, dtype, backend, **options)
    # The loss is the weighted sum of jsd. Where rows nearly coincide plain PyTorch's sum is right only by luck, which
    # is no budget: its terms cancel, and jsd below shows it.
    del truth["loss"]
    assert_within_budget(found, peer, truth, dtype)
    total = (found["jsd"].double() * inputs["pair_weight"]).triu(1).sum()
    torch.testing.assert_close(found["loss"].double(), total, rtol=1e-6 if dtype != torch.float64 else 1e-12, atol=0)


@pytest.mark.parametrize("difference", [1e-1, 1e-3, 1e-4])
def test_nearly_equal_rows_do_not_cancel(difference):
    inputs = make(count=3, spread=difference)
    inputs = {k: v.float() if k in ("hidden", "weight") else v for k, v in inputs.items()}
    logits = inputs["hidden"] @ inputs["weight"].T  # the float32 logits are the input here; their rounding is not ours
    identity = torch.eye(67)
    own = run(inputs | {"hidden": logits, "weight": identity}, torch.float32, "torch")
    truth = run(inputs | {"hidden": logits.double(), "weight": identity.double()}, torch.float64, "torch")
    torch.testing.assert_close(own["jsd"].double(), truth["jsd"], rtol=1e-3, atol=0)
    assert (truth["jsd"] > 0).any()


def test_equal_rows_give_exactly_zero():
    inputs = make(spread=0.0)
    out = run(inputs, torch.float32, "torch")
    assert out["loss"] == 0 and out["jsd"].count_nonzero() == 0
    assert out["d_hidden"].count_nonzero() == 0 and out["d_weight"].count_nonzero() == 0


def test_jsd_is_symmetric_and_bounded():
    inputs = make(scale=20.0)
    jsd = run(inputs, torch.float32, "torch")["jsd"]
    assert torch.equal(jsd, jsd.transpose(1, 2))
    assert (jsd >= 0).all() and (jsd <= math.log(2) * (1 + 1e-6)).all() and jsd.max() > 0.69


def test_disjoint_distributions_are_ln_2_apart():
    hidden = torch.eye(2).reshape(1, 2, 2) * 1e4
    loss = linear_pairwise_jsd(hidden, torch.eye(2), torch.ones(1, 2, 2))
    torch.testing.assert_close(loss, torch.tensor(math.log(2)))


def test_perspectives_may_be_permuted():
    inputs = make()
    order = torch.tensor([3, 1, 0, 7, 5, 2, 6, 4])
    symmetric = inputs["pair_weight"] + inputs["pair_weight"].transpose(1, 2)
    plain = run(inputs | {"pair_weight": symmetric}, torch.float64, "torch")
    moved = run({"hidden": inputs["hidden"][:, order], "weight": inputs["weight"], "mask": inputs["mask"][:, order],
                 "pair_weight": symmetric[:, order][:, :, order]}, torch.float64, "torch")
    torch.testing.assert_close(moved["loss"], plain["loss"])
    torch.testing.assert_close(moved["d_hidden"], plain["d_hidden"][:, order])


def test_masked_rows_may_hold_anything_and_get_no_gradient():
    inputs = make()
    clean = run(inputs, torch.float32, "torch")
    dirty = dict(inputs, hidden=torch.where(inputs["mask"][..., None], inputs["hidden"], float("nan")))
    for backend in ("torch", "reference"):
        out = run(dirty, torch.float32, backend)
        torch.testing.assert_close(out["loss"], clean["loss"])
        torch.testing.assert_close(out["d_hidden"], clean["d_hidden"], rtol=1e-4, atol=1e-6)
    assert clean["d_hidden"][~inputs["mask"]].count_nonzero() == 0


def test_weight_zero_pairs_change_nothing():
    inputs = make(count=3)
    pair = torch.zeros(4, 3, 3, dtype=torch.float64)
    pair[:, 0, 1] = 0.5
    three = run(inputs | {"pair_weight": pair, "mask": torch.ones(4, 3, dtype=torch.bool)}, torch.float64, "torch")
    two = run({"hidden": inputs["hidden"][:, :2], "weight": inputs["weight"], "pair_weight": pair[:, :2, :2],
               "mask": torch.ones(4, 2, dtype=torch.bool)}, torch.float64, "torch")
    torch.testing.assert_close(three["loss"], two["loss"])
    torch.testing.assert_close(three["d_hidden"][:, :2], two["d_hidden"])
    assert three["d_hidden"][:, 2].count_nonzero() == 0


@pytest.mark.parametrize("chunk", [1, 3, 40])
def test_chunk_sizes_change_nothing(monkeypatch, chunk):
    inputs = make(groups=7)
    whole = run(inputs, torch.float64, "torch")
    monkeypatch.setattr(row_chunks, "_CHUNK_BYTES", {"cpu": 16 * 67 * 8 * chunk})
    monkeypatch.setattr(row_chunks, "_BLOCK_BYTES", {"cpu": 67 * 4 * chunk})
    for name, value in run(inputs, torch.float64, "torch").items():
        torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-12)


def test_reference_is_the_entropy_form_and_gradcheck():
    inputs = make(groups=2, count=3, vocabulary=5, size=4)
    logits = inputs["hidden"] @ inputs["weight"].T
    p = torch.softmax(logits, -1)

    def entropy(p):
        return -(p * p.log()).sum(-1)

    jsd = pairwise_jsd(logits, torch.ones(2, 3, dtype=torch.bool))
    expected = entropy((p[:, 0] + p[:, 2]) / 2) - (entropy(p[:, 0]) + entropy(p[:, 2])) / 2
    torch.testing.assert_close(jsd[:, 0, 2], expected, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda hidden, weight: linear_pairwise_jsd(hidden, weight, inputs["pair_weight"], backend="reference"),
        (inputs["hidden"].requires_grad_(), inputs["weight"].requires_grad_()))


def test_opcheck_and_compile():
    inputs = make(groups=2, count=3)
    hidden, weight = inputs["hidden"].float().requires_grad_(), inputs["weight"].float().requires_grad_()
    torch.library.opcheck(torch.ops.mind_kernels.linear_pairwise_jsd.default,
                          (hidden, weight, None, inputs["pair_weight"], inputs["mask"], None, 1.0,
                           [True, True, False], "torch"))

    def step(hidden):
        return linear_pairwise_jsd(hidden * 2, weight, inputs["pair_weight"], mask=inputs["mask"])

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    expected, = torch.autograd.grad(step(hidden), hidden)
    found, = torch.autograd.grad(compiled(hidden), hidden)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_higher_order_gradients_raise():
    inputs = make()
    hidden = inputs["hidden"].requires_grad_()
    loss = linear_pairwise_jsd(hidden, inputs["weight"], inputs["pair_weight"])
    with pytest.raises(RuntimeError, match="higher-order"):
        torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize("changes, kind, message", [
    ({"hidden": torch.zeros(4, 16)}, ValueError, r"expected 3 dimensions \(P, K, D\)"),
    ({"hidden": torch.zeros(4, 1, 16), "pair_weight": torch.zeros(4, 1, 1), "mask": None}, ValueError, r"K >= 2"),
    ({"pair_weight": torch.zeros(4, 8, 7)}, ValueError, r"pair_weight has shape \(4, 8, 7\): expected \(P, K, K\)"),
    ({"pair_weight": torch.full((4, 8, 8), float("nan"))}, ValueError, r"pair_weight: expected finite"),
    ({"pair_weight": torch.zeros(4, 8, 8, requires_grad=True)}, ValueError, r"pair_weight requires a gradient"),
    ({"pair_weight": torch.zeros(4, 8, 8).long()}, TypeError, r"pair_weight has dtype torch.int64"),
    ({"mask": torch.ones(4, 7, dtype=torch.bool)}, ValueError, r"mask has shape \(4, 7\): expected \(P, K\)"),
    ({"mask": torch.ones(4, 8)}, TypeError, r"mask has dtype torch.float32: expected torch.bool"),
    ({"softcap": -1.0}, ValueError, r"softcap is -1.0"),
])
def test_bad_input_is_named(changes, kind, message):
    inputs = make()
    inputs = {k: v.float() if k in ("hidden", "weight") else v for k, v in inputs.items()} | changes
    with pytest.raises(kind, match=message):
        linear_pairwise_jsd(inputs.pop("hidden"), inputs.pop("weight"), inputs.pop("pair_weight"), **inputs)
