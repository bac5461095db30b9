"""Checks of arguments: each error names the argument, its value, and the values that are expected.

`*_arguments` look at metadata only, so they work under torch.compile too. `values` reads the data; on a GPU that would
stall the stream, so there the check is a device-side assertion.
"""

from __future__ import annotations

import math
import reprlib

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from mind_kernels.derivatives import unsupported
from mind_kernels.head import Head, under_autocast

REDUCTIONS = ("mean", "sum", "none")
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_FLOAT32 = torch.finfo(torch.float32)
_HELD = {"weight": "weight", "bias": "bias", "hidden": "last_hidden_state"}
"""Attributes that hold the tensor if its owner is passed by mistake, such as model.lm_head for model.lm_head.weight."""
_OPTIONAL = ("bias", "teacher_bias", "teacher_mask", "mask", "segment")


def tensors(**arguments: Tensor | None) -> None:
    """Raises TypeError for an argument that is no dense tensor of this process; one of `_OPTIONAL` may be None."""
    for name, value in arguments.items():
        if value is None and name in _OPTIONAL:
            continue
        if not isinstance(value, Tensor):
            held = _HELD.get(name.removeprefix("teacher_"), "")
            such = f", such as its .{held}" if isinstance(getattr(value, held, None), Tensor) else ""
            raise TypeError(f"{name} is a {type(value).__name__}: expected a torch.Tensor{such}")
        if value.is_nested:
            raise TypeError(
                f"{name} is a nested tensor: expected one whose rows follow each other, such as its .values()"
            )
        if value.layout != torch.strided:
            raise TypeError(f"{name} has layout {value.layout}: expected torch.strided")
        if hasattr(value, "full_tensor"):
            raise TypeError(
                f"{name} is a DTensor: expected a tensor that this process holds whole. Compute the loss in the head's "
                "forward pass, for which FSDP gathers it, as mind_kernels.integrations.transformers.fuse does; "
                f"{name}.full_tensor() would leave out the gradients of the other processes"
            )


def constants(**arguments: Tensor | None) -> None:
    """Raises ValueError for a constant of the loss that requires a gradient, since it would silently get none."""
    compiling = torch.compiler.is_compiling()
    for name, value in arguments.items():
        if value is None:
            continue
        dual = not compiling and forward_ad.unpack_dual(value).tangent is not None
        if dual or (torch.is_grad_enabled() and value.requires_grad):
            raise ValueError(f"{name} requires a gradient: it is a constant of the loss, pass {name}.detach()")


def reads_values(operation: str, hidden: Tensor) -> None:
    """Raises RuntimeError if hidden has no values (fake or meta), for a definition that selects rows by values."""
    if hidden.is_meta or isinstance(hidden, FakeTensor):
        raise unsupported(operation, "tensors without values", "backend 'reference'", "backend='torch'")


def number(name: str, value: float | None, or_else: str = "") -> None:
    """Raises TypeError for a tensor, which would silently get no gradient, and for anything else that is neither None
    nor a number. `or_else`, such as " or a torch.Tensor (N,)", completes the message."""
    if isinstance(value, Tensor):
        raise TypeError(f"{name} is a tensor: expected a number, a constant of the loss; pass {name}.item()")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} is {value}: expected a number of at most 64 bits")
    if value is None or isinstance(value, (int, float)):  # the only checks that work in a graph
        return
    if not hasattr(value, "__float__") or hasattr(value, "__len__"):  # an array has both
        raise TypeError(f"{name} is {_said(value)}: expected a number{or_else}")


def finite(name: str, value: float) -> None:
    """Raises TypeError as `number` does, and for None; ValueError for nan and infinity."""
    number(name, value)
    if value is None:
        raise TypeError(f"{name} is None: expected a number")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} is {value}: expected a finite number")


def integer(name: str, value: int) -> None:
    """Raises TypeError unless `value` is an integer, ValueError for one that int64 does not hold."""
    if isinstance(value, bool):  # which PyTorch takes for an integer in some functions only
        raise TypeError(f"{name} is {value}: expected an integer")
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{name} is {value}: expected an integer of at most 64 bits")
    elif not hasattr(value, "__index__") or hasattr(value, "__len__"):  # an array or a tensor has both
        raise TypeError(f"{name} is {_said(value)}: expected an integer")


def flag(name: str, value: bool) -> None:
    """Raises TypeError unless `value` is True or False, or 1 or 0."""
    if not isinstance(value, int):
        raise TypeError(f"{name} is {_said(value)}: expected True or False")


def _said(value: object) -> str:
    """A value for an error message, in one line, even if it is a long list or an array."""
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__} of shape {tuple(shape)}" if shape else " ".join(reprlib.repr(value).split())


