"""CUDA operators on CPU tensors, for the tests that ask for them."""

from __future__ import annotations

import pytest

from mind_kernels import extension
from tests import cuda_emulator


@pytest.fixture(scope="session")
def operators():
    return cuda_emulator.operators()


@pytest.fixture
def emulated(monkeypatch, operators):
    monkeypatch.setattr(extension, "operators", {"cuda": operators}.__getitem__)
