"""Support for LM heads that tensor parallelism has split over the vocabulary.

transformers' tensor parallelism sets a forward pass on the head, which expects the same hidden states in all processes.
PyTorch's `parallelize_module` adds hooks around the head's forward pass, which pass DTensors to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mind_kernels.dtensors import is_dtensor
from mind_kernels.shards import Group

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_OF_TRANSFORMERS = "transformers.distributed."


def tensor_parallel_forward(head: nn.Module) -> Callable[..., Tensor] | None:
    """The forward pass that transformers' tensor parallelism has set on the head; None if it has set none."""
    forward = vars(head).get("forward")
    return forward if getattr(forward, "__module__", "").startswith(_OF_TRANSFORMERS) else None


def part_of(group: ProcessGroup) -> Any:
    """An argument `process_group` with which each process gets only its rows' part of the gradient of the hidden
    states; the caller has to sum the parts."""
    return Group(group.group_name, sum_hidden=False)


def same_in_all(tensor: Tensor, mesh: Any) -> Tensor:
    """Converts a plain tensor that is the same in all processes of the mesh to a replicated DTensor, differentiably."""
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)


@contextmanager
def gathered_outputs(head: Any) -> Iterator[None]:
    """A context in which the head returns whole outputs in every process, whatever its plan says."""

    def gather(module: Any, inputs: Any, output: Any) -> Any:
        if is_dtensor(output):
            return output.full_tensor()
        weight = getattr(module, "weight", None)
        if not is_dtensor(weight) or output.shape[-1] == weight.shape[0]:
            return output
        from torch.distributed.tensor import DTensor, Shard

        shape = torch.Size((*output.shape[:-1], weight.shape[0]))
        stride = output.new_empty(shape, device="meta").stride()
        place = [Shard(output.dim() - 1)]
        whole = DTensor.from_local(output, weight.device_mesh, place, run_check=False, shape=shape, stride=stride)
        return whole.full_tensor()

    handle = head.register_forward_hook(gather)
    try:
        yield
    finally:
        handle.remove()
