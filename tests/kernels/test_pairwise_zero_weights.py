"""linear_pairwise_jsd: pairs and rows of weight zero change nothing and cost no product."""

from __future__ import annotations

import pytest
import torch
from test_linear_pairwise_jsd import BACKENDS, FORMS, as_mixture, make, run

from mind_kernels import linear_pairwise_jsd
from mind_kernels.head import Head, HeadGradients


@pytest.mark.parametrize("backend", BACKENDS)
def test_weight_zero_pairs_change_nothing(backend):
    inputs = make(count=3)
    pair = torch.zeros(4, 3, 3, dtype=torch.float64)
    pair[:, 0, 1] = 0.5
    three = run(inputs | {"pair_weight": pair, "mask": torch.ones(4, 3, dtype=torch.bool)}, torch.float32, backend)
    two = run(
        {
            "hidden": inputs["hidden"][:, :2],
            "weight": inputs["weight"],
            "pair_weight": pair[:, :2, :2],
            "mask": torch.ones(4, 2, dtype=torch.bool),
        },
        torch.float32,
        backend,
    )
    torch.testing.assert_close(three["loss"], two["loss"])
    torch.testing.assert_close(three["d_hidden"][:, :2], two["d_hidden"])
    assert three["d_hidden"][:, 2].count_nonzero() == 0
    assert (three["divergence"][:, 2, :2] > 0).all()


def rows_in_products(monkeypatch):
    """Lists that fill with the rows of the logits product and of the gradient products."""
    projected, differentiated = [], []
    project, add = Head.project_wide, HeadGradients.add
    monkeypatch.setattr(
        Head,
        "project_wide",
        lambda self, hidden, out=None: (projected.append(len(hidden)), project(self, hidden, out))[1],
    )
    monkeypatch.setattr(
        HeadGradients,
        "add",
        lambda self, rows, hidden, dz: (differentiated.append(len(dz)), add(self, rows, hidden, dz))[1],
    )
    return projected, differentiated


@pytest.mark.parametrize("form", FORMS)
def test_weight_zero_rows_cost_no_product(form, monkeypatch):
    inputs = make(groups=2, count=4) | {"mask": torch.ones(2, 4, dtype=torch.bool)}
    weight = torch.zeros(2, 4, 4)
    weight[0, 0, 1] = weight[0, 1, 3] = 1
    inputs = (
        as_mixture(inputs) | {"mixture_weight": weight[:, 0] + weight[:, 1]}
        if form == "mixture"
        else inputs | {"pair_weight": weight}
    )
    weighted = 2 if form == "mixture" else 3
    projected, differentiated = rows_in_products(monkeypatch)
    whole = run(inputs, torch.float32, "torch")
    assert sum(projected) == 8 and sum(differentiated) == weighted
    hidden = inputs.pop("hidden").float().requires_grad_()
    projected.clear()
    loss = linear_pairwise_jsd(hidden, inputs.pop("weight").float(), **inputs)  # no statistics are asked for
    assert sum(projected) == weighted
    torch.testing.assert_close(loss, whole["loss"])
    torch.testing.assert_close(1.3 * torch.autograd.grad(loss, hidden)[0], whole["d_hidden"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_zero_throughout(backend, form):
    inputs = make(groups=2, count=3)
    inputs["pair_weight"] = torch.zeros(2, 3, 3)
    out = run(inputs if form == "pairs" else as_mixture(inputs), torch.float32, backend)
    assert out["loss"] == 0 and out["d_hidden"].count_nonzero() == 0 and out["d_weight"].count_nonzero() == 0
