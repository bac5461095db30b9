"""gradient_error: the sparse gradient of a batch against its definition, what it promises, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import opcheck, usable
from safetensors.torch import load_file

from mind_kernels import backend as backends
from mind_kernels import linear_cross_entropy, sparse_gradient
from mind_kernels.linear_cross_entropy import batch_rows
from mind_kernels.linear_cross_entropy.threshold import batch_threshold_for_error
from mind_kernels.testing import assert_within_budget, make_inputs

pytestmark = pytest.mark.skipif("cpp" not in usable("linear_cross_entropy"), reason="no compiled library")
ERROR = 0.2
OPTIONS = [
    {},
    {"reduction": "sum", "weighted": True, "biased": True, "temperature": 0.7},
    {"reduction": "sum", "weighted": True, "label_smoothing": 0.1, "z_loss": 1e-2, "temperature": 1.3, "biased": True},
    {"z_loss": 1e-2, "softcap": 9.0, "biased": True},
]


@pytest.fixture
def always_sparse(monkeypatch):
    """The small vocabularies of these tests are denser than any limit."""
    monkeypatch.setattr(sparse_gradient, "_BATCH_DENSITY_LIMIT", 1.0)
    monkeypatch.setattr(sparse_gradient, "_MASS_LIMIT", 1.0)


@pytest.fixture
def few_sampled(monkeypatch):
    monkeypatch.setattr(sparse_gradient, "BATCH_SAMPLE_ROWS", 7)


def signed(inputs):
    """Weights of either sign and many sizes, and a few zeros."""
    weight = inputs["row_weight"] * torch.logspace(-2, 1, len(inputs["row_weight"]))
    weight[::3] *= -1
    weight[1::7] = 0
    return weight


def run(inputs, dtype, backend, *, weighted=False, biased=False, error=ERROR, **options):
    """Loss, what was kept and gradients as a dict of tensors."""
    hidden, weight = (inputs[name].detach().to(dtype).requires_grad_() for name in ("hidden", "weight"))
    bias = torch.linspace(-1, 1, weight.shape[0]).to(dtype).requires_grad_() if biased else None
    loss, stats = linear_cross_entropy(
        hidden,
        weight,
        inputs["target"],
        bias=bias,
        row_weight=signed(inputs) if weighted else None,
        return_stats=True,
        backend=backend,
        gradient_error=error,
        **options,
    )
    loss.backward(torch.full_like(loss, 1.7))
    out = {"loss": loss.detach(), "lse": stats.lse, "d_hidden": hidden.grad, "d_weight": weight.grad}
    if error is not None:
        out |= {"dropped_mass": stats.dropped_mass, "kept": stats.kept_entries}
    return out | ({"d_bias": bias.grad} if biased else {})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(3, 8, 7), (37, 24, 1009), (60, 16, 2 * batch_rows.SPAN + 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_matches_its_definition(always_sparse, few_sampled, dtype, shape, options):
    inputs = make_inputs(*shape, dtype=dtype, ignored=0.0 if shape[0] == 3 else 0.2)
    options = options | {"error": 0.01 if shape[2] > batch_rows.SPAN else ERROR}
    truth = run(inputs, torch.float64, "reference", **options)
    peer, found = (run(inputs, dtype, backend, **options) for backend in ("reference", "cpp"))
    for side in (found, peer, truth):  # a rounding error of it is one of the whole mass
        side["dropped_mass"] = 1 - side["dropped_mass"]
    # The sum of each span is rounded by itself.
    assert_within_budget(found, peer, truth, dtype, conditioning=2.0 if shape[2] > batch_rows.SPAN else 1.0)
    if shape[0] > 3:
        kept = truth["kept"][truth["kept"] > 0]
        assert 1 < float(kept.double().mean()) < shape[2] / 2


def by_formula(inputs, threshold, weighted):
    """dH and dW in float64, row by row and span by span, as README.md writes them."""
    hidden, weight, target = inputs["hidden"].double(), inputs["weight"].double(), inputs["target"]
    scale = (signed(inputs) if weighted else torch.ones(len(hidden))).double()
    rows = [r for r in range(len(hidden)) if target[r] >= 0 and scale[r] != 0]
    p = torch.softmax(hidden @ weight.T, 1)
    sample = [rows[i] for i in sparse_gradient.sampled_of_batch(len(rows))]
    sizes = [abs(scale[r]) * (1 - p[r, target[r]]) for r in sample]
    cut = threshold * (sum(size**2 for size in sizes) / len(sizes)) ** 0.5
    dz = {r: scale[r] * p[r] for r in rows}
    for r in rows:
        dz[r][target[r]] -= scale[r]
    kept = {r: (abs(scale[r]) * p[r] > cut) | (torch.arange(len(weight)) == target[r]) for r in rows}
    q = sum(torch.where(kept[r], 0, abs(scale[r]) * p[r]) for r in sample)
    found = []
    for least in (0.0, 4 * cut):
        sparse = torch.zeros_like(p)
        for r in rows:
            of_row = kept[r] & (dz[r].abs() > least)
            for start in range(0, len(weight), batch_rows.SPAN):
                span = slice(start, start + batch_rows.SPAN)
                left_out = torch.where(of_row[span], 0, dz[r][span]).sum()
                sparse[r, span] = torch.where(of_row[span], dz[r][span], 0) + left_out * q[span] / q[span].sum()
        found.append(sparse)
    return found[0] @ weight, found[1].T @ hidden


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_is_the_formula(always_sparse, few_sampled, backend, weighted):
    inputs = make_inputs(40, 16, 2 * batch_rows.SPAN + 100, ignored=0.1)
    d_hidden, d_weight = by_formula(inputs, batch_threshold_for_error(0.01), weighted)
    dtype = torch.float64 if backend == "reference" else torch.float32
    found = run(inputs, dtype, backend, weighted=weighted, reduction="sum", error=0.01)
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if backend == "reference" else {"rtol": 1e-3, "atol": 2e-5}
    torch.testing.assert_close(found["d_hidden"].double() / 1.7, d_hidden, **tolerance)
    torch.testing.assert_close(found["d_weight"].double() / 1.7, d_weight, **tolerance)


def distance(value, truth):
    return float((value.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lists_that_are_taken_in_parts_have_the_same_gradient(always_sparse, monkeypatch, dtype):
    """A gradient in bfloat16 is rounded once, however many parts it is summed from."""
    inputs = make_inputs(300, 16, 1009, dtype=dtype)
    options = {"weighted": True, "reduction": "sum", "biased": True, "error": 0.01}
    truth, whole = run(inputs, torch.float64, "reference", **options), run(inputs, dtype, "cpp", **options)
    monkeypatch.setattr(batch_rows, "_MOST_ENTRIES", 1)
    monkeypatch.setattr(batch_rows, "rows_per_chunk", lambda *_, **__: 2)
    parts = run(inputs, dtype, "cpp", **options)
    for name, value in whole.items():
        assert distance(parts[name], truth[name].double()) <= 1.1 * distance(value, truth[name].double()) + 1e-5, name


def test_logits_beyond_the_digits_of_their_log_sum_exp_get_the_exact_gradient(always_sparse, monkeypatch):
    """In a chunk of two rows; the rows of other chunks are as if it were only certain of its token."""
    monkeypatch.setattr(batch_rows, "rows_per_chunk", lambda *_, **__: 2)
    monkeypatch.setattr(backends.kernels("linear_cross_entropy", "cpp"), "STREAMED_CHUNKS", 1)
    found = {}
    for size in (1e3, 1e8):
        inputs = make_inputs(60, 16, 1009, ignored=0.0)
        inputs["hidden"][0] *= size
        inputs["target"][0] = (inputs["weight"] @ inputs["hidden"][0]).argmin()
        found[size] = run(inputs, torch.float32, "cpp", error=0.01)
    truth = run(inputs, torch.float64, "reference", error=None)
    certain, large = found.values()
    assert (large["kept"][:2] == 1009).all() and (large["kept"][2:] < 1009).all() and float(large["lse"][0]) > 2**24
    assert distance(large["d_hidden"][0], truth["d_hidden"][0]) < 1e-5
    assert distance(large["d_weight"], truth["d_weight"]) < 1e-5
    torch.testing.assert_close(large["d_hidden"][2:], certain["d_hidden"][2:])


def real_rows():
    rows = load_file(Path(__file__).parent / "data" / "smollm2_rows.safetensors")
    return {"hidden": rows["hidden"].float(), "weight": rows["weight"].float(), "target": rows["target"]}


@pytest.mark.parametrize("error", [1e-3, 1e-4, 2e-5])
def test_error_on_real_rows_is_below_the_accepted_one(monkeypatch, error):
    monkeypatch.setattr(sparse_gradient, "_BATCH_DENSITY_LIMIT", 1 / 2)  # few entries of few rows: no fallback
    inputs = real_rows()
    truth = run(inputs, torch.float64, "reference", error=None)
    found = run(inputs, torch.float32, "cpp", error=error)
    assert (found["kept"] < len(inputs["weight"])).all()
    wrong = [distance(found[n], truth[n]) for n in ("d_hidden", "d_weight")]
    assert error / 20 < max(wrong) < error, wrong


def test_error_is_below_the_accepted_one_if_rows_repeat_as_often_as_they_are_sampled(always_sparse, monkeypatch):
    monkeypatch.setattr(sparse_gradient, "BATCH_SAMPLE_ROWS", 32)
    rows = torch.arange(20 * 32)
    inputs = {name: value if name == "weight" else value[rows % 128] for name, value in real_rows().items()}
    row_weight = torch.where(rows % 20 == 0, 1.0, 0.03)

    def gradients(dtype, error):
        hidden, weight = (inputs[name].to(dtype, copy=True).requires_grad_() for name in ("hidden", "weight"))
        options = {"row_weight": row_weight, "reduction": "sum", "gradient_error": error}
        linear_cross_entropy(hidden, weight, inputs["target"], **options).backward()
        return hidden.grad, weight.grad

    pairs = zip(gradients(torch.float32, 1e-3), gradients(torch.float64, None), strict=True)
    wrong = [distance(found, truth) for found, truth in pairs]
    assert 1e-4 < max(wrong) < 1e-3, wrong


@pytest.mark.parametrize("total", [0, 1, 127, 128, 129, 2560, 5000])
def test_sampled_rows_are_of_every_kind_in_proportion(total):
    """Rows that repeat every k: of each place in the period about as many are sampled as there are."""
    sample = sparse_gradient.sampled_of_batch(total)
    assert len(sample) == min(total, 128) and torch.equal(sample, sample.unique())
    assert not total or 0 <= int(sample.min()) <= int(sample.max()) < total
    for period in (2, 10, total // 128 or 1, 20):
        counts = (sample % period).bincount(minlength=period)
        assert int(counts.max()) <= len(sample) / period + 4 * (len(sample) / period) ** 0.5 + 1


def test_a_flat_softmax_takes_the_exact_gradient():
    """More would be kept, or left out, than a list is good for."""
    inputs = make_inputs(32, 16, 512, ignored=0.0)
    exact = run(inputs, torch.float32, "cpp", error=None)
    for scale, error in ((1.0, 1e-5), (0.0, 0.5)):
        inputs["hidden"] *= scale
        exact = run(inputs, torch.float32, "cpp", error=None)
        found = run(inputs, torch.float32, "cpp", error=error)
        assert (found["kept"] == 512).all() and found["dropped_mass"].count_nonzero() == 0
        for name in ("d_hidden", "d_weight"):
            torch.testing.assert_close(found[name], exact[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fault", ["hidden", "weight", "all"])
@pytest.mark.parametrize(
    ("backend", "sparse"),
    [
        ("cpp", {"gradient_error": ERROR}),
        ("reference", {"gradient_error": ERROR}),
        ("cpp", {"gradient_threshold": 2.0**-4}),
        ("torch", {"gradient_threshold": 2.0**-4}),
        ("reference", {"gradient_threshold": 2.0**-4}),
    ],
    ids=str,
)
def test_a_row_without_numbers_is_to_the_others_as_one_that_is_ignored(always_sparse, backend, sparse, fault):
    """All rows are sampled, so that the others' threshold and background are the same."""
    inputs, others = make_inputs(20, 8, 1000, ignored=0), torch.arange(20) != 3
    bias = torch.full((1000,), -torch.inf)  # many entries are left out, few kept: no row falls back
    bias[:40] = 0
    target = inputs["target"] % 40

    def gradients(hidden, target, row_weight):
        hidden, weight = hidden.clone().requires_grad_(), inputs["weight"].detach().clone().requires_grad_()
        options = {"bias": bias, "row_weight": row_weight, "reduction": "sum", "return_stats": True, **sparse}
        loss, stats = linear_cross_entropy(hidden, weight, target, backend=backend, **options)
        loss.backward()
        return hidden.grad, weight.grad, stats

    hidden, row_weight, wrong = inputs["hidden"].detach().clone(), torch.ones(20), others.logical_not()
    if fault == "weight":
        row_weight[wrong] = torch.inf
    else:
        hidden[wrong if fault == "hidden" else slice(None)] = torch.nan
    d_hidden, d_weight, stats = gradients(hidden, target, row_weight)
    assert not d_hidden[wrong].isfinite().any() and not d_weight[:40].isfinite().any()
    if fault == "all":
        assert d_hidden.isnan().all()
        return
    expected, _, _ = gradients(inputs["hidden"].detach(), torch.where(wrong, -100, target), torch.ones(20))
    assert (stats.kept_entries[others] < 40).all() and (stats.dropped_mass[others] > 0).all()
    torch.testing.assert_close(d_hidden[others], expected[others], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 3e38])
