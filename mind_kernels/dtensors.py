"""DTensor arguments: extracts this process's local tensors, and the process group that shares the head.

Supported is a head that torch.distributed.tensor has split over its vocabulary (`Shard(0)`, by ColwiseParallel of
parallelize_module), with hidden states that are a DTensor too. The hidden states are gathered whole. Their gradient is
returned as each process's part (`Partial`), and the DTensor sums the parts as its placement requires: by an all-reduce,
or with sequence parallelism by a reduce-scatter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mind_kernels import shards
from mind_kernels.head import Head
from mind_kernels.shards import Group

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


P = ParamSpec("P")
R = TypeVar("R")


def errors_reach_all(operation: Callable[P, R]) -> Callable[P, R]:
    """Wraps an operation on (hidden, weight, ..., process_group=), so that no process waits forever if another refuses
    an argument: all processes that share the head then raise an error."""

    @functools.wraps(operation)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return operation(*args, **kwargs)
        named = dict(zip(("hidden", "weight"), args, strict=False)) | kwargs
        weight = named.get("weight")
        weight = weight.weight if isinstance(weight, Head) else weight
        group = _waiting(weight, named.get("process_group"))
        if group is None:
            return operation(*args, **kwargs)
        with shards.reporting_errors(group, named.get("hidden"), weight):
            return operation(*args, **kwargs)

    return call


def _waiting(weight: object, process_group: object) -> ProcessGroup | None:
    """The group whose processes would wait for this one, given arguments that may be wrong; None if there is none."""
    if is_dtensor(weight):
        split = [place for place, placement in enumerate(weight.placements) if not placement.is_replicate()]
        return weight.device_mesh.get_group(split[0]) if len(split) == 1 else None
    if isinstance(process_group, Group):
        return shards.process_group_of(process_group)
    return process_group if isinstance(process_group, dist.ProcessGroup) else None


def local(hidden: Tensor, head: Head, process_group: ProcessGroup | None) -> tuple[Tensor, Head, Group | None]:
    """Hidden states and head as plain tensors, and the group that shares the head; None if the head is whole.

    Raises ValueError for DTensors without such a group; the message says what to pass instead.
    """
    group = shards.group_of(process_group)
    weight = head.weight
    if not is_dtensor(weight):
        if is_dtensor(hidden):
            raise ValueError(
                "hidden is a DTensor and weight a plain tensor: expected both to be DTensors, or pass hidden.to_local()"
            )
        return hidden, head, None if group is None else group.with_gradients(hidden, head)
    if group is not None:
        raise ValueError("process_group: expected none beside a DTensor as weight, which has its own")
    mesh = weight.device_mesh
    split = _split_dimension(weight)
    if not is_dtensor(hidden):
        raise ValueError(_plain_hidden(weight, split))
    if hidden.device_mesh != mesh:
        raise ValueError(f"hidden is on {hidden.device_mesh} and weight on {mesh}: expected the same device mesh")
    if head.bias is not None and not (is_dtensor(head.bias) and head.bias.placements == weight.placements):
        raise ValueError(f"bias: expected a DTensor with the placements of weight, {weight.placements}")

    from torch.distributed.tensor import Partial, Replicate

    replicated = [Replicate()] * mesh.ndim
    of_gradient: list[Any] = list(replicated)
    if split is not None:
        of_gradient[split] = Partial()
        found = mesh.get_group(split)
        if found.rank() != mesh.get_local_rank(split):
            raise ValueError(f"weight: expected ranks in increasing order along mesh dimension {_name(weight, split)}")
        group = Group(found.group_name, sum_hidden=False).with_gradients(hidden, head)
    if hidden.placements != tuple(replicated):  # else its backward pass would sum the parts
        hidden = hidden.redistribute(placements=replicated)
    whole = hidden.to_local(grad_placements=of_gradient)
    bias = head.bias.to_local() if is_dtensor(head.bias) else None
    return whole, replace(head, weight=weight.to_local(), bias=bias), group


def whole(value: Any) -> Any:
    """A constant of the loss, gathered whole in every process if it is a DTensor; anything else unchanged."""
    return value.full_tensor() if is_dtensor(value) else value


def is_dtensor(value: object) -> TypeIs[DTensor]:
    """Whether the value is a DTensor; does not import torch.distributed.tensor if nobody has."""
    if not (isinstance(value, Tensor) and hasattr(value, "full_tensor")):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def _split_dimension(weight: DTensor) -> int | None:
    """The mesh dimension over which the vocabulary is split; None if every process has the whole head."""
    from torch.distributed.tensor import Shard

    split = [place for place, placement in enumerate(weight.placements) if not placement.is_replicate()]
    for place in split:
        if weight.placements[place] != Shard(0):
            raise ValueError(
                f"weight is {weight.placements[place]} over mesh dimension {_name(weight, place)}: expected Shard(0), "
                "a split of the vocabulary, or Replicate()"
            )
    if len(split) > 1:
        names = " and ".join(_name(weight, place) for place in split)
        raise ValueError(
            f"weight is split over mesh dimensions {names}: expected one. Inside the forward pass of its module FSDP "
            "has gathered its part"
        )
    return split[0] if split else None


def _plain_hidden(weight: DTensor, split: int | None) -> str:
    if split is None:
        return (
            "weight is a DTensor that every process has whole and hidden is a plain tensor: pass weight.to_local() if "
            "every process has the same rows, or weight.to_local(grad_placements=[Partial()]) if each has its own"
        )
    name = _name(weight, split)
    return (
        f"weight is split over mesh dimension {name} and hidden is a plain tensor: pass "
        f"process_group=weight.device_mesh.get_group({name}) and weight.to_local() if every process has the same rows "
        "(tensor parallelism), or compute the loss inside the module's forward pass / by "
        "weight.full_tensor(grad_placements=[Partial('avg')]) if each has its own (FSDP)"
    )


def _name(weight: DTensor, place: int) -> str:
    """The name or number of a mesh dimension, as an argument for `get_group`."""
    names = weight.device_mesh.mesh_dim_names
    return repr(names[place]) if names else str(place)
