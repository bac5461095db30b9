"""What stands for the operators of a library, for the tests that ask for it; a faster interpreter of Triton."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from cases import interpreted
from implementations import Implementation

from mind_kernels import extension
from tests import cuda_emulator


@pytest.fixture
def threads():
    """Sets how many threads there are, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


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
    """Triton's interpreter replaces the functions of triton.language again whenever a kernel calls a function, which is
    half of its time: here once per launch. A version of Triton that does this elsewhere takes as long as it takes."""
    interpreter = pytest.importorskip("triton.runtime.interpreter") if interpreted("triton") else None
    if not hasattr(interpreter, "_patch_lang"):
        yield
        return
    patch, patched = interpreter._patch_lang, set()

    @functools.cache
    def languages(function):
        known = (interpreter.tl, interpreter.tl.core)
        return {id(module) for module in function.__globals__.values() if any(module is language for language in known)}

    def patch_once(function):
        if languages(function) <= patched:
            return interpreter._LangPatchScope()  # of a function within a launch, which nobody restores
        scope, first = patch(function), not patched
        patched.update(languages(function))
        if first:
            restore = scope.restore
            scope.restore = lambda: (patched.clear(), restore())
        return scope

    interpreter._patch_lang = patch_once
    yield
    interpreter._patch_lang = patch
