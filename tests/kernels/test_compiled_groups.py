"""The compiled CPU group kernels on logits: sizes, threads, capabilities, absent and non-finite rows, wrong arguments.

What they share with the other backends is in test_linear_pairwise_jsd.py.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from cases import usable

from mind_kernels import backend, extension
from mind_kernels.linear_pairwise_jsd import backend_torch, reference
from mind_kernels.testing import assert_within_budget

pytestmark = pytest.mark.skipif(
    "cpp" not in usable("linear_pairwise_jsd"), reason="the CPU library is not here: see test_backend.py"
)

FORMS = ["pairs", "mixture"]
SPAN = 4096  # columns of a work item, kSpan in group_operators.cpp


def make(groups, count, vocabulary, *, form="pairs", scale=2.0, seed=0):
    """logits (G, K, V) float32, group_weight and mask (G, K)."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(groups, 1, vocabulary, generator=generator)
    logits = logits + torch.randn(groups, count, vocabulary, generator=generator)
    shape = (groups, count, count) if form == "pairs" else (groups, count)
    weight = torch.rand(shape, generator=generator)
    return logits, weight, torch.ones(groups, count, dtype=torch.bool)


def run(logits, weight, mask, with_gradient=True, kernels=None):
    kernels = kernels or backend.kernels("linear_pairwise_jsd", "cpp")
    kernel = kernels.pair_divergences if weight.dim() == 3 else kernels.mixture_divergences
    divergence, gradient = kernel(logits, weight, mask, with_gradient)
    return {"divergence": divergence} if gradient is None else {"divergence": divergence, "gradient": gradient}


def defined(logits, weight, mask, dtype):
    """The same from the definition, in `dtype`."""
    leaf = logits.to(dtype, copy=True).requires_grad_()
    divergence = reference.divergences(leaf, weight.to(dtype), mask)
    reference.group_loss(divergence, weight).backward()
    return {"divergence": divergence.detach(), "gradient": leaf.grad}


def assert_right(found, inputs):
    assert_within_budget(found, defined(*inputs, torch.float32), defined(*inputs, torch.float64), torch.float32)


