"""Runs a module as on a CUDA device, on a machine without one: what `bench/on_gpu.sh --dry` puts before each command.

    python -m bench.rehearsal -m bench.linear_cross_entropy --device cuda

Every tensor lies on the CPU and says that it is on "cuda:0", so that all Python code takes the branches of a GPU:
Triton kernels run in the interpreter, those of csrc/cuda in the tests' emulator, products into float32 from half
precision, generators, events, pinned memory and memory statistics are stood in for. The benchmarks' heads, row counts
and student are tiny. What only a GPU can show is whether the kernels compile and compute there, and how fast.
"""

from __future__ import annotations

import functools
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

NAME = "no GPU: a rehearsal on the CPU"
DEVICE = torch.device("cuda", 0)
CAPABILITY = (9, 0)
FREE = 64 << 30  # bytes of its memory

# What makes tensors on a device that an argument names.
_FACTORIES = (
    *("arange", "as_tensor", "asarray", "empty", "empty_like", "empty_strided", "eye", "full", "full_like", "linspace"),
    *("ones", "ones_like", "rand", "rand_like", "randint", "randn", "randn_like", "randperm", "scalar_tensor"),
    *("tensor", "tril_indices", "triu_indices", "zeros", "zeros_like"),
)
_METHODS = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros", "to")


def _here(value: Any) -> Any:
    """The CPU in place of a CUDA device; everything else as it is."""
    if isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cuda")):
        return torch.device("cpu") if torch.device(value).type == "cuda" else value
    return value


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, on the CPU if it is called for a CUDA device."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        options.pop("pin_memory", None)
        return function(*map(_here, arguments), **{name: _here(value) for name, value in options.items()})

    return call


def _wide(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.mm or torch.addmm with `out_dtype`, which a CPU does not have."""

    @functools.wraps(function)
    def call(*arguments: Any, out_dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        if out_dtype is not None:
            arguments = tuple(value.to(out_dtype) if isinstance(value, Tensor) else value for value in arguments)
        return function(*arguments, **options)

    return call


def _widened_dot(create_dot: Callable[..., Any]) -> Callable[..., Any]:
    """Triton's interpreter has bfloat16 as integers, and multiplies those."""
    import numpy
    import triton.language
    from triton.runtime.interpreter import TensorHandle

    def widened(handle: Any) -> Any:
        if str(handle.dtype.scalar) != "bf16":
            return handle
        bits = handle.data.view(numpy.uint16).astype(numpy.uint32) << 16
        return TensorHandle(bits.view(numpy.float32), triton.language.float32)

    return lambda builder, a, b, *rest: create_dot(builder, widened(a), widened(b), *rest)


class _Generator(torch.Generator):
    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls, _here(device))  # pyright: ignore[reportCallIssue]


class _Event:
    """An event, which has happened as soon as it is recorded."""

    def __init__(self, **_: Any) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...


def _ignored(*_: Any, **__: Any) -> None: ...


def _returns(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _stand_in_for_cuda() -> Iterator[tuple[Any, str, Any]]:
    """(where, name, what is to stand there)"""
    for name in _FACTORIES:
        yield torch, name, _on_cpu(getattr(torch, name))
    for name in _METHODS:
        yield Tensor, name, _on_cpu(getattr(Tensor, name))
    yield torch, "mm", _wide(torch.mm)
    yield torch, "addmm", _wide(torch.addmm)
    yield torch, "Generator", _Generator
    yield Tensor, "is_cuda", property(lambda tensor: not tensor.is_meta)
    yield Tensor, "device", property(lambda tensor: torch.device("meta") if tensor.is_meta else DEVICE)
    major, minor = CAPABILITY
    properties = SimpleNamespace(name=NAME, major=major, minor=minor, multi_processor_count=4, total_memory=FREE)
    cuda = {
        "is_available": _returns(True),
        "is_initialized": _returns(True),
        "device_count": _returns(1),
        "current_device": _returns(0),
        "get_device_name": _returns(NAME),
        "get_device_capability": _returns(CAPABILITY),
        "get_device_properties": _returns(properties),
        "is_bf16_supported": _returns(True),
        "mem_get_info": _returns((FREE, FREE)),
        "memory_allocated": _returns(0),
        "memory_reserved": _returns(0),
        "max_memory_allocated": _returns(1 << 20),
        "reset_peak_memory_stats": _ignored,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "is_current_stream_capturing": _returns(False),
        "set_sync_debug_mode": _ignored,
        "synchronize": _ignored,
        "Event": _Event,
    }
    for name, value in cuda.items():
        yield torch.cuda, name, value


def _stand_in_for_kernels() -> Iterator[tuple[Any, str, Any]]:
    """The library of csrc/cuda, in the emulator."""
    from mind_kernels import extension
    from tests import cuda_emulator, fast_interpreter

    problem, operators = extension._problem, extension.operators
    yield extension, "_problem", lambda library: ("", "") if library == "cuda" else problem(library)
    yield extension, "architectures", _returns(["sm_90a"])
    try:
        from triton.runtime.interpreter import InterpreterBuilder
    except ImportError:  # without Triton its backends are not there either
        return
    yield from fast_interpreter.replacements()
    yield InterpreterBuilder, "create_dot", _widened_dot(InterpreterBuilder.create_dot)
    yield (
        extension,
        "operators",
        lambda library: cuda_emulator.operators() if library == "cuda" else operators(library),
    )


def _stand_in_for_sizes() -> Iterator[tuple[Any, str, Any]]:
    """Shapes that the interpreter and the emulator compute in seconds: the product that is measured, heads, student."""
    from bench import measure
    from bench.comparison import heads
    from bench.linear_mind_loss import inputs as mind_inputs
    from bench.linear_pairwise_jsd import inputs as group_inputs
    from bench.training_step import models
    from mind_kernels import sparse_gradient
    from mind_kernels.commands import check, tune

    yield sparse_gradient, "_DENSITY_LIMIT", dict.fromkeys(sparse_gradient._DENSITY_LIMIT, 1.0)
    yield sparse_gradient, "_MASS_LIMIT", 1.0  # few entries are many of a small vocabulary
    yield heads, "real_or_label", _returns((None, heads.SYNTHETIC))
    cases = tune.first_cases()
    yield tune, "first_cases", _returns(dict(list(cases.items())[:1]))
    for module in (group_inputs, mind_inputs):
        yield module, "PERSPECTIVES", 3
    yield measure, "SQUARE", dict.fromkeys(measure.SQUARE, 256)
    heads.HEADS.update(dict.fromkeys(heads.HEADS, heads.Head(128, 16)))
    models.QWEN.update(vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    models.QWEN.update(num_attention_heads=2, num_key_value_heads=1)
    for name, case in check.CASES.items():
        few = case.settings[-1:] if case.form == "sparse" else (((9, 7, 31), 4.0, 0.7),)
        check.CASES[name] = replace(case, settings=few)


def begin() -> None:
    """From here on device "cuda" is there, in name, until the process ends."""
    for stand_in in (_stand_in_for_cuda, _stand_in_for_kernels, _stand_in_for_sizes):
        for where, name, value in list(stand_in()):
            setattr(where, name, value)


def main(arguments: list[str]) -> None:
    if len(arguments) < 2 or arguments[0] != "-m":
        raise SystemExit(f"usage: {(__doc__ or '').splitlines()[2].strip()}")
    os.environ["TRITON_INTERPRET"] = "1"
    sys.argv = arguments[1:]
    begin()
    runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
