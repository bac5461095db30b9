"""LM heads that tensor parallelism has split over the vocabulary: what each process computes its loss from.

transformers' tensor parallelism sets a forward pass on the head, which takes the hidden states for the same in all
processes. PyTorch's `parallelize_module` has hooks around the head's forward pass, which hand it DTensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from mind_kernels.shards import Group

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_OF_TRANSFORMERS = "transformers.distributed."


class LocalHead(NamedTuple):
    """What `linear_cross_entropy` and `linear_log_prob` take of one process, by the names of their arguments."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    process_group: ProcessGroup | None


def tensor_parallel_forward(head: nn.Module) -> Callable[..., Tensor] | None:
    """The forward pass that transformers' tensor parallelism has set on the head; None if it has set none."""
    forward = vars(head).get("forward")
    return forward if getattr(forward, "__module__", "").startswith(_OF_TRANSFORMERS) else None


def is_split(tensor: Tensor) -> bool:
    """Whether processes share the tensor: a DTensor, which needs torch.distributed to be told by its class."""
    return hasattr(tensor, "full_tensor")


def part_of(group: ProcessGroup) -> Any:
    """An argument `process_group` that leaves the gradient of the hidden states in parts, one of each process's rows of
    the head, for a caller who sums them."""
    return Group(group.group_name, sum_hidden=False)


def local_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, *, same_rows: bool = False) -> LocalHead:
    """What this process computes the loss from, differentiable.

    Args:
        hidden: (..., D), a DTensor if the weight is one.
        weight: (V, D): a tensor, or a DTensor that is split over its rows (tensor parallelism).
        bias: (V,) or None, placed as the weight is.
        same_rows: plain hidden states are the same in all processes of the weight's group.

    Raises:
        ValueError: a DTensor that is split otherwise, and plain hidden states, unless they are the same in all
            processes: each may have its own, as under FSDP, which then did not gather the head.
    """
    if not is_split(weight):
        return LocalHead(hidden, weight, bias, None)
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    assert isinstance(weight, DTensor)
    mesh, placements = weight.device_mesh, weight.placements
    if placements not in ((Shard(0),), (Replicate(),)):
        raise ValueError(
            f"the LM head's weight is placed as {placements} on {mesh}: expected (Shard(dim=0),), the vocabulary "
            "split over one group of processes, as by ColwiseParallel"
        )
    group = mesh.get_group() if placements == (Shard(0),) else None
    if isinstance(hidden, DTensor):
        if hidden.device_mesh != mesh:
            raise ValueError(f"the LM head is on {mesh} and its hidden states on {hidden.device_mesh}: expected one")
        hidden = hidden.redistribute(placements=[Replicate()]).to_local(grad_placements=[Replicate()])
    elif not same_rows:
        raise ValueError(
            f"the LM head's weight is split over {mesh} and its hidden states are a plain tensor, which may be another "
            "in each process: expected a head that FSDP has gathered, or one divided by transformers' tp_plan or "
            "PyTorch's parallelize_module"
        )
    local = [None if each is None else _to_local(each, placements) for each in (weight, bias)]
    return LocalHead(hidden, local[0], local[1], group)


def _to_local(tensor: Any, placements: Any) -> Tensor:
    if getattr(tensor, "placements", None) != placements:
        raise ValueError("the LM head's bias is not placed as its weight is: expected both split over the vocabulary")
    return tensor.to_local(grad_placements=placements)


def placed_as(hidden: Tensor, logits: Tensor) -> Tensor:
    """Logits that are the same in all processes, a DTensor if the hidden states are one, as a plan's hooks expect."""
    if not is_split(hidden):
        return logits
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(hidden, DTensor)
    return DTensor.from_local(logits, hidden.device_mesh, [Replicate()] * hidden.device_mesh.ndim, run_check=False)


@contextmanager
def gathered_outputs(head: Any) -> Iterator[None]:
    """Inside, every process has the head's outputs whole, whatever a plan makes of them."""

    def gather(module: Any, inputs: Any, output: Any) -> Any:
        if is_split(output):
            return output.full_tensor()
        weight = getattr(module, "weight", None)
        if weight is None or not is_split(weight) or output.shape[-1] == weight.shape[0]:
            return output
        from torch.distributed.tensor import DTensor, Shard

        shape = (*output.shape[:-1], weight.shape[0])
        stride = output.new_empty(shape, device="meta").stride()
        place = [Shard(output.dim() - 1)]
        whole = DTensor.from_local(output, weight.device_mesh, place, run_check=False, shape=shape, stride=stride)
        return whole.full_tensor()

    handle = head.register_forward_hook(gather)
    try:
        yield
    finally:
        handle.remove()
