"""Rows whose target is nearly certain: the gradient is as small as 1 - p of the target, and no digit of it may cancel.

Every implementation, exact and sparse, against float64 on the same inputs, beside what bfloat16 arithmetic errs by.
"""

from __future__ import annotations

import functools
from pathlib import Path

import implementations
import pytest
import torch
from kernel_cases import PLAIN, THRESHOLD, Options, eager_rows, kept_entries, make_rows
from safetensors.torch import load_file
from test_row_kernels import ALL, ON_LOGITS, run, sparse_rows

from bench.row_confidence import LOSSES, at_loss
from mind_kernels import sparse_gradient
from mind_kernels.head import Head, HeadGradients
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowTerms, RowWeights
from mind_kernels.linear_cross_entropy.rows import run_terms
from mind_kernels.linear_log_prob import linear_log_prob
from mind_kernels.row_chunks import accumulation_dtype

# Lanes that are not stored may overflow in Triton's interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
each = functools.partial(implementations.each, of=ALL, dtypes=())
# A logit of 30 is rounded by 2e-6 in float32, and so is every probability, relatively.
ROUNDING = 2e-5
OPTIONS = [
    PLAIN,
    Options(temperature=1.3),
    Options(softcap=30.0),
    Options(z_loss=1e-3),
    Options(label_smoothing=0.1),
    Options(entropy=True),
]


@pytest.fixture
def always_sparse(monkeypatch):
    """Small vocabularies are denser than the limit of density, and flat rows pass that of what is dropped."""
    monkeypatch.setattr(sparse_gradient, "_DENSITY_LIMIT", {"cpu": 1.0, "cuda": 1.0})
    monkeypatch.setattr(sparse_gradient, "_MASS_LIMIT", 1.0)


def confident(implementation, vocabulary, dtype=torch.float32):
    """Logits (9, V) whose targets have the losses 5, 1, ... 1e-7, targets and weights."""
    logits, target, *weights = make_rows(len(LOSSES), vocabulary, torch.float64, peak=0.0)
    others = logits.scatter(1, target[:, None], -torch.inf).logsumexp(1)
    nll = torch.tensor(LOSSES, dtype=torch.float64)
    logits.scatter_(1, target[:, None], (others - nll.expm1().log())[:, None])
    device = implementation.device
    return logits.to(device, dtype), target.to(device), *(weight.to(device) for weight in weights)


def assert_rows_close(found, truth, scale, allowed):
    """Every row of found is that of truth, to `allowed` of scale (n,)."""
    error = (found.double() - truth).norm(dim=1) if truth.dim() == 2 else (found.double() - truth).abs()
    assert bool((error <= allowed * scale).all()), (error / scale).tolist()


@each(OPTIONS, [7, 1009], of=ON_LOGITS, names="options vocabulary")
def test_exact_gradient_keeps_its_digits(implementation, options, vocabulary):
    inputs = confident(implementation, vocabulary)
    truth = eager_rows(inputs[0].double(), *inputs[1:], options)
    values, gradient = run(implementation, *inputs, options)
    assert_rows_close(gradient, truth["gradient"], truth["gradient"].norm(dim=1), ROUNDING)
    assert_rows_close(values.nll, truth["nll"], truth["nll"], ROUNDING)
    assert_rows_close(values.entropy, truth["entropy"], truth["entropy"], ROUNDING)


@each([Options(softcap=30.0), Options(softcap=50.0, temperature=0.5, entropy=True)], of=ON_LOGITS, names="options")
def test_target_that_a_softcap_rounds_beside_the_maximum(implementation, options):
    """A kernel may compute the target's logit apart from the others: in some of many rows it is rounded otherwise."""
    generator = torch.Generator().manual_seed(0)
    logits = -5 - torch.rand(9 if implementation.slow else 2000, 7, generator=generator)
    target = torch.arange(len(logits)) % 7
    logits.scatter_(1, target[:, None], 10 + 10 * torch.rand(len(logits), 1, generator=generator))
    inputs = options.temperature * logits, target, torch.ones(len(logits)), torch.ones(len(logits))
    inputs = tuple(tensor.to(implementation.device) for tensor in inputs)
    truth = eager_rows(inputs[0].double(), *inputs[1:], options)
    values, gradient = run(implementation, *inputs, options)
    assert bool(values.correct.all())
    assert_rows_close(values.nll, truth["nll"], truth["nll"], ROUNDING)
    assert_rows_close(values.entropy, truth["entropy"], truth["entropy"], ROUNDING)
    assert_rows_close(gradient, truth["gradient"], truth["gradient"].norm(dim=1), ROUNDING)


