"""Fixtures: threads, tuning tables, what stands for the operators of a library; and a faster interpreter of Triton."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import interpreted
from implementations import Implementation

from mind_kernels import backend, extension, tuning
from mind_kernels.backend import BACKENDS
from tests import cuda_emulator, fast_interpreter


@pytest.fixture
def threads():
    """Sets how many threads there are, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """An empty folder of tuning tables; what was read before is forgotten."""
    monkeypatch.setenv("MIND_KERNELS_TUNING", str(tmp_path))
    monkeypatch.delenv("MIND_KERNELS_BACKEND", raising=False)
    for remembered in (tuning._read, backend._usable, backend._say_unused):
        remembered.cache_clear()
    yield tmp_path
    tuning._read.cache_clear()


@pytest.fixture(scope="session")
def operators():
    return cuda_emulator.operators()


@pytest.fixture
def emulated(monkeypatch, operators):
    """CUDA operators on CPU tensors."""
    monkeypatch.setattr(extension, "operators", lambda library: operators)


@pytest.fixture
def implementation(request, monkeypatch) -> Iterator[Implementation]:
    """The implementation that a test has for a parameter, made ready."""
    chosen = request.param
    if chosen.unavailable:
        pytest.skip(chosen.unavailable)
    if chosen.emulated:
        operators = cuda_emulator.operators()
        monkeypatch.setattr(extension, "operators", lambda library: operators)
    if not chosen.capability:
        yield chosen
        return
    before = extension.capability()
    extension.use_capability(chosen.capability)
    yield chosen
    extension.use_capability(before)


@pytest.fixture(scope="session", autouse=True)
def language_patched_once():
    """See tests/fast_interpreter.py."""
    with pytest.MonkeyPatch.context() as patch:
        if BACKENDS["triton"].availability().available and interpreted("triton"):
            for replacement in fast_interpreter.replacements():
                patch.setattr(*replacement)
        yield