def shape(name: str, tensor: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    """Raises ValueError unless `tensor` has the `expected` shape, explained by `meaning` such as "(N, D)"."""
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected {meaning} = {expected}")


def dimensions(name: str, tensor: Tensor, meaning: str) -> None:
    """Raises ValueError unless `tensor` has as many dimensions as `meaning`, such as "(N, D)", names; at least as many,
    if it is "(..., D)"."""
    count, least = meaning.count(",") + 1, "..." in meaning
    if tensor.dim() < count or (tensor.dim() > count and not least):
        expected = f"at least {count}" if least else f"{count}"
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected {expected} dimensions {meaning}")


def row_meaning(hidden: Tensor, last: str = "") -> str:
    """The shape, as text, of a tensor with one entry, or `last` entries, per row of hidden (..., D)."""
    leading = "N" if hidden.dim() == 2 else "..."
    return f"({leading}, {last})" if last else f"({leading},)" if leading == "N" else "(...)"


def device(name: str, tensor: Tensor, like: Tensor, *, or_cpu: bool = False) -> None:
    """Raises ValueError unless `tensor` is on the device of `like` (or, where allowed, on the CPU)."""
    if tensor.device != like.device and not (or_cpu and tensor.device.type == "cpu"):
        raise ValueError(f"{name} is on {tensor.device}: expected {like.device}, where hidden is")


def integers(name: str, tensor: Tensor) -> None:
    """Raises TypeError unless `tensor` is int64 or int32."""
    if tensor.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} has dtype {tensor.dtype}: expected torch.int64 or torch.int32")


def positive(name: str, value: float | None) -> None:
    """Raises ValueError unless `value` is None or a finite number above zero that float32 holds."""
    number(name, value)
    if value is None:
        return
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}: expected a positive finite number")
    if not _FLOAT32.tiny <= value <= _FLOAT32.max:
        raise ValueError(f"{name} is {value}: expected {_FLOAT32.tiny:.2g} to {_FLOAT32.max:.2g}, as in float32")


def probability(name: str, value: float | None) -> None:
    """Raises ValueError unless `value` is None or inside (0, 1)."""
    number(name, value)
    if value is not None and not 0.0 < value < 1.0:
        raise ValueError(f"{name} is {value}: expected None or a probability in (0, 1)")


def head_arguments(
    hidden: Tensor, head: Head, meaning: str, owner: str = "", *, or_empty: bool = False
) -> tuple[Tensor, Head]:
    """Hidden states and their head, in autocast's dtype if it is on; checked.

    Raises TypeError or ValueError unless hidden has the dimensions of `meaning`, such as "(N, D)", and the head's
    weight (V, D) and bias (V,) fit it: one floating dtype, one device; and for a scalar of the head out of range.
    `owner`, such as "teacher_", is the prefix of the names in messages. `or_empty`: the head may have no vocabulary
    entries, as a shard may.
    """
    tensors(**{f"{owner}hidden": hidden, f"{owner}weight": head.weight, f"{owner}bias": head.bias})
    hidden, head = under_autocast(hidden, head)
    weight, bias = head.weight, head.bias
    dimensions(f"{owner}hidden", hidden, meaning)
    dimensions(f"{owner}weight", weight, "(V, D)")
    if hidden.dtype not in _FLOATS:
        raise TypeError(f"{owner}hidden has dtype {hidden.dtype}: expected one of {', '.join(map(str, _FLOATS))}")
    if hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{owner}hidden has shape {tuple(hidden.shape)} and {owner}weight {tuple(weight.shape)}: "
            "expected the same hidden size D in the last dimension of both"
        )
    if weight.shape[0] == 0 and not or_empty:
        raise ValueError(f"{owner}weight has shape {tuple(weight.shape)}: expected at least one vocabulary entry")
    for name, tensor in ((f"{owner}weight", weight), (f"{owner}bias", bias)):
        if tensor is None:
            continue
        device(name, tensor, hidden)
        if tensor.dtype != hidden.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}: expected {hidden.dtype}, the dtype of {owner}hidden")
    if bias is not None:
        shape(f"{owner}bias", bias, (weight.shape[0],), "(V,)")
    positive(f"{owner}softcap", head.softcap)
    positive(f"{owner}temperature", head.temperature)
    if head.temperature is None:
        raise TypeError(f"{owner}temperature is None: expected a positive finite number")
    return hidden, head


