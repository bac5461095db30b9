"""A head that is split over the vocabulary among the processes of a group: tensor parallelism.

Each process has some rows of the head, in the order of their ranks; hidden states, targets and weights are the same in
all. A loop over rows asks each process for a few sums of a row over its shard, gathers them (`Shard.gather`: one
collective), and joins them in each process by the same arithmetic in the same order, so that all have the same bits.

Collectives deadlock if the processes differ in how many they make. So each call begins with one of a fixed size,
`agree`, which tells all processes the shards' sizes and whether they were asked for the same; and chunks are sized by
the largest shard.
"""

from __future__ import annotations

import contextlib
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from mind_kernels.head import Head, HeadGradients
from mind_kernels.row_chunks import Rows, chunks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


Started = TypeVar("Started")


class Group(NamedTuple):
    """The group of an operator's call: a process group cannot be an argument of an operator, its name can."""

    name: str
    sum_hidden: bool
    """Whether the gradient of the hidden states is summed over the group. False: each process has its shard's part,
    for a caller who sums it, such as the backward pass of a DTensor."""
    takes_hidden: bool = False
    """Whether hidden takes a gradient, now or in a backward pass that calls the operator again."""
    takes_any: bool = False
    """Whether hidden, weight or bias does."""

    def with_gradients(self, hidden: Tensor, head: Head) -> Group:
        """The same, of a call with these arguments, which may be unchecked yet."""
        inputs = (hidden, head.weight, head.bias)
        takes = [torch.is_grad_enabled() and isinstance(each, Tensor) and each.requires_grad for each in inputs]
        return Group(self.name, self.sum_hidden, takes[0], any(takes))


def group_of(process_group: ProcessGroup | Group | None) -> Group | None:
    """What an operator is told of the argument `process_group`. Raises TypeError for what is none, and ValueError for
    one that this process does not belong to. The integrations pass a Group of their own."""
    if process_group is None or isinstance(process_group, Group):
        return process_group
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("process_group: this process does not belong to it")
    if not isinstance(process_group, dist.ProcessGroup):
        hint = ", such as its .get_group(name)" if hasattr(process_group, "get_group") else ""
        kind = type(process_group).__name__
        raise TypeError(f"process_group is a {kind}: expected a torch.distributed.ProcessGroup{hint}")
    return Group(process_group.group_name, True)


def process_group_of(group: Group) -> ProcessGroup:
    """The process group of that name."""
    return dist.distributed_c10d._resolve_process_group(group.name)  # pyright: ignore


_SHORTLY = timedelta(seconds=30)
_agreed = threading.local()


@contextlib.contextmanager
def reporting_errors(group: ProcessGroup, *near: object) -> Iterator[None]:
    """An error that is raised inside, in this process alone, reaches the others, which would wait for it in `agree`.

    `near`: what may be tensors of the call; see `_message_device`.
    """
    _agreed.yet = False
    try:
        yield
    except Exception:
        if not _agreed.yet:
            with contextlib.suppress(Exception):  # the error of this process is the one to be seen
                device = _message_device(group, *near)
                _gather(_message(_FAILED, 0, [], device), group.size(), group).wait(_SHORTLY)
        raise


def chunks_ahead(hidden: Tensor) -> int:
    """How many chunks `run_ahead` starts before it finishes one, beside that one."""
    return 1 if hidden.is_cuda else 0


def run_ahead(
    rows: Tensor | int,
    size: int,
    hidden: Tensor,  # (N, D)
    start: Callable[[Rows, Tensor], Started],
    finish: Callable[[Rows, Tensor, Started], None],
) -> None:
    """start(rows, hidden (n, D)) of each chunk in turn, and finish(rows, hidden, what that gave) of each.

    On a GPU the next chunk is started before: its product runs while the numbers of this one travel between the
    processes. Gloo's travel no sooner, and a second chunk of logits would cost a CPU its caches.
    """
    waiting: deque[tuple[Rows, Tensor, Started]] = deque()
    for chunk in chunks(rows, size):
        part = hidden[chunk]
        waiting.append((chunk, part, start(chunk, part)))
        if len(waiting) > chunks_ahead(hidden):
            finish(*waiting.popleft())
    while waiting:
        finish(*waiting.popleft())


class Gathered:
    """Tensors of all processes, on their way."""

    def __init__(self, out: Tensor, work: Any) -> None:
        self._out, self._work = out, work

    def wait(self, *limit: timedelta) -> Tensor:
        """(processes, ...), in rank order. On a GPU the stream waits, and not the host."""
        self._work.wait(*limit)
        return self._out