@each([PLAIN, Options(entropy=True, z_loss=1e-3)], [101, 1009], names="options vocabulary")
def test_kept_is_what_is_above_a_share_of_the_gradient(implementation, options, vocabulary):
    """The same entries of a row however confident it is, and at most 1 / threshold beside the target."""
    if implementation.slow:  # the streaming product with an identity takes V^2 steps
        vocabulary = min(vocabulary, 260)
    inputs = logits, target, *weights = confident(implementation, vocabulary)
    rows = sparse_rows(implementation, logits, target, options)
    entries = rows.entries(options.weights(*weights))
    row = torch.repeat_interleave(torch.arange(len(logits), device=logits.device), rows.kept)
    mask = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    mask[row, entries.columns.long()] = True
    should, close = kept_entries(logits, target, options)
    assert torch.equal(mask | close, should | close)
    assert bool((rows.kept > 1).all()) and bool((rows.kept <= 1 + 1 / THRESHOLD).all())

    p = logits.double().softmax(1)
    others = p.scatter(1, target[:, None], 0).sum(1)
    assert_rows_close(rows.dropped_mass, torch.where(mask, 0, p).sum(1), others, ROUNDING)
    truth = eager_rows(logits.double(), *inputs[1:], options)["gradient"]
    size = truth.norm(dim=1)
    assert_rows_close(entries.kept_sum, torch.where(mask, truth, 0).sum(1), size, ROUNDING)
    found = torch.zeros_like(truth).index_put_((row, entries.columns.long()), entries.values.double())
    assert_rows_close(found, torch.where(mask, truth, 0), size, ROUNDING)
    share = (rows.dropped_mass.double() / others).mean().item()
    assert rows.means() == pytest.approx((rows.kept.double().mean().item(), share), rel=1e-4)


@each()
def test_a_row_without_a_gradient(implementation):
    """All other exponentials underflow: nothing is kept or dropped, and nothing of it counts in the means."""
    logits = torch.zeros(2, 101, device=implementation.device)
    logits[:, 3] = 200.0
    target = torch.full((2,), 3, device=implementation.device)
    rows = sparse_rows(implementation, logits, target, PLAIN)
    entries = rows.entries(RowWeights(torch.ones(2, device=implementation.device)))
    assert rows.kept.tolist() == [1, 1] and rows.means() == (1.0, 0.0)
    assert entries.columns.tolist() == [3, 3] and float(entries.values.abs().max()) < 1e-30
    assert float(rows.dropped_mass.max()) < 1e-30 and float(rows.values.nll.abs().max()) < 1e-30


def gradients(kernels, hidden, weight, target, options, threshold, entropy_scale):
    """dH and dW of the mean loss, from the loop over rows with these kernels, and the rows' terms."""
    head = Head(weight, None, options.softcap, options.temperature)
    spec = RowSpec(head, options.label_smoothing, options.z_loss, threshold)
    terms, found = RowTerms.zeros(len(hidden), hidden, sparse=True), HeadGradients(hidden, head, [True, True, False])
    scale = torch.full_like(hidden[:, 0], 1 / len(hidden))
    weights = options.weights(scale, entropy_scale * scale)
    run_terms(kernels, len(hidden), hidden, target, weights, spec, terms, found)
    return *found.results(hidden.shape)[:2], terms


def eager_gradients(hidden, weight, target, options, entropy_scale, dtype):
    """The same by autograd, with operands and logits in `dtype`."""
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    scale = torch.full_like(hidden[:, 0], 1 / len(hidden), dtype=torch.float64)
    dz = eager_rows(hidden @ weight.T, target, scale, entropy_scale * scale, options)["gradient"]
    return dz @ weight, dz.T @ hidden


def assert_below_bfloat16(implementation, hidden, weight, target, options, size):
    """dH and dW of the sparse gradient at 2^-12, in the first `size` columns. Returns the kept entries."""
    hidden, weight, target = (tensor.to(implementation.device) for tensor in (hidden, weight, target))
    inputs = hidden, weight, target, options
    kernels = implementation.kernels("linear_cross_entropy")
    *found, terms = gradients(kernels, *inputs, 2.0**-12, 0.1)
    truth = eager_gradients(*inputs, 0.1, torch.float64)
    for name, value, true, low in zip(
        ("dH", "dW"), found, truth, eager_gradients(*inputs, 0.1, torch.bfloat16), strict=True
    ):
        error, allowed = (
            float((each.double() - true)[:, :size].norm() / true[:, :size].norm()) for each in (value, low)
        )
        assert error < allowed, f"{name} errs by {error:.1e}, in bfloat16 by {allowed:.1e}"
    return terms.kept_entries


def real_rows(implementation):
    """Rows of a trained model (see derive_rows.py), a few of them for slow implementations."""
    rows = load_file(Path(__file__).parent / "data" / "smollm2_rows.safetensors")
    hidden, weight, target = rows["hidden"].float(), rows["weight"].float(), rows["target"]
    if implementation.slow:
        chosen = torch.cat([target[:6], torch.arange(120)]).unique()
        hidden, weight, target = hidden[:6], weight[chosen], torch.searchsorted(chosen, target[:6])
    return hidden, weight, target