def test_weights_at_the_ends_of_float32_keep_the_same_entries(always_sparse, size):
    inputs = make_inputs(20, 8, 131, ignored=0)
    arguments = (inputs["hidden"].requires_grad_(), inputs["weight"], inputs["target"])
    options = {"reduction": "sum", "temperature": 1e-2, "return_stats": True, "gradient_error": 0.99}
    for backend in ("cpp", "reference"):
        (_, plain), (_, stats) = (
            linear_cross_entropy(*arguments, row_weight=torch.full((20,), weight), backend=backend, **options)
            for weight in (1.0, size)
        )
        assert (plain.kept_entries < 131).all() and torch.equal(stats.kept_entries, plain.kept_entries)


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_hidden_states_without_columns_take_the_exact_gradient(ignored):
    inputs = make_inputs(30, 8, 31, ignored=ignored)
    inputs |= {name: inputs[name][:, :0] for name in ("hidden", "weight")}
    exact, found = (run(inputs, torch.float32, "cpp", biased=True, error=error) for error in (None, ERROR))
    for name in exact:
        torch.testing.assert_close(found[name], exact[name])
    assert (found["kept"] == torch.where(inputs["target"] >= 0, 31, 0)).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_threads_give_the_same_bits(always_sparse, threads):
    inputs, before = make_inputs(200, 24, 1009), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, second = (run(inputs, torch.float32, "cpp", weighted=True, reduction="sum") for _ in range(2))
    finally:
        torch.set_num_threads(before)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_statistics_and_frozen_inputs(always_sparse, backend):
    inputs = make_inputs(30, 8, 131, ignored=0.2)
    extra = ("predicted", "mean_logit")
    arguments = (inputs["hidden"], inputs["weight"], inputs["target"])
    loss, plain = linear_cross_entropy(*arguments, return_stats=True, extra_stats=extra)
    for needs in (False, True):
        hidden = inputs["hidden"].clone().requires_grad_(needs)
        options = {"return_stats": True, "extra_stats": extra, "gradient_error": ERROR, "backend": backend}
        segment = torch.arange(30) // 10
        found, stats = linear_cross_entropy(hidden, *arguments[1:], segment=segment, num_segments=3, **options)
        torch.testing.assert_close(found.detach(), loss)
        for name in ("nll", "lse", "entropy", "correct", *extra):
            torch.testing.assert_close(getattr(stats, name), getattr(plain, name))
        assert stats.segment_nll is not None and stats.segment_nll.shape == (3,)
        has_gradient = (inputs["target"] >= 0) & needs
        for value in (stats.kept_entries, stats.dropped_mass):
            assert value is not None and ((value > 0) == has_gradient).all()
        with torch.no_grad():
            _, without = linear_cross_entropy(hidden, *arguments[1:], **options)
        assert without.kept_entries is not None and without.kept_entries.count_nonzero() == 0
    found.backward()
    assert hidden.grad is not None and inputs["weight"].grad is None