def _gather(part: Tensor, processes: int, group: ProcessGroup) -> Gathered:
    # Older releases of torch know it by another name.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    out = part.new_empty(processes, *part.shape)
    return Gathered(out, gather(out.view(-1), part.contiguous().view(-1), group=group, async_op=True))


@dataclass(frozen=True, eq=False)
class Shard:
    """This process's part [start, start + size) of the vocabulary."""

    group: ProcessGroup
    rank: int
    sizes: tuple[int, ...]
    """Of all shards, in rank order; some may be 0."""
    starts: Tensor
    """(processes,) int64, where the hidden states are: the first vocabulary entry of each shard."""
    stops: Tensor
    """(processes,) int64: the one after the last."""

    @property
    def start(self) -> int:
        """The vocabulary entry of this shard's first row."""
        return sum(self.sizes[: self.rank])

    @property
    def size(self) -> int:
        """V_r."""
        return self.sizes[self.rank]

    @property
    def vocabulary(self) -> int:
        """V, of all shards."""
        return sum(self.sizes)

    @property
    def largest(self) -> int:
        """The size by which all processes choose the rows of a chunk; at least 1."""
        return max(1, *self.sizes)

    def owner(self, target: Tensor) -> Tensor:
        """The rank of the process that has each target (...) int64 in [0, V)."""
        return torch.bucketize(target, self.stops, right=True)

    def local(self, target: Tensor) -> Tensor:
        """Targets (...) int64 as entries of this shard; -1 if another process has them."""
        local = target - self.start
        return torch.where((local >= 0) & (local < self.size), local, -1)

    def gather(self, part: Tensor) -> Gathered:
        """Starts to gather `part`, of the same shape and dtype in all processes."""
        return _gather(part, len(self.sizes), self.group)

    def sum_(self, part: Tensor) -> Tensor:
        """The sum of `part` over the group, in its memory."""
        dist.all_reduce(part, group=self.group)
        return part


