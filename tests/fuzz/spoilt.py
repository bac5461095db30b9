"""Everything that may be wrong with one argument of an operator, from its schema alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.fuzz import calls
from tests.fuzz.arguments import Arena
from tests.fuzz.calls import Call, same

# Operators of a shard of the vocabulary: a target of -1 is one that another shard has.
SHARDS = {
    "shard_sums",
    "shard_gradient_",
    "shard_count",
    "stream_shard_sums",
    "shard_products",
    "entries",
    "background",
}


class Spoilt(NamedTuple):
    what: str
    call: Call
    harmless: bool = False
    """It may be taken: one that gives a size or is longer than needed, or that is read with any strides."""


def spoilt(call: Call, name: str) -> Iterator[Spoilt]:
    """Copies of the call, each with another fault of the argument `name`."""
    value = call.arguments[name]
    if isinstance(value, Tensor):
        gives_sizes = name not in call.written or name == next(iter(call.arguments))
        for what, change, harmless in _tensors(value, name in call.written, gives_sizes, _middle(call, value)):
            wrong = call.copied()
            wrong.arguments[name] = change
            elsewhere = name == "target" and call.name in SHARDS and what.startswith("-1")
            yield Spoilt(what, wrong, harmless or elsewhere)
        if name in call.written:
            yield from _overlaps(call, name)
    elif value is not None and not isinstance(value, bool):
        numbers = (math.nan, math.inf, -math.inf, 1e300) if isinstance(value, float) else (-1,)
        for number in numbers:
            wrong = call.copied()
            wrong.arguments[name] = number
            yield Spoilt(str(number), wrong)


def _middle(call: Call, tensor: Tensor) -> int:
    """A place in the tensor that the call reads: entries may go on before and after its bags."""
    offsets = call.arguments.get("offsets")
    if offsets is None or tensor.numel() < offsets[-1]:
        return tensor.numel() // 2
    return int(offsets[0] + offsets[-1]) // 2


def _tensors(tensor: Tensor, written: bool, gives_sizes: bool, middle: int) -> Iterator[tuple[str, Tensor, bool]]:
    wide = tensor.is_floating_point() and tensor.dtype != torch.float64
    yield "dtype", tensor.to(torch.float64 if wide else torch.int16), False
    yield "device", tensor.to("meta"), False
    yield "one dimension more", tensor.clone()[None], False
    yield "no dimension", tensor.clone().flatten()[:1].sum().to(tensor.dtype), False
    if tensor.numel() == 0:
        return
    for dim in range(tensor.dim()):
        yield f"longer in dimension {dim}", torch.cat([tensor, tensor.narrow(dim, 0, 1)], dim), True
        yield f"shorter in dimension {dim}", tensor.narrow(dim, 0, tensor.shape[dim] - 1).clone(), gives_sizes
        yield f"empty in dimension {dim}", tensor.narrow(dim, 0, 0).clone(), gives_sizes
    if tensor.shape[-1] > 1:
        yield "elements apart", torch.stack([tensor, tensor], -1)[..., 0], not written
    if written and tensor.dim() > 1 and tensor.shape[0] > 1:
        yield "rows that overlap", tensor[:1].clone().expand_as(tensor), False
    if not written and not tensor.is_floating_point() and tensor.dtype != torch.bool:
        for number in (-1, torch.iinfo(tensor.dtype).max):
            wrong = tensor.clone()
            wrong.view(-1)[middle] = number
            yield f"{number} in the middle", wrong, False


def _overlaps(call: Call, name: str) -> Iterator[Spoilt]:
    """The other argument begins where the written one does, or in its last cache line."""
    for other, tensor in call.tensors.items():
        out = call.arguments[name]
        if other == name or not (tensor.is_contiguous() and out.is_contiguous() and tensor.numel() and out.numel()):
            continue
        for what, shift in (("first", 0), ("last", (out.nbytes - out.itemsize) // 64 * 64)):
            wrong = call.copied()
            memory = torch.zeros(shift + max(out.nbytes, tensor.nbytes) + 8, dtype=torch.uint8)
            memory[shift : shift + tensor.nbytes] = (
                tensor.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)
            )
            wrong.arguments[other] = memory[shift : shift + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            wrong.arguments[name] = memory[: out.nbytes].view(out.dtype).view(out.shape)
            yield Spoilt(f"memory of {other} from its {what} line on", wrong)


def check(call: Call, fault: Spoilt, name: str) -> None:
    """The faulty call raises an error that names an argument, before it has written; harmless ones may run."""
    words = f"{call.name} with {name}: {fault.what}"
    written = {other: fault.call.arguments[other].clone() for other in fault.call.written}
    try:
        fault.call()
    except RuntimeError as error:
        message = str(error).splitlines()[0]
        known = [argument for argument in call.arguments if argument in message]
        # A size that differs may be told of the argument that has another; those of a device come from PyTorch.
        expected = known if "dimension" in fault.what or fault.what == "device" else [name]
        assert fault.what == "device" or (known and set(expected) <= set(known)), f"{words}: said {message!r}"
        for other, tensor in written.items():
            now = fault.call.arguments[other]
            assert now.is_meta or same(now, tensor), f"{words}: raised, and had written {other}"
        return
    assert fault.harmless, f"{words}: taken"


def call(draw: Callable, arena: Arena, name: str, arguments: dict[str, Any]) -> bool:
    """Calls the operator; whether its results are to be looked at. Every fourth time an argument is wrong instead."""
    made = Call.of(calls.operators()[name], list(arguments.values()))
    made.arena = arena
    if draw(st.integers(0, 3)) or not spoil(draw, made):
        made()
        return True
    return False


def spoil(draw: Callable, made: Call) -> bool:
    """Has a random fault of a random argument raise; False if this argument has none."""
    argument = draw(st.sampled_from(list(made.arguments)))
    if not (faults := list(spoilt(made, argument))):
        return False
    check(made, draw(st.sampled_from(faults)), argument)
    return True
