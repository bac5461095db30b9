"""Backends by name: what is available, why the rest is not, and no silent fallback."""

from __future__ import annotations

import os

import pytest
import torch

from mind_kernels import BackendUnavailableError, available_backends, extension, linear_pairwise_jsd
from mind_kernels import backend as backends

HIDDEN = torch.zeros(2, 3)


def test_reason_where_unavailable_and_only_there():
    for name, availability in available_backends().items():
        assert availability.available != bool(availability.reason), name


def test_the_backends_that_a_cpu_can_have_are_here():
    """Tests of a backend that is not there would be left out without a word. MIND_KERNELS_TEST_WITHOUT, a list
    with commas, names those that may be missing."""
    optional = os.environ.get("MIND_KERNELS_TEST_WITHOUT", "").split(",")
    missing = {
        name: availability.reason
        for name, availability in available_backends().items()
        if name in ("reference", "torch", "cpp", "triton") and not availability.available
    }
    assert not set(missing) - set(optional), missing


def test_auto_is_what_was_measured(monkeypatch):
    implemented = ("torch", "cpp", "triton")
    monkeypatch.setattr(extension, "unavailable", lambda device: "")
    assert backends.resolve("auto", HIDDEN, implemented) == "cpp"
    assert backends.resolve("auto", HIDDEN.bfloat16(), implemented) == "cpp"
    assert backends.resolve("auto", HIDDEN.double(), implemented) == "torch"
    assert backends.resolve("auto", HIDDEN, ("torch", "triton")) == "torch"
    monkeypatch.setattr(extension, "unavailable", lambda device: "it was not built")
    assert backends.resolve("auto", HIDDEN, implemented) == "torch"


def test_triton_says_what_it_lacks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailableError, match="'triton' is not available on cpu: no CUDA device is here"):
        backends.resolve("triton", HIDDEN, ("torch", "triton"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(BackendUnavailableError, match="needs a CUDA device"):
        backends.resolve("triton", HIDDEN, ("torch", "triton"))
    monkeypatch.setattr(backends, "_HAS_TRITON", False)
    with pytest.raises(BackendUnavailableError, match="the package triton is not installed"):
        backends.resolve("triton_streaming", HIDDEN, ("torch", "triton_streaming"))


def test_an_operation_without_the_backend_says_so():
    with pytest.raises(BackendUnavailableError, match="this operation does not have it yet|triton is not installed"):
        linear_pairwise_jsd(torch.zeros(1, 2, 3), torch.zeros(5, 3), torch.ones(1, 2, 2), backend="triton_streaming")
