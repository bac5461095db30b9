"""The table of backends: what is available, why the rest is not, no silent fallback, and one more row."""

from __future__ import annotations

import os
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import test_linear_divergence_contract
import test_linear_mind_loss
import test_linear_pairwise_jsd
import torch
from cases import assert_compiles_whole

from mind_kernels import (
    BackendUnavailableError,
    availability,
    backend,
    backends,
    extension,
    linear_cross_entropy,
    linear_divergence,
    linear_log_prob,
    linear_mind_loss,
    linear_pairwise_jsd,
)
from mind_kernels.backend import BACKENDS, Backend, backends_of, kernels, resolve
from mind_kernels.linear_pairwise_jsd.contract import JEFFREYS
from mind_kernels.testing import make_inputs

HIDDEN = torch.zeros(2, 3)
ROWS, GROUPS, DIVERGENCES = "linear_cross_entropy", "linear_pairwise_jsd", "linear_divergence"


def test_reason_where_unavailable_and_only_there():
    for name, found in backends().items():
        assert found.available != bool(found.reason), name


def test_the_backends_that_a_cpu_can_have_are_here():
    """Tests of a backend that is not there would be left out without a word. MIND_KERNELS_TEST_WITHOUT, a list
    with commas, names those that may be missing."""
    optional = os.environ.get("MIND_KERNELS_TEST_WITHOUT", "").split(",")
    missing = {
        name: found.reason for name, found in backends().items() if BACKENDS[name].takes("cpu") and not found.available
    }
    assert {"reference", "torch", "cpp"} <= set(missing) | {name for name, row in BACKENDS.items() if row.takes("cpu")}
    assert not set(missing) - set(optional), missing


@pytest.mark.parametrize("operation", ["linear_mind_loss", ROWS, GROUPS, JEFFREYS, DIVERGENCES])
def test_every_row_names_kernels_that_have_what_the_operation_calls(operation):
    required = {
        ROWS: (
            "SPARSE_CHUNKS",
            "STREAMED_CHUNKS",
            "row_kernel_",
            "statistics",
            "sparse_rows",
            "gather_rows",
            "sort_entries",
        ),
        GROUPS: ("pair_divergences", "mixture_divergences"),
        JEFFREYS: ("pair_divergences",),
        DIVERGENCES: ("divergence_", "listed_divergence_"),
    }
    for name in backends_of(operation):
        if name.startswith("triton") and not backends()[name].available:
            continue  # its modules import triton
        assert all(hasattr(kernels(operation, name), each) for each in required.get(operation, required[GROUPS])), name


def test_auto_is_what_was_measured(monkeypatch):
    monkeypatch.setattr(extension, "unavailable", lambda device: "")
    assert resolve("auto", HIDDEN, ROWS) == "cpp"
    assert resolve("auto", HIDDEN.bfloat16(), ROWS) == "cpp"
    assert resolve("auto", HIDDEN.double(), ROWS) == "torch"
    assert resolve("auto", HIDDEN, DIVERGENCES) == "cpp"
    assert resolve("auto", HIDDEN, "linear_top_k") == "torch"
    assert resolve("auto", HIDDEN.to("meta"), ROWS) == "torch"
    monkeypatch.setattr(extension, "unavailable", lambda device: "it was not built")
    assert resolve("auto", HIDDEN, ROWS) == "torch"


