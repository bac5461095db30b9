"""The compiled kernels under test: the CPU library with each of its instruction sets, and the CUDA library in the
emulator of tests/cuda_emulator, on CPU tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from mind_kernels import extension
from mind_kernels.linear_cross_entropy.compiled_rows import CompiledRows
from mind_kernels.linear_cross_entropy.streamed_rows import StreamedRows
from mind_kernels.linear_pairwise_jsd.compiled_groups import CompiledGroups
from tests import cuda_emulator

NAMES = ("cpp-baseline", "cpp-avx2", "cpp-avx512", "emulated")


@dataclass(frozen=True)
class Compiled:
    """What a library offers: its operators, and the kernels of rows and of groups that are made of them."""

    operators: Callable[[], Any]
    rows: CompiledRows  # see RowKernels in contract.py
    groups: CompiledGroups  # see GroupKernels in contract.py


class _EmulatedRows(CompiledRows):
    @property
    def operators(self) -> Any:
        return cuda_emulator.operators()


class _EmulatedGroups(CompiledGroups):
    @property
    def operators(self) -> Any:
        return cuda_emulator.operators()


EMULATED = Compiled(cuda_emulator.operators, _EmulatedRows("cuda"), _EmulatedGroups("cuda"))
CPP = Compiled(partial(extension.operators, "cpp"), StreamedRows("cpp"), CompiledGroups("cpp"))


@contextmanager
def compiled(name: str) -> Iterator[Compiled]:
    """The one of `NAMES`; skips the test if this machine does not have it (test_backend.py fails without any `cpp`)."""
    reason = cuda_emulator.UNAVAILABLE if name == "emulated" else extension.unavailable("cpp")
    if reason:
        pytest.skip(reason)
    if name == "emulated":
        yield EMULATED
        return
    before = extension.capability()
    try:
        extension.use_capability(name.removeprefix("cpp-"))
    except RuntimeError as error:
        pytest.skip(str(error))
    yield CPP
    extension.use_capability(before)
