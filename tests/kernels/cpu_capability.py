"""The CPU library with another instruction set than a process chooses: its operators in a process that must.

    python tests/kernels/cpu_capability.py

answers calls of operators on its standard input until that ends; MIND_KERNELS_CPU_CAPABILITY names the instruction set.
"""

from __future__ import annotations

import atexit
import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mind_kernels import extension

ORDER = ("baseline", "avx2", "avx512")  # each needs a processor that has the ones before it


def others() -> tuple[str, ...]:
    """The instruction sets below the one that this process has chosen; none if the variable made the choice."""
    if "MIND_KERNELS_CPU_CAPABILITY" in os.environ:
        return ()
    extension.operators("cpu")
    return ORDER[: ORDER.index(extension.capability())]


@functools.cache
def operators(capability: str) -> _Operators:
    """The operators of the library for this instruction set, for CPU tensors of this process."""
    return _Operators(capability)


class _Operators:
    """An operator returns nothing and writes to its arguments, so their memory is copied there and back."""

    def __init__(self, capability: str) -> None:
        variables = {"MIND_KERNELS_CPU_CAPABILITY": capability, "PYTHONPATH": str(Path(__file__).parents[2])}
        process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        atexit.register(process.kill)
        assert process.stdin is not None and process.stdout is not None
        self._to, self._from = process.stdin, process.stdout
        found = pickle.load(self._from)
        assert found == capability, f"the process chose {found}: expected {capability}"

    def __getattr__(self, operator: str) -> Callable[..., None]:
        return functools.partial(self._call, operator)

    def _call(self, operator: str, *arguments: Any) -> None:
        _send((operator, arguments), self._to)
        error, written = pickle.load(self._from)
        if error:
            raise RuntimeError(error)
        for mine, theirs in zip(arguments, written, strict=True):
            if isinstance(mine, torch.Tensor):
                mine.untyped_storage().copy_(theirs.untyped_storage())


def _send(message: Any, file: Any) -> None:
    pickle.dump(message, file)
    file.flush()


def _serve() -> None:
    library = extension.operators("cpu")
    _send(extension.capability(), sys.stdout.buffer)
    while True:
        try:
            operator, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        error = ""
        try:
            getattr(library, operator)(*arguments)
        except RuntimeError as raised:
            error = str(raised)
        _send((error, arguments), sys.stdout.buffer)


if __name__ == "__main__":
    _serve()