def test_triton_says_what_it_lacks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailableError, match="'triton' is not available on cpu: no CUDA device is here"):
        resolve("triton", HIDDEN, ROWS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(BackendUnavailableError, match="it needs CUDA tensors"):
        resolve("triton", HIDDEN, ROWS)
    monkeypatch.setattr(availability, "_HAS_TRITON", False)
    with pytest.raises(BackendUnavailableError, match="the package triton is not installed"):
        resolve("triton_streaming", HIDDEN, ROWS)


@pytest.fixture
def one_gpu(monkeypatch):
    """What Triton finds on a machine with a GPU and without the compiled libraries, asked anew."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(extension, "unavailable", lambda library: "it was not built")
    monkeypatch.setattr(availability, "_triton_lacks", availability._triton_lacks.__wrapped__)


def test_auto_is_cuda_on_a_gpu_that_it_was_built_for(one_gpu, monkeypatch):
    monkeypatch.setattr(extension, "unavailable", lambda library: "")
    monkeypatch.setattr(extension, "architectures", lambda: ["sm_80", "sm_90a"])
    for operation in ("linear_mind_loss", ROWS, GROUPS, f"{ROWS}, shards"):
        assert backend.automatic("cuda", False, operation) == "cuda"
        assert backend.automatic("cuda", True, operation) == "torch"
    for operation in (DIVERGENCES, JEFFREYS, f"{GROUPS}, shards", "linear_mind_loss, shards"):  # it has none of these
        assert backend.automatic("cuda", False, operation) == "triton"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    assert backend.automatic("cuda", False, ROWS) == "triton"


def test_auto_is_triton_on_a_gpu_without_a_library(one_gpu):
    for operation in ("linear_mind_loss", ROWS, GROUPS, DIVERGENCES):
        assert backend.automatic("cuda", False, operation) == "triton"
        assert backend.automatic("cuda", True, operation) == "torch"
    assert backend.automatic("cuda", False, "linear_top_k") == "torch"


def test_what_triton_lacks_is_a_constant_of_graphs():
    def step(x):
        return x + len(availability._untranslatable()[0])

    assert torch.compile(step, fullgraph=True, backend="eager")(torch.zeros(1)) == step(torch.zeros(1))


@pytest.mark.parametrize(
    ("place", "name", "value", "reason"),
    [
        (availability, "_HAS_TRITON", False, "the package triton is not installed"),
        (torch.version, "hip", "7.1", "this is a ROCm build of torch, and the kernels are written for NVIDIA GPUs"),
        (
            torch.cuda,
            "get_device_capability",
            lambda device: (7, 5),
            "cuda:0, a GPU, has compute capability 7.5: Triton needs 8.0",
        ),
        (availability.shutil, "which", lambda name: None, "Triton needs a C compiler: gcc or clang is not here"),
        (sysconfig, "get_path", lambda name: "/nowhere", "Triton needs /nowhere/Python.h, which is not here"),
    ],
    ids=["triton", "rocm", "capability", "compiler", "headers"],
)
def test_a_gpu_without_what_triton_needs_takes_torch_and_says_why(one_gpu, monkeypatch, place, name, value, reason):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(place, name, value)
    assert backend.automatic("cuda", False, ROWS) == "torch"
    found = backends()["triton"]
    assert found.reason == reason and found.remedy
    with pytest.raises(BackendUnavailableError, match=reason):
        resolve("triton", HIDDEN, ROWS)


def test_an_operation_without_the_backend_says_so():
    with pytest.raises(BackendUnavailableError, match="it has no kernels for this operation|triton is not installed"):
        linear_pairwise_jsd(torch.zeros(1, 2, 3), torch.zeros(5, 3), torch.ones(1, 2, 2), backend="triton_streaming")


# What a backend consists of, as CONTRIBUTING.md says: kernels, here those of another backend that leave a trace.
MODULE = """
from mind_kernels.linear_cross_entropy.backend_torch import *
from mind_kernels.linear_cross_entropy import backend_torch as rows
from mind_kernels.linear_divergence import backend_torch as divergences
from mind_kernels.linear_pairwise_jsd import backend_torch as groups

SPARSE_CHUNKS = rows.SPARSE_CHUNKS
STREAMED_CHUNKS = rows.STREAMED_CHUNKS
calls = []


def _traced(module, name):
    def call(*arguments):
        calls.append(name)
        return getattr(module, name)(*arguments)

    return call


row_kernel_, statistics = _traced(rows, "row_kernel_"), _traced(rows, "statistics")
sparse_rows, gather_rows = _traced(rows, "sparse_rows"), _traced(rows, "gather_rows")
sort_entries = rows.sort_entries


class Divergences:
    divergence_ = staticmethod(_traced(divergences, "divergence_"))
    listed_divergence_ = staticmethod(_traced(divergences, "listed_divergence_"))


class Groups:
    pair_divergences = staticmethod(_traced(groups, "pair_divergences"))
    mixture_divergences = staticmethod(_traced(groups, "mixture_divergences"))
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch):
    """The names of the kernels of backend "ours" that were called, which is added as a program of one's own would."""
    (tmp_path / "our_kernels.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    served = {
        "linear_cross_entropy": "our_kernels",
        "linear_pairwise_jsd": "our_kernels:Groups",
        "linear_mind_loss": "our_kernels:Groups",
        "linear_divergence": "our_kernels:Divergences",
    }
    monkeypatch.setitem(BACKENDS, "ours", Backend("ours", "any", served, float64=True))
    import our_kernels

    our_kernels.calls.clear()
    return our_kernels.calls


def both(loss_of, inputs):
    """Loss and gradients by backend "ours" and by "torch"."""
    results = []
    for name in ("ours", "torch"):
        hidden, weight = (inputs[key].clone().requires_grad_() for key in ("hidden", "weight"))
        others = {key: value for key, value in inputs.items() if key not in ("hidden", "weight")}
        loss = loss_of(hidden, weight, **others, backend=name)
        loss.backward()
        results.append((loss.detach(), hidden.grad, weight.grad))
    return results


