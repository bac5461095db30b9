"""What a threshold promises: the error of the sparse gradient on rows of a trained model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import BACKENDS, COMPILED_BACKENDS
from safetensors.torch import load_file
from test_sparse_gradient import always_sparse, limit_of_a_cpu, run

from mind_kernels import backend as backends
from mind_kernels import row_chunks, sparse_gradient, threshold_for_error
from mind_kernels.testing import make_inputs


def relative_error(found, truth):
    return float((found.double() - truth).norm() / truth.norm())


def dense_bfloat16(hidden, weight, target):
    """dH and dW of the mean loss as dense bfloat16 arithmetic has them: operands, logits, dZ and results rounded."""

    def rounded(tensor):
        return tensor.bfloat16().float()

    hidden, weight = rounded(hidden), rounded(weight)
    dz = torch.softmax(rounded(hidden @ weight.T), -1)
    dz[torch.arange(len(target)), target] -= 1
    dz = rounded(dz / len(target))
    return rounded(dz @ weight), rounded(dz.T @ hidden)


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
@pytest.mark.usefixtures(limit_of_a_cpu.__name__)
def test_error_on_real_rows_is_below_dense_bfloat16(backend):
    """The promise of gradient_threshold=2**-12, on rows of a trained model (see derive_rows.py), without fallback."""
    rows = load_file(Path(__file__).parent / "data" / "smollm2_rows.safetensors")
    hidden, weight = rows["hidden"].float(), rows["weight"].float()
    inputs = {"hidden": hidden, "weight": weight, "target": rows["target"]}
    truth = run(inputs, torch.float64, "reference", threshold=None)
    found = run(inputs, torch.float32, backend, threshold=2**-12)
    assert 10 < float(found["kept"].double().mean()) < 100
    upstream = 1.7  # of `run`
    for name, dense in zip(("d_hidden", "d_weight"), dense_bfloat16(hidden, weight, rows["target"]), strict=True):
        assert relative_error(found[name], truth[name]) <= relative_error(dense * upstream, truth[name]), name


@pytest.mark.parametrize("error", [1e-2, 3e-3, 1e-3])
@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
def test_error_on_real_rows_is_below_the_accepted_one(monkeypatch, backend, error):
    """Without fallback, and not by so much that the threshold keeps far more than it has to."""
    monkeypatch.setattr(sparse_gradient, "_DENSITY_LIMIT", {"cpu": 1 / 4, "cuda": 1 / 4})
    rows = load_file(Path(__file__).parent / "data" / "smollm2_rows.safetensors")
    inputs = {"hidden": rows["hidden"].float(), "weight": rows["weight"].float(), "target": rows["target"]}
    truth = run(inputs, torch.float64, "reference", threshold=None)
    found = run(inputs, torch.float32, backend, threshold=threshold_for_error(error))
    assert (found["kept"] < len(inputs["weight"])).all() and found["dropped_mass"].min() > 0
    wrong = {name: relative_error(found[name], truth[name]) for name in ("d_hidden", "d_weight")}
    assert error / 20 < max(wrong.values()) < error, wrong


def test_the_accepted_error_gives_a_threshold():
    assert threshold_for_error(1e-3) == pytest.approx(2**-16.63, rel=0.01)
    thresholds = [threshold_for_error(error) for error in (1e-300, 1e-9, 1e-4, 1e-2, 0.999)]
    assert thresholds == sorted(thresholds) and all(0 < threshold < 1 for threshold in thresholds)
    for error in (0, 1, -1e-3, float("nan"), float("inf"), None):
        with pytest.raises(ValueError, match=r"error is .*: expected a number in \(0, 1\)"):
            threshold_for_error(error)
    with pytest.raises(TypeError, match="error"):
        threshold_for_error("1e-3")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures(always_sparse.__name__)
def test_logits_beyond_the_digits_of_their_log_sum_exp_get_the_exact_gradient(backend):
    """One row of them among many: in float32 the number that decides what is kept is the largest logit itself."""
    inputs = make_inputs(24, 8, 61, dtype=torch.float32)
    inputs["hidden"][5] *= 1e8
    truth = run(inputs, torch.float64, "reference", threshold=None)
    found = run(inputs, torch.float32, backend, threshold=2**-8)
    assert float(found["lse"][5]) > 2**24 and found["kept"][5] == 61
    for name in ("d_hidden", "d_weight"):
        assert relative_error(found[name], truth[name]) < 1e-5, name
    assert relative_error(found["d_hidden"][5], truth["d_hidden"][5]) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures(always_sparse.__name__)
def test_logits_beyond_these_digits_do_not_reach_the_rows_of_other_chunks(backend, monkeypatch):
    """The first row is sampled for the background. If it is certain of one token, it adds nothing to it."""
    chunk = 4 * 61 * 4
    monkeypatch.setattr(sparse_gradient, "SAMPLE_ROWS", 3)
    monkeypatch.setattr(row_chunks, "_SPARSE_CHUNK_BYTES", {"cpu": chunk, "cuda": chunk})
    if backend == "triton_streaming":
        monkeypatch.setattr(backends.kernels("linear_cross_entropy", backend), "SPARSE_CHUNKS", 1)
    found = []
    for size in (1e3, 1e8):
        inputs = make_inputs(24, 8, 61, dtype=torch.float32, ignored=0.0)
        inputs["hidden"][0] *= size
        inputs["target"][0] = (inputs["weight"] @ inputs["hidden"][0]).argmin()
        found.append(run(inputs, torch.float32, backend, threshold=2**-3))
    certain, large = found
    sparse = large["kept"] < 61
    assert int(sparse.sum()) >= 12 and large["kept"][0] == 61 and float(large["dropped_mass"][sparse].max()) > 0.1
    torch.testing.assert_close(large["d_hidden"][sparse], certain["d_hidden"][sparse])


def test_a_log_sum_exp_is_too_coarse_by_its_dtype():
    lse = torch.tensor([0.0, 2.0**22, -(2.0**22), 2.0**22 + 1, -(2.0**23), torch.inf, torch.nan])
    assert sparse_gradient.is_too_coarse(lse).tolist() == [False, False, False, True, True, False, False]
    assert not sparse_gradient.is_too_coarse(lse.double()).any()
