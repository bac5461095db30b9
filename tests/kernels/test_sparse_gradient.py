"""The sparse gradient: every backend against its definition, its limits, and the promises that come with it."""

from __future__ import annotations

import pytest
import torch
from cases import BACKENDS, QUICKER_BACKENDS, assert_compiles_whole, cases, device_of, fit, interpreted, on

from mind_kernels import backend as backends
from mind_kernels import linear_cross_entropy, linear_log_prob, row_chunks, sparse_gradient
from mind_kernels.head import Head, HeadGradients
from mind_kernels.linear_cross_entropy import rows as linear_cross_entropy_rows
from mind_kernels.testing import assert_within_budget, make_inputs

THRESHOLD = 2**-7
OPTIONS = [
    {},
    {"reduction": "none", "weighted": True},
    {"reduction": "sum", "weighted": True, "biased": True, "temperature": 0.7},
    {"reduction": "sum", "weighted": True, "label_smoothing": 0.1, "z_loss": 1e-2, "temperature": 1.3, "biased": True},
    {"reduction": "sum", "z_loss": 1e-2, "softcap": 9.0, "biased": True},
    {"reduction": "sum", "weighted": True, "softcap": 0.5, "temperature": 40.0},  # logits are tiny beside lse
]


@pytest.fixture
def always_sparse(monkeypatch):
    """The small vocabularies of these tests are denser than any limit."""
    monkeypatch.setattr(sparse_gradient, "_DENSITY_LIMIT", {"cpu": 1.0, "cuda": 1.0})
    monkeypatch.setattr(sparse_gradient, "_MASS_LIMIT", 1.0)


@pytest.fixture
def limit_of_a_cpu(monkeypatch):
    """A GPU's density limit is below one entry a row of these small vocabularies."""
    monkeypatch.setitem(sparse_gradient._DENSITY_LIMIT, "cuda", sparse_gradient._DENSITY_LIMIT["cpu"])


def signed(inputs):
    """Weights of either sign, and a few zeros."""
    weight = inputs["row_weight"].clone()
    weight[::3] *= -1
    weight[1::7] = 0
    return weight


def run(inputs, dtype, backend, *, weighted=False, biased=False, device=None, **options):
    """Loss, what was dropped and gradients as a dict of tensors on the CPU."""
    device = device or device_of(backend)
    inputs = on(device, inputs)
    hidden, weight = (inputs[name].detach().to(dtype).requires_grad_() for name in ("hidden", "weight"))
    bias = torch.linspace(-1, 1, weight.shape[0]).to(device, dtype).requires_grad_() if biased else None
    loss, stats = linear_cross_entropy(
        hidden,
        weight,
        inputs["target"],
        bias=bias,
        row_weight=signed(inputs) if weighted else None,
        return_stats=True,
        backend=backend,
        gradient_threshold=options.pop("threshold", THRESHOLD),
        **options,
    )
    loss.backward(torch.full_like(loss, 1.7))
    out = {"loss": loss, "lse": stats.lse, "d_hidden": hidden.grad, "d_weight": weight.grad}
    if stats.kept_entries is not None:
        out |= {"dropped_mass": stats.dropped_mass, "kept": stats.kept_entries}
    return on("cpu", out | ({"d_bias": bias.grad} if biased else {}))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("backend", "dtype", "shape"), cases((3, 8, 7), (37, 24, 1009), (300, 24, 257)))
def test_matches_its_definition(always_sparse, backend, dtype, shape, options):
    inputs = make_inputs(*shape, dtype=dtype, ignored=0.0 if shape[0] == 3 else 0.2)
    truth = run(inputs, torch.float64, "reference", **options)
    peer = run(inputs, dtype, "reference", device=device_of(backend), **options)
    found = run(inputs, dtype, backend, **options)
    for side in (found, peer, truth):  # a rounding error of it is one of the whole mass
        side["dropped_mass"] = 1 - side["dropped_mass"]
    # Kept pieces are a product of their own, beside that of the statistics: two roundings of a logit. So is the logit
    # of the target that gives its slope under a softcap.
    pieces = 2 * max(1.0, float(truth["lse"].abs().max())) if backend == "triton_streaming" else 1.0
    rounding = max(pieces, 2.0 if options.get("softcap") else 1.0)
    assert_within_budget(found, peer, truth, dtype, conditioning=rounding)