def log_prob(hidden, weight, target, row_weight, **options):
    return (row_weight * linear_log_prob(hidden, weight, target, **options).log_prob).sum()


def sparse(*arguments, **options):
    return linear_cross_entropy(*arguments, **options, gradient_threshold=2**-6)


@pytest.mark.parametrize(
    ("loss_of", "make", "called"),
    [
        (linear_cross_entropy, lambda: make_inputs(9, 8, 31), {"row_kernel_"}),
        (sparse, lambda: make_inputs(9, 8, 31), {"sparse_rows"}),
        (log_prob, lambda: make_inputs(9, 8, 31), {"statistics", "row_kernel_"}),
        (linear_pairwise_jsd, test_linear_pairwise_jsd.make, {"pair_divergences"}),
        (linear_divergence, lambda: test_linear_divergence_contract.make(9, 8, 31), {"divergence_"}),
        (
            linear_divergence,
            lambda: test_linear_divergence_contract.make(9, 8, 31, form="list", listed=3),
            {"listed_divergence_"},
        ),
        (linear_mind_loss, test_linear_mind_loss.make, {"row_kernel_", "pair_divergences"}),
    ],
    ids=["cross_entropy", "sparse", "log_prob", "pairwise_jsd", "divergence", "list", "mind_loss"],
)
def test_a_backend_is_one_row_of_the_table(calls, loss_of, make, called):
    """It is listed, chosen by name, and its kernels serve the operations."""
    assert backends()["ours"].available and "ours" in backends_of("linear_divergence")
    for ours, torchs in zip(*both(loss_of, make()), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=0, atol=0)
    assert called <= set(calls)


def test_an_added_backend_serves_in_a_graph(calls):
    inputs = make_inputs(9, 8, 31)

    def step(hidden, weight):
        return linear_cross_entropy(2 * hidden, weight, inputs["target"], backend="ours")

    assert_compiles_whole(step, inputs["hidden"], inputs["weight"])


def test_an_added_backend_can_be_what_auto_takes(calls, monkeypatch):
    row = replace(BACKENDS["ours"], fastest_on="cpu", float64=False)
    cpp = replace(BACKENDS["cpp"], fastest_on=None)  # which stands before it
    monkeypatch.setattr(backend, "BACKENDS", BACKENDS | {"ours": row, "cpp": cpp})
    assert resolve("auto", HIDDEN, DIVERGENCES) == "ours"
    assert resolve("auto", HIDDEN.double(), DIVERGENCES) == "torch"


def test_the_variable_says_what_auto_takes(monkeypatch):
    hidden, weight, target = torch.randn(4, 8), torch.randn(31, 8), torch.arange(4)
    monkeypatch.setenv("MIND_KERNELS_BACKEND", "torch")
    assert resolve("auto", hidden, "linear_cross_entropy") == "torch"
    assert resolve("reference", hidden, "linear_cross_entropy") == "reference"
    monkeypatch.setenv("MIND_KERNELS_BACKEND", "triton_streaming, reference")
    assert resolve("auto", hidden, "linear_divergence") == "reference"
    assert resolve("auto", hidden.double(), "linear_cross_entropy") == "reference"
    graph = torch.compile(lambda x: linear_cross_entropy(x, weight, target), fullgraph=True, backend="eager")
    expected = linear_cross_entropy(hidden, weight, target, backend=resolve("auto", hidden, "linear_cross_entropy"))
    assert torch.equal(graph(hidden), expected)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("cpp,tritn", ValueError, r"MIND_KERNELS_BACKEND is 'cpp,tritn': expected one of 'reference', 'torch'"),
        ("torch, tritn", ValueError, r"MIND_KERNELS_BACKEND is 'torch,tritn': expected one of"),  # before it is met
        ("torch,", ValueError, r"MIND_KERNELS_BACKEND is 'torch,': expected one of"),
        (",", ValueError, r"MIND_KERNELS_BACKEND is ',': expected one of"),
        (
            "triton_streaming",
            BackendUnavailableError,
            r"MIND_KERNELS_BACKEND is 'triton_streaming': none can serve linear_divergence in float32 or less on cpu: "
            r"triton_streaming \(it has no kernels for this operation; ",
        ),
    ],
)
def test_a_variable_that_serves_nothing_is_an_error(monkeypatch, value, error, message):
    monkeypatch.setenv("MIND_KERNELS_BACKEND", value)
    monkeypatch.setitem(BACKENDS, "cpp", replace(BACKENDS["cpp"], kernels={}))
    with pytest.raises(error, match=message):
        resolve("auto", torch.randn(4, 8), "linear_divergence")