def with_whole_head(shard: Shard, group: Group, hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
    """Hidden states and the whole head, for a definition that each process computes by itself: the gradient reaches
    this process's rows of the head, and through the hidden states `Group.sum_hidden` holds."""
    if not group.sum_hidden and shard.rank != 0:
        hidden = _WithoutGradient.apply(hidden)
    bias = None if head.bias is None else _Whole.apply(head.bias, shard)
    return hidden, replace(head, weight=_Whole.apply(head.weight, shard), bias=bias)


class _WithoutGradient(torch.autograd.Function):
    """The same tensor, whose gradient is zeros and not None: what exchanges it later does so in all processes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return torch.zeros_like(grad_outputs[0])


class _Whole(torch.autograd.Function):
    """(V, ...) from (V_r, ...), whose gradient is the part of these rows.

    Differentiable once: of a function of that gradient each process has the derivatives by its own rows only.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, shard: Shard) -> Tensor:
        ctx.rows = slice(shard.start, shard.start + shard.size)
        padded = part.new_zeros(shard.largest, *part.shape[1:])
        padded[: shard.size] = part
        return torch.cat([piece[:size] for piece, size in zip(shard.gather(padded).wait(), shard.sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0][ctx.rows], None


def sum_hidden(shard: Shard | None, group: Group | None, gradients: HeadGradients) -> None:
    """Makes the gradient of the hidden states that of the whole head, if the group wants it."""
    if shard is not None and group is not None and group.sum_hidden and gradients.hidden is not None:
        shard.sum_(gradients.hidden)


def common_facts(hidden: Tensor, head: Head, group: Group, needs: Sequence[bool]) -> dict[str, object]:
    """What every operation tells `agree` of the hidden states and the head, and of their gradients."""
    return {
        "the number of rows of hidden": hidden.shape[0],
        "the hidden size": hidden.shape[1],
        "the dtype of hidden": hidden.dtype,
        "bias, softcap or temperature": (head.bias is None, head.softcap, head.temperature),
        "whether hidden requires a gradient": (group.takes_hidden, needs[0]),
        "whether hidden, weight or bias requires a gradient": group.takes_any,
    }


FACTS = 24
"""Numbers that each process tells the others at the start of a call."""
_OK, _FAILED = 1, 2


def agree(
    group: Group, operation: str, rows_of_head: int, like: Tensor, check: Callable[[], None], **facts: object
) -> Shard:
    """The shard of this process, and that all processes of the group were called alike; one collective.

    The host reads the answer, for which a GPU waits if it comes by NCCL.

    Args:
        group: the group.
        operation: what was called.
        rows_of_head: V_r, the only number that may differ.
        like: a tensor on the device of the hidden states.
        check: raises for values of this process's arguments that are wrong whatever the others have. The others hear
            of it, also in a compiled graph, where the operator is all that runs.
        facts: what has to be the same, by the name for the message: integers, and as a checksum integer tensors and
            whatever else has a repr. What is checked later, with V, has to depend on nothing else.

    Raises:
        ValueError: in all processes, naming the first thing that differs.
        Exception: what `check` raises, in this process; a ValueError in the others.
        RuntimeError: while a CUDA graph is captured, which cannot read.
    """
    if like.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"{operation}: with process_group it cannot be captured in a CUDA graph")
    found = process_group_of(group)
    named = {"the operation": operation, **facts}
    error = _error(check) or _error(lambda: _check_device(found, like))
    state = _OK if error is None else _FAILED
    message = _message(state, rows_of_head, list(named.values()), like.device).to(_message_device(found, like))
    answers = _gather(message, found.size(), found).wait().tolist()
    _agreed.yet = True
    if error is not None:
        raise error
    _compare(operation, answers, list(named))
    sizes = torch.tensor([row[1] for row in answers])
    stops = sizes.cumsum(0)
    bounds = torch.stack([stops - sizes, stops]).to(like.device)
    return Shard(found, found.rank(), tuple(sizes.tolist()), *bounds)


def _error(check: Callable[[], None]) -> Exception | None:
    try:
        check()
    except Exception as error:
        return error
    return None


def _device_kinds(group: ProcessGroup) -> list[str]:
    """The kinds of devices, such as "cuda", whose tensors the group exchanges; empty if it does not say."""
    return [device.type for device in group._device_types]  # pyright: ignore[reportAttributeAccessIssue]


def _check_device(group: ProcessGroup, hidden: Tensor) -> None:
    kinds = _device_kinds(group)
    if kinds and hidden.device.type not in kinds:
        raise ValueError(f"hidden is on {hidden.device}: process_group exchanges tensors on {' and '.join(kinds)} only")


def _message_device(group: ProcessGroup, *near: object) -> torch.device:
    """Where messages of a call travel. All processes have to choose the same, also one whose tensors are where they
    should not be: so it is for the group to say, the CPU if it can, else its GPU; of more than one, that of `near`."""
    kinds, devices = _device_kinds(group), [each.device for each in near if isinstance(each, Tensor)]
    if "cpu" in kinds:
        return torch.device("cpu")
    if fitting := [device for device in devices if device.type in kinds or not kinds]:
        return fitting[0]
    return group.bound_device_id or torch.device(kinds[0], torch.accelerator.current_device_index())


def _message(state: int, rows_of_head: int, facts: Sequence[object], device: torch.device) -> Tensor:
    """(FACTS,) int64 on the device."""
    assert len(facts) <= FACTS - 2
    numbers = [state, rows_of_head, *map(_number, facts), *[0] * (FACTS - 2 - len(facts))]
    out = torch.tensor([0 if isinstance(number, Tensor) else number for number in numbers]).to(device)
    for place, number in enumerate(numbers):
        if isinstance(number, Tensor):
            out[place] = number
    return out


def _number(fact: object) -> int | Tensor:
    if isinstance(fact, Tensor):
        place = torch.arange(1, fact.numel() + 1, device=fact.device)
        checksum = ((fact.flatten().long() + 0x9E3779B9) * (place * 0x85EBCA6B + 0xC2B2AE35)).sum()
        return checksum if checksum.is_cuda else int(checksum)
    return int(fact) if isinstance(fact, int) else zlib.crc32(repr(fact).encode())


def _compare(operation: str, answers: list[list[int]], names: list[str]) -> None:
    """Raises ValueError unless all processes said the same."""
    for rank, row in enumerate(answers):
        if row[0] != _OK:
            raise ValueError(f"{operation}: process {rank} of process_group raised an error, and takes no part")
    for place, name in enumerate(names, 2):
        for rank, row in enumerate(answers):
            if row[place] != answers[0][place]:
                raise ValueError(
                    f"{operation}: {name} differs between process 0 and process {rank} of process_group. Expected "
                    "everything but the head's rows to be the same in all of its processes (tensor parallelism); if "
                    "each has rows of its own (data parallelism, FSDP), it needs the whole head, and no process_group"
                )
    if sum(row[1] for row in answers) == 0:
        raise ValueError(f"{operation}: weight has no rows in any process of process_group")