@each()
def test_sparse_gradient_of_real_rows_errs_less_than_bfloat16(implementation, monkeypatch):
    """By the limits of a CPU, without a fallback, at every confidence."""
    limit = 1.0 if implementation.slow else sparse_gradient._DENSITY_LIMIT["cpu"]
    monkeypatch.setattr(sparse_gradient, "_DENSITY_LIMIT", {"cpu": limit, "cuda": limit})
    for nll in LOSSES[:: 4 if implementation.slow else 1]:
        rows = at_loss(*real_rows(implementation), nll)
        kept = assert_below_bfloat16(implementation, rows.hidden, rows.weight, rows.target, PLAIN, rows.size)
        assert bool((kept < len(rows.weight)).all()), nll


def test_sparse_gradient_of_an_entropy_errs_less_than_bfloat16(always_sparse):
    """At 2^-14, as linear_log_prob says, of rows as a trained model has them."""
    data = load_file(Path(__file__).parent / "data" / "smollm2_rows.safetensors")
    hidden, weight, target = data["hidden"].float(), data["weight"].float(), data["target"]

    def of_entropy(dtype, entropy):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (hidden, weight)]
        return torch.autograd.grad(entropy(*leaves).sum(), leaves)

    def eager(hidden, weight):
        log_p = torch.log_softmax((hidden @ weight.T).to(accumulation_dtype(hidden.dtype)), 1)
        return -(log_p.exp() * log_p).sum(1)

    def sparse(hidden, weight):
        return linear_log_prob(hidden, weight, target, gradient_threshold=2.0**-14, backend="torch").entropy

    every = of_entropy(torch.float32, sparse), of_entropy(torch.bfloat16, eager), of_entropy(torch.float64, eager)
    for found, low, truth in zip(*every, strict=True):
        assert 1e-4 * truth.norm() < (found - truth).norm() < (low - truth).norm()  # it is the sparse one


@each(OPTIONS[1:], names="options")
def test_options(always_sparse, implementation, options):
    for nll in [1e-3] if implementation.slow else [1.0, 1e-3, 1e-6]:
        rows = at_loss(*real_rows(implementation), nll)
        assert_below_bfloat16(implementation, rows.hidden, rows.weight, rows.target, options, rows.size)


def random_rows(implementation, peak):
    """Hidden states near the row of the head that is their target: flat beside it, so most entries are dropped."""
    count, size, vocabulary = (6, 32, 200) if implementation.slow else (256, 64, 4000)
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.functional.normalize(torch.randn(vocabulary, size, generator=generator))
    target = torch.randint(0, vocabulary, (count,), generator=generator)
    return peak * weight[target] + torch.randn(count, size, generator=generator), weight, target


@each()
def test_sparse_gradient_of_random_rows_errs_less_than_bfloat16(always_sparse, implementation):
    """Losses from 0.1 to 1e-6."""
    for peak in [14.0, 30.0] if implementation.slow else [12.0, 14.0, 15.0, 16.0, 20.0, 25.0, 30.0]:
        rows = random_rows(implementation, peak)
        assert bool((assert_below_bfloat16(implementation, *rows, PLAIN, rows[0].shape[1]) < len(rows[1])).all())


@each([0.0, 5.0, 10.0, 15.0], names="peak")
def test_random_rows_fall_back(implementation, peak):
    """By the documented limits."""
    rows = random_rows(implementation, peak)
    assert bool((assert_below_bfloat16(implementation, *rows, PLAIN, rows[0].shape[1]) == len(rows[1])).all())


@each([2.0**-8, 2.0**-12], names="threshold")
def test_error_of_every_row_is_bounded(always_sparse, implementation, threshold):
    """Among rows of all confidences: of a row's gradient with respect to its logits, to threshold^(1/2)."""
    hidden, weight, target = real_rows(implementation)
    losses = torch.tensor(LOSSES)[torch.arange(len(target)) % len(LOSSES)]
    parts = [at_loss(hidden, weight, target, nll) for nll in LOSSES]
    rows = parts[0]._replace(hidden=torch.stack([parts[k % len(LOSSES)].hidden[k] for k in range(len(target))]))
    device = implementation.device
    hidden, target = rows.hidden.to(device), rows.target.to(device)
    # The rows of an identity behind the head: dH has the gradient of the logits in these columns.
    vocabulary = len(rows.weight)
    weight = torch.cat([rows.weight, torch.eye(vocabulary)], 1).to(device)
    hidden = torch.cat([hidden, hidden.new_zeros(len(hidden), vocabulary)], 1)
    kernels = implementation.kernels("linear_cross_entropy")
    dz = gradients(kernels, hidden, weight, target, PLAIN, threshold, 0.0)[0][:, -vocabulary:]
    truth = eager_gradients(hidden, weight, target, PLAIN, 0.0, torch.float64)[0][:, -vocabulary:]
    assert_rows_close(dz, truth, truth.norm(dim=1), 2 * threshold**0.5)
    nll = -(hidden.double() @ weight.double().T).log_softmax(1).gather(1, target[:, None]).squeeze(1)
    torch.testing.assert_close(nll.cpu(), losses.double(), rtol=1e-3, atol=0)