@pytest.mark.parametrize("of", [(1.0, -0.2, 0.0), (0.0, 0.0, 1.0), (1.0, -0.2, 0.5)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_log_prob_entropy_and_lse_match_the_definition(always_sparse, backend, of):
    """Upstream gradients of these sizes; a row's gradient has the sum of that of lse."""
    device, condition = device_of(backend), {"temperature": 0.9} if of[0] else {"softcap": 30.0}
    inputs = make_inputs(*fit(backend, (37, 33, 1009)), device=device)
    upstream = [each * torch.linspace(0.5 if of[0] else 1, 1, len(inputs["target"]), device=device) for each in of]
    found = []
    for name in (backend, "reference"):
        hidden = inputs["hidden"].clone().requires_grad_()
        bias = hidden.new_zeros(len(inputs["weight"])).requires_grad_()
        options = {"bias": bias, "gradient_threshold": 2**-7, "backend": name, **condition}
        rows = linear_log_prob(hidden, inputs["weight"], inputs["target"], **options)
        torch.autograd.backward(list(rows), upstream)
        found.append(hidden.grad)
        if "temperature" in condition:
            of_lse = upstream[2][inputs["target"] >= 0].sum() / 0.9
            torch.testing.assert_close(bias.grad.sum(), of_lse, rtol=1e-4, atol=1e-4)
    # The two weigh the sampled rows alike only up to the upstream gradient, which the definition does not see.
    assert float((found[0] - found[1]).norm() / found[1].norm()) < (0.02 if of[0] else 1e-5)


def test_statistics_say_what_was_dropped(always_sparse):
    inputs = make_inputs(37, 33, 1009, ignored=0.2)
    _, stats = linear_cross_entropy(
        inputs["hidden"], inputs["weight"], inputs["target"], gradient_threshold=THRESHOLD, return_stats=True
    )
    p = torch.softmax(inputs["hidden"] @ inputs["weight"].T, -1)
    valid = inputs["target"] != -100
    target = torch.where(valid, inputs["target"], 0)[:, None]
    keep = (p > THRESHOLD * (1 - p.gather(1, target))).scatter_(1, target, True)
    torch.testing.assert_close(stats.kept_entries, torch.where(valid, keep.sum(1), 0))
    torch.testing.assert_close(stats.dropped_mass, torch.where(valid, (p * ~keep).sum(1), 0), rtol=1e-4, atol=1e-6)
    _, exact = linear_cross_entropy(inputs["hidden"], inputs["weight"], inputs["target"], return_stats=True)
    assert exact.dropped_mass is None and exact.kept_entries is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_and_statistics_are_exact(always_sparse, backend):
    inputs = make_inputs(*fit(backend, (37, 33, 1009)), device=device_of(backend))
    arguments = (inputs["hidden"], inputs["weight"], inputs["target"])
    exact, plain = linear_cross_entropy(*arguments, return_stats=True, backend=backend)
    loss, stats = linear_cross_entropy(*arguments, return_stats=True, backend=backend, gradient_threshold=0.1)
    torch.testing.assert_close(loss, exact)
    for name in ("nll", "lse", "entropy", "correct"):
        torch.testing.assert_close(getattr(stats, name), getattr(plain, name))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_sum_to_zero(always_sparse, backend):
    """The gradient of the bias is the sum of dZ over rows: its own sum is nil with the correction, not without."""
    shape = fit(backend, (64, 33, 1009))
    inputs = make_inputs(*shape, device=device_of(backend))
    bias = torch.zeros(shape[2], requires_grad=True, device=device_of(backend))
    loss, stats = linear_cross_entropy(
        inputs["hidden"],
        inputs["weight"],
        inputs["target"],
        bias=bias,
        backend=backend,
        gradient_threshold=THRESHOLD,
        return_stats=True,
    )
    loss.backward()
    assert float(stats.dropped_mass.mean()) > 0.05
    assert abs(float(bias.grad.double().sum())) < 1e-6


def assert_same_rows(found, exact):
    """Backend cpp takes the exact gradient by products of its own, and rows that fall back by PyTorch's."""
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chunk_over_the_density_limit_is_exact(backend):
    inputs = make_inputs(20, 16, 101)
    exact = run(inputs, torch.float32, backend, threshold=None)
    dense = run(inputs, torch.float32, backend, threshold=2**-12)
    assert (dense["kept"][inputs["target"] != -100] == 101).all() and dense["dropped_mass"].count_nonzero() == 0
    for name in ("loss", "d_hidden", "d_weight"):
        assert_same_rows(dense[name], exact[name])


@pytest.mark.parametrize("backend", QUICKER_BACKENDS)
def test_chunks_decide_for_themselves(limit_of_a_cpu, monkeypatch, backend):
    """Peaked rows first, flat rows last: the first chunks are sparse, the last dense, and all gradients right."""
    vocabulary, size = 151, 32
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, size, generator=generator) / size**0.5
    target = torch.randint(0, vocabulary, (64,), generator=generator)
    hidden = weight[target] * 40
    hidden[32:] = torch.randn(32, size, generator=generator)
    for name in ("_CHUNK_BYTES", "_SPARSE_CHUNK_BYTES"):
        monkeypatch.setattr(row_chunks, name, {"cpu": 16 * vocabulary * 4, "cuda": 16 * vocabulary * 4})
    if backend == "triton_streaming":
        monkeypatch.setattr(backends.kernels("linear_cross_entropy", backend), "SPARSE_CHUNKS", 1)
    inputs = {"hidden": hidden, "weight": weight, "target": target, "row_weight": torch.ones(64)}
    found = run(inputs, torch.float32, backend, threshold=2**-6)
    exact = run(inputs, torch.float32, backend, threshold=None)
    assert (found["kept"][:32] < 10).all() and (found["kept"][32:] == vocabulary).all()
    torch.testing.assert_close(found["d_hidden"][32:], exact["d_hidden"][32:], rtol=0, atol=1e-7)
    assert float((found["d_weight"] - exact["d_weight"]).norm() / exact["d_weight"].norm()) < 1e-2


@pytest.mark.parametrize("sample_rows", [1, 3, 16, 256])
@pytest.mark.parametrize("total", [0, 1, 5, 80, 300, 1000])
def test_sampled_rows_are_every_kth_whatever_the_chunks(monkeypatch, total, sample_rows):
    monkeypatch.setattr(sparse_gradient, "SAMPLE_ROWS", sample_rows)
    step = total // sample_rows if total > sample_rows else 1
    expected = [row for row in range(total) if row % step == 0]
    assert total <= sample_rows or sample_rows <= len(expected) <= 2 * sample_rows
    for size in (1, 7, 128, 1000):
        found = []
        for start in range(0, total, size):
            count = min(size, total - start)
            found += [start + position for position in sparse_gradient.sampled_rows(start, count, total)]
        assert found == expected, size


def sampled_gradient(inputs, dtype, sample_rows, upstream, temperature, device, exact_rows=()):
    """dH, dW and db of the sum of weighted losses with the sparse gradient, by its formula, row by row; that of
    `exact_rows` is exact."""
    hidden, weight = inputs["hidden"].to(dtype), inputs["weight"].to(dtype)
    bias = torch.linspace(-1, 1, len(weight)).to(dtype)
    p = torch.softmax((hidden @ weight.T + bias) / temperature, 1)
    target, scale = inputs["target"], signed(inputs).to(dtype) * upstream
    visited = [row for row in range(len(p)) if target[row] != -100 and (device == "cuda" or scale[row] != 0)]
    sampled = visited[:: max(1, len(visited) // sample_rows)]
    assert len(visited) > 2 * sample_rows
    kept = torch.zeros_like(p, dtype=torch.bool)
    for row in visited:
        kept[row] = p[row] > THRESHOLD * (1 - p[row, target[row]])
        kept[row, target[row]] = True
    dropped = torch.where(kept, 0, p)
    background = sum(abs(scale[row]) * dropped[row] for row in sampled)
    background = background / background.sum()
    dz = torch.zeros_like(p)
    for row in visited:
        exact = p[row].clone()
        exact[target[row]] -= 1
        if row in exact_rows:
            dz[row] = scale[row] * exact
        else:
            dz[row] = scale[row] * (torch.where(kept[row], exact, 0) + dropped[row].sum() * background)
    dz /= temperature
    return {"d_hidden": dz @ weight, "d_weight": dz.T @ hidden, "d_bias": dz.sum(0)}


@pytest.mark.parametrize("sample_rows", [1, 3, 16])
@pytest.mark.parametrize("backend", ["reference", *QUICKER_BACKENDS])
def test_background_is_sampled_across_chunks(always_sparse, monkeypatch, backend, sample_rows):
    """Chunks of 7 rows: some have no sampled row, and in no two of them the sampled ones have the same places."""
    vocabulary, dtype = 101, torch.float64 if backends.BACKENDS[backend].float64 else torch.float32
    chunk = 7 * vocabulary * dtype.itemsize
    monkeypatch.setattr(sparse_gradient, "SAMPLE_ROWS", sample_rows)
    monkeypatch.setattr(row_chunks, "_SPARSE_CHUNK_BYTES", {"cpu": chunk, "cuda": chunk})
    if backend == "triton_streaming":
        monkeypatch.setattr(backends.kernels("linear_cross_entropy", backend), "SPARSE_CHUNKS", 1)
    inputs = make_inputs(50 if interpreted(backend) else 100, 16, vocabulary, ignored=0.1)
    temperature, upstream, device = 0.7, 1.7, device_of(backend)
    found = run(inputs, dtype, backend, weighted=True, biased=True, reduction="sum", temperature=temperature)
    truth, peer = (
        sampled_gradient(inputs, each, sample_rows, upstream, temperature, device) for each in (torch.float64, dtype)
    )
    assert_within_budget(found, peer, truth, dtype, conditioning=2 * float(found["lse"].abs().max()))
    assert float(found["dropped_mass"].mean()) > 0.02


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_lists_that_are_taken_in_parts_have_the_same_gradient(always_sparse, monkeypatch, options):
    monkeypatch.setattr(sparse_gradient, "SAMPLE_ROWS", 32)  # which come first, and together
    inputs = make_inputs(300, 16, 1009, ignored=0.1)
    whole = run(inputs, torch.float32, "cpp", **options)
    parts, finish = [], sparse_gradient.SparseGradient.finish

    def counted(self, *arguments, **named):
        parts.append(self.collected)
        finish(self, *arguments, **named)

    monkeypatch.setattr(sparse_gradient.SparseGradient, "finish", counted)
    monkeypatch.setattr(linear_cross_entropy_rows, "MOST_ENTRIES", 20)
    monkeypatch.setattr(linear_cross_entropy_rows, "rows_per_chunk", lambda *_, **__: 2)
    found = run(inputs, torch.float32, "cpp", **options)
    assert sum(count > 20 for count in parts) > 5
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", QUICKER_BACKENDS)
def test_background_is_sampled_of_exact_rows_too(always_sparse, monkeypatch, backend):
    """Rows sharp and flat by halves: whichever chunks the sampled rows are in, what sharp rows drop is replaced."""
    rows, vocabulary, chunk, sample_rows = 48, 301, 4, 8
    monkeypatch.setattr(sparse_gradient, "SAMPLE_ROWS", sample_rows)
    monkeypatch.setattr(sparse_gradient, "_MASS_LIMIT", 0.3)
    monkeypatch.setattr(row_chunks, "_SPARSE_CHUNK_BYTES", dict.fromkeys(("cpu", "cuda"), 4 * chunk * vocabulary))
    if backend == "triton_streaming":
        monkeypatch.setattr(backends.kernels("linear_cross_entropy", backend), "SPARSE_CHUNKS", 1)
    inputs = make_inputs(rows, 16, vocabulary, ignored=0.0)
    inputs["hidden"] *= torch.where(torch.arange(rows) < rows // 2, 4.0, 0.5)[:, None]
    inputs["row_weight"] = inputs["row_weight"].abs() + 0.5
    found = run(inputs, torch.float32, backend, biased=True, weighted=True, reduction="sum")
    sparse = found["kept"] < vocabulary
    assert sparse[: rows // 2].any() and not sparse[rows // 2 :].any() and float(found["dropped_mass"].max()) > 0.05
    exact_rows = (~sparse).nonzero().squeeze(1).tolist()
    truth, peer = (
        sampled_gradient(inputs, each, sample_rows, 1.7, 1.0, device_of(backend), exact_rows)
        for each in (torch.float64, torch.float32)
    )
    assert_within_budget(found, peer, truth, torch.float32, conditioning=2 * float(found["lse"].abs().max()))


def flat_inputs(scale, backend):
    """A random head; logits of standard deviation `scale`, nil where that is 0."""
    rows, vocabulary, size = 6 if interpreted(backend) else 32, 512, 16
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(count, size, generator=generator) for count in (rows, vocabulary))
    if scale == 0:  # orthogonal: a uniform softmax with gradients to both sides
        hidden[:, ::2] = 0
        weight[:, 1::2] = 0
    target = torch.randint(0, vocabulary, (rows,), generator=generator)
    return {"hidden": hidden * (scale or 1) / size**0.5, "weight": weight, "target": target}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [0.0, 0.5], ids=["uniform", "random initialization"])
def test_flat_softmax_falls_back_to_the_exact_gradient(backend, scale):
    inputs = flat_inputs(scale, backend)
    exact = run(inputs, torch.float32, backend, threshold=None)
    found = run(inputs, torch.float32, backend, threshold=2**-7)
    assert (found["kept"] == 512).all() and (found["dropped_mass"] == 0).all()
    for name in ("d_hidden", "d_weight"):
        assert_same_rows(found[name], exact[name])


@pytest.mark.parametrize("backend", QUICKER_BACKENDS)
def test_correction_alone_carries_a_uniform_softmax(always_sparse, backend):
    inputs = flat_inputs(0.0, backend)
    exact = run(inputs, torch.float32, backend, threshold=None)
    found = run(inputs, torch.float32, backend, threshold=2**-7)
    assert (found["kept"] == 1).all() and (found["dropped_mass"] > 0.99).all()
    for name in ("d_hidden", "d_weight"):
        assert float((found[name] - exact[name]).norm() / exact[name].norm()) < 1e-2, name


def test_a_background_is_at_most_what_was_dropped():
    """A dropped mass follows from larger sums, so it may be smaller than what a row's background has of it."""
    head = Head(torch.zeros(5, 2), temperature=0.5)
    sparse = sparse_gradient.SparseGradient(head, torch.zeros(1, 2), span=3)
    sparse.add_background(torch.tensor([4e-12, 0, 0, 1e-3, 1e-3]), torch.tensor([1e-15, 2e-3]))
    torch.testing.assert_close(sparse._distributions(), torch.tensor([[2.0, 0, 0, 0, 0], [0, 0, 0, 0.5, 0.5]]))


def test_label_smoothing_under_a_softcap_is_exact():
    inputs = make_inputs(20, 16, 1009)
    options = {"label_smoothing": 0.1, "softcap": 5.0}
    found = run(inputs, torch.float32, "torch", threshold=0.1, **options)
    exact = run(inputs, torch.float32, "torch", threshold=None, **options)
    torch.testing.assert_close(found["d_weight"], exact["d_weight"], rtol=0, atol=0)


def test_frozen_inputs_skip_their_gather(always_sparse, monkeypatch):
    inputs = make_inputs(20, 16, 1009)
    monkeypatch.setattr(HeadGradients, "add_weight_blocks", lambda *_, **__: pytest.fail("dW was computed"))
    hidden = inputs["hidden"].requires_grad_()
    linear_cross_entropy(hidden, inputs["weight"], inputs["target"], gradient_threshold=0.1).backward()
    assert hidden.grad is not None


def test_ignored_rows_and_zero_weights(always_sparse):
    inputs = make_inputs(20, 8, 131, ignored=0.4)
    clean = run(inputs, torch.float32, "torch", weighted=True, reduction="sum")
    inputs["hidden"][inputs["target"] == -100] = float("nan")
    poisoned = run(inputs, torch.float32, "torch", weighted=True, reduction="sum")
    for name, value in clean.items():
        torch.testing.assert_close(poisoned[name], value, rtol=0, atol=0)
    inputs["target"][:] = -100
    assert run(inputs, torch.float32, "torch", reduction="sum")["d_weight"].count_nonzero() == 0


def test_nan_reaches_loss_and_gradient(always_sparse):
    inputs = make_inputs(20, 8, 131, ignored=0)
    inputs["hidden"][3] = float("nan")
    found = run(inputs, torch.float32, "torch")
    assert found["loss"].isnan() and found["d_hidden"][3].isnan().all() and found["d_weight"].isnan().any()


def test_compiles_whole():
    inputs = make_inputs(17, 8, 31)

    def step(hidden):
        return linear_cross_entropy(hidden * 2, inputs["weight"], inputs["target"], gradient_threshold=0.05)

    assert_compiles_whole(step, inputs["hidden"])


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, float("nan")])
def test_threshold_is_a_probability(value):
    inputs = make_inputs(4, 8, 31)
    with pytest.raises(ValueError, match="gradient_threshold is .*: expected None or a probability in"):
        linear_cross_entropy(inputs["hidden"], inputs["weight"], inputs["target"], gradient_threshold=value)