def assert_identical(found, expected):
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.fixture
def threads():
    """Sets how many threads there are, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 8, 9, 32])
def test_rows_of_a_group(count, form):
    inputs = make(3, count, 203, form=form)
    assert_right(run(*inputs), inputs)
    if form == "pairs":
        jsd = run(*inputs)["divergence"]
        assert torch.equal(jsd, jsd.transpose(1, 2)) and jsd.diagonal(dim1=1, dim2=2).count_nonzero() == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("vocabulary", [1, 7, 8, 9, 16, 17, 33, SPAN - 1, SPAN, SPAN + 3, (1 << 16) + 3])
def test_columns(vocabulary, form):
    inputs = make(2, 3, vocabulary, form=form)
    assert_right(run(*inputs), inputs)


@pytest.mark.parametrize("form", FORMS)
def test_without_a_gradient(form):
    inputs = make(2, 5, SPAN + 77, form=form)
    assert_identical(run(*inputs, with_gradient=False), {"divergence": run(*inputs)["divergence"]})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("groups", [1, 2, 9, 30])
def test_threads_change_nothing(groups, form, threads):
    """1 to 3 threads take whole groups of 30, and spans of columns of 2."""
    inputs = make(groups, 4, 2 * SPAN + 100, form=form)
    threads(1)
    alone = run(*inputs)
    for number in (2, 3, 7):
        threads(number)
        assert_identical(run(*inputs), alone)


@pytest.mark.parametrize("form", FORMS)
def test_groups_do_not_depend_on_one_another(form):
    logits, weight, mask = make(9, 3, SPAN + 5, form=form)
    whole = run(logits, weight, mask)
    for part in (slice(0, 1), slice(1, 4), slice(4, 9)):
        expected = {name: value[part] for name, value in whole.items()}
        assert_identical(run(logits[part], weight[part], mask[part]), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("vocabulary", [7, 131])
def test_reads_nothing_beyond_its_rows(vocabulary, form):
    """The logits lie unaligned among nans."""
    logits, weight, mask = make(2, 3, vocabulary, form=form)
    around = torch.full((logits.numel() + 65,), float("nan"))
    inside = around[1 : logits.numel() + 1].view(logits.shape)
    inside.copy_(logits)
    assert_identical(run(inside, weight, mask), run(logits, weight, mask))


@pytest.mark.parametrize("form", FORMS)
def test_absent_rows(form):
    logits, weight, mask = make(4, 5, 300, form=form)
    mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[3] = False
    found = run(logits, weight, mask)
    assert_right(found, (logits, weight, mask))
    assert found["gradient"][~mask].count_nonzero() == 0 and found["divergence"][3].count_nonzero() == 0
    moved = torch.where(mask[..., None], logits, 77.0)
    assert_identical(run(moved, weight, mask), found)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", [0, 64, 130])
def test_non_finite_rows_reach_their_pairs_only(column, bad):
    inputs = make(2, 4, 131)
    inputs[0][1, 2, column] = bad
    found, kept = run(*inputs), torch.tensor([0, 1, 3])
    of_row = torch.ones(4, dtype=torch.bool)
    of_row[2] = False
    assert found["divergence"][1, 2][of_row].isnan().all() and found["divergence"][1, :, 2][of_row].isnan().all()
    assert found["gradient"][1].isnan().any(-1).all()
    assert found["divergence"][0].isfinite().all() and found["gradient"][0].isfinite().all()
    finite = run(*make(2, 4, 131))["divergence"]
    torch.testing.assert_close(found["divergence"][1][kept][:, kept], finite[1][kept][:, kept])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_non_finite_rows_reach_their_mixture(bad, weight):
    inputs = make(2, 3, 131, form="mixture")
    inputs[0][1, 2, 130], inputs[1][1, 2] = bad, weight
    found = run(*inputs)
    assert found["divergence"][1].isnan().all() and found["gradient"][1].isnan().any(-1).all()
    assert found["divergence"][0].isfinite().all() and found["gradient"][0].isfinite().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lowest", [-1e4, -1e30, torch.finfo(torch.float32).min])
def test_forbidden_columns(lowest, form):
    """A vocabulary whose columns are ruled out by very negative logits, in all rows or in one."""
    inputs = make(2, 3, 100, form=form)
    inputs[0][..., 90:] = lowest
    inputs[0][:, 1, :10] = lowest
    assert_right(run(*inputs), inputs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("peak", [20.0, 60.0])
def test_gradient_of_saturated_rows(peak, form):
    """The gradient is far smaller than p and F' where a row is nearly all in one column."""
    inputs = make(3, 4, 500, form=form)
    for k in range(4):
        inputs[0][:, k, 7 * (k // 2)] += peak
    found, truth = run(*inputs), defined(*inputs, torch.float64)
    error = (found["gradient"].double() - truth["gradient"]).abs().amax((1, 2))
    largest = truth["gradient"].abs().amax((1, 2))
    assert (largest < 1e-2).all() and (error < 1e-5 * largest).all()


@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512"])
def test_capabilities(capability, tmp_path):
    """Each set of kernels that this processor runs is right, in a process of its own."""
    inputs = {form: make(3, 8, SPAN + 77, form=form) for form in FORMS}
    torch.save(inputs, tmp_path / "inputs.pt")
    environment = os.environ | {"MIND_KERNELS_CPU_CAPABILITY": capability}
    code = """if True:
        import sys, torch
        from mind_kernels import backend, extension
        extension.operators("cpu")
        print(sys.modules["mind_kernels._cpu"].capability())
        kernels, folder = backend.kernels("linear_pairwise_jsd", "cpp"), sys.argv[1]
        inputs = torch.load(folder + "/inputs.pt")
        outputs = {"pairs": kernels.pair_divergences(*inputs["pairs"], True),
                   "mixture": kernels.mixture_divergences(*inputs["mixture"], True)}
        torch.save(outputs, folder + "/outputs.pt")
    """
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    if capability != "baseline" and "one that this processor has" in process.stderr:
        pytest.skip(f"this processor has no {capability}")
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == [capability]
    for form, (divergence, gradient) in torch.load(tmp_path / "outputs.pt").items():
        assert_right({"divergence": divergence, "gradient": gradient}, inputs[form])


@pytest.mark.parametrize("form", FORMS)
def test_agrees_with_float64_kernels_on_large_groups(form):
    """Far below the error of plain float32, which the budget allows."""
    inputs = make(2, 6, 3 * SPAN + 11, form=form)
    found, exact = run(*inputs), run(*inputs, kernels=backend_torch)
    for name, rtol in (("divergence", 1e-6), ("gradient", 1e-6)):
        scale = exact[name].abs().max()
        assert (found[name] - exact[name]).abs().max() < rtol * scale, name


def arguments(form):
    logits, weight, mask = make(2, 3, 10, form=form)
    name = "pair_weight" if form == "pairs" else "mixture_weight"
    return {
        "logits": logits,
        name: weight,
        "mask": mask,
        "divergence": torch.empty_like(weight),
        "gradient": torch.empty_like(logits),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name, change",
    [
        ("logits", lambda t: t[0]),
        ("logits", lambda t: t.double()),
        ("logits", lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)),
        ("logits", lambda t: t[..., :0]),
        ("weight", lambda t: t[:1]),
        ("weight", lambda t: t.double()),
        ("weight", lambda t: t.repeat(*[1] * (t.dim() - 1), 2)[..., ::2]),
        ("mask", lambda t: t[:, :2]),
        ("mask", lambda t: t.float()),
        ("divergence", lambda t: t[..., :2]),
        ("divergence", lambda t: t.bfloat16()),
        ("gradient", lambda t: t[..., :9]),
        ("gradient", lambda t: t.half()),
    ],
)
def test_wrong_arguments_are_named(name, change, form):
    values = arguments(form)
    if name == "weight":
        name = "pair_weight" if form == "pairs" else "mixture_weight"
    values[name] = change(values[name])
    operators = extension.operators("cpu")
    operator = operators.pair_divergences if form == "pairs" else operators.mixture_divergences
    with pytest.raises(RuntimeError, match=f"{name} (is|have|has)"):
        operator(*values.values())