def row_arguments(
    hidden: Tensor,
    target: Tensor,
    row_weight: Tensor | None,
    segment: Tensor | None,
    num_segments: int | None,
    ignore_index: int,
) -> None:
    """Checks target, row_weight and segment, all (...), against hidden (..., D)."""
    target_argument(target, hidden, ignore_index)
    tensors(segment=segment)
    rows = tuple(hidden.shape[:-1])
    row_weight_argument(row_weight, hidden)
    if (segment is None) != (num_segments is None):
        raise ValueError("segment and num_segments: expected both or neither")
    if segment is not None:
        shape("segment", segment, rows, row_meaning(hidden))
        integers("segment", segment)
        device("segment", segment, hidden, or_cpu=True)
        assert num_segments is not None  # as segment is not
        integer("num_segments", num_segments)
        if num_segments < 1:
            raise ValueError(f"num_segments is {num_segments}: expected at least 1")


def target_argument(target: Tensor, hidden: Tensor, ignore_index: int, *, or_list: bool = False) -> None:
    """Checks target (...), or if allowed (..., K), against hidden (..., D), and ignore_index."""
    tensors(target=target)
    rows = tuple(hidden.shape[:-1])
    if or_list and target.dim() == hidden.dim():
        if tuple(target.shape[:-1]) != rows or target.shape[-1] == 0:
            expected = f"{row_meaning(hidden, 'K')} = ({', '.join(map(str, rows))}, K) with K at least 1"
            raise ValueError(f"target has shape {tuple(target.shape)}: expected {expected}")
    else:
        shape("target", target, rows, f"{row_meaning(hidden, 'K')} or " * or_list + row_meaning(hidden))
    integers("target", target)
    device("target", target, hidden, or_cpu=True)
    integer("ignore_index", ignore_index)


def row_weight_argument(row_weight: Tensor | None, hidden: Tensor) -> None:
    """Checks row_weight (...), which may be absent, against hidden (..., D)."""
    if row_weight is not None:
        tensors(row_weight=row_weight)
        shape("row_weight", row_weight, tuple(hidden.shape[:-1]), row_meaning(hidden))
        constant_weight("row_weight", row_weight, hidden)


def constant_weight(name: str, weight: Tensor, hidden: Tensor) -> None:
    """Raises ValueError or TypeError unless `weight` is floating, on the device of hidden, and without a gradient."""
    device(name, weight, hidden)
    if weight.dtype not in _FLOATS:
        raise TypeError(f"{name} has dtype {weight.dtype}: expected one of {', '.join(map(str, _FLOATS))}")
    constants(**{name: weight})


def reduction(name: str) -> None:
    """Checks the name of a reduction."""
    if name not in REDUCTIONS:
        raise ValueError(f"reduction is {name!r}: expected one of {', '.join(map(repr, REDUCTIONS))}")


def values(condition: Tensor, message: str, found: Tensor | None = None) -> None:
    """Raises ValueError with `message`, and the first wrong value of `found`, unless every entry of `condition` holds;
    on a GPU, asserts on the device."""
    whole = _under_transforms(condition)
    if not _readable(whole):
        torch._assert_async(whole.all(), message)  # pyright: ignore[reportPrivateImportUsage]
    elif not bool(whole.all()):
        # Under vmap the first dimension may be that of the examples.
        raise ValueError(message if found is None or whole is not condition else message + _first(found, condition))


def _readable(tensor: Tensor) -> bool:
    """Whether the host may read the values: not on a GPU, not in a graph, and not if they are fake."""
    if tensor.device.type != "cpu" or type(tensor) is not Tensor or torch.compiler.is_compiling():
        return False
    # make_fx, which torch.func.linearize uses, traces tensors that look like ordinary ones.
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is None


def _under_transforms(tensor: Tensor) -> Tensor:
    """The tensor inside the wrappers of torch.func's transforms; for vmap, the one that holds all examples."""
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    if not torch.compiler.is_compiling():
        while functorch.is_functorch_wrapped_tensor(tensor):
            tensor = functorch.get_unwrapped(tensor)
    return tensor


def row_values(target: Tensor, ignore_index: int, vocabulary: int, segment: Tensor | None, num_segments: int) -> None:
    """Checks that targets lie in [0, V) or equal ignore_index, and segments in [0, S)."""
    inside = ((target >= 0) & (target < vocabulary)) | (target == ignore_index)
    values(inside, f"target: expected values in [0, {vocabulary}) or ignore_index {ignore_index}", target)
    segment_values(segment, num_segments)


def segment_values(segment: Tensor | None, num_segments: int) -> None:
    """Checks that segments, which may be absent, lie in [0, S)."""
    if segment is not None:
        inside = (segment >= 0) & (segment < num_segments)
        values(inside, f"segment: expected values in [0, {num_segments})", segment)


def _first(found: Tensor, condition: Tensor) -> str:
    value = found[~condition][0].item()
    said = f"{value:.6g}" if found.is_floating_point() else f"{value}"
    return f", got {said} in row {int((~condition).nonzero()[0, 0])}"