def test_all_rows_ignored():
    inputs = make_inputs(5, 8, 31)
    inputs["target"][:] = -100
    assert run(inputs, torch.float32, "cpp", reduction="sum")["d_weight"].count_nonzero() == 0


def test_operator_is_registered_as_torch_asks(always_sparse):
    from mind_kernels.head import Head
    from mind_kernels.linear_cross_entropy.contract import RowArguments, RowSpec
    from mind_kernels.linear_cross_entropy.op import operator

    inputs = make_inputs(7, 8, 31)
    spec = RowSpec(Head(inputs["weight"].requires_grad_()), batch_threshold=0.05)
    hidden = inputs["hidden"].requires_grad_()
    opcheck(operator, RowArguments(hidden, spec, inputs["target"], None, None, 0, -100, "mean", "", "cpp"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gradient_error": 0.0}, ValueError, r"gradient_error is 0.0: expected a number in \(0, 1\)"),
        ({"gradient_error": float("nan")}, ValueError, r"gradient_error is nan: expected a number in \(0, 1\)"),
        ({"gradient_error": "1e-5"}, TypeError, "gradient_error"),
        ({"gradient_threshold": 0.1}, ValueError, "gradient_error is 0.2 and gradient_threshold 0.1: expected one"),
        ({"reduction": "none"}, ValueError, "reduction is 'none': expected 'mean' or 'sum' with gradient_error"),
        ({"backend": "torch"}, ValueError, "backend is 'torch': expected 'cpp' or 'reference' with gradient_error"),
        (
            {"label_smoothing": 0.1, "softcap": 5.0},
            ValueError,
            "label_smoothing is 0.1: expected 0 with gradient_error",
        ),
    ],
    ids=str,
)
def test_refusals_name_the_argument(options, error, message):
    inputs = make_inputs(4, 8, 31)
    with pytest.raises(error, match=message):
        linear_cross_entropy(
            inputs["hidden"], inputs["weight"], inputs["target"], **({"gradient_error": ERROR} | options)
        )


@pytest.mark.parametrize("backend", ["auto", "cpp"])
def test_float64_is_refused_but_for_the_definition(backend):
    inputs = make_inputs(4, 8, 31)
    arguments = (inputs["hidden"].double(), inputs["weight"].double(), inputs["target"])
    assert linear_cross_entropy(*arguments, gradient_error=ERROR, backend="reference").dtype == torch.float64
    with pytest.raises(TypeError, match="hidden has dtype torch.float64: expected float32 or less.* 'reference'"):
        linear_cross_entropy(*arguments, gradient_error=ERROR, backend=backend)
