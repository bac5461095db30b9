"""Communication for a head that is split over the vocabulary among the processes of a group (tensor parallelism).

Each process has a block of the head's rows, its shard, in rank order; hidden states, targets and weights are the same
in all. For each row, a process computes a few sums over its shard and gathers those of all processes (`Shard.gather`,
one collective). Each process combines them by the same arithmetic in the same order, so that all have the same bits.
Collectives deadlock if processes do not make the same number of them. So each call begins with a collective of fixed
size, `agree`, by which all processes learn the sizes of the shards and whether all got the same arguments; and the
largest shard determines the size of the chunks.
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
    """A process group as an argument of an operator: by its name, since an operator cannot have the group itself."""

    name: str
    sum_hidden: bool
    """Whether the gradient of the hidden states is summed over the group. False: each process gets its shard's part,
    and the caller sums them, such as the backward pass of a DTensor."""
    takes_hidden: bool = False
    """Whether hidden needs a gradient, now or in a backward pass that calls the operator again."""
    takes_any: bool = False
    """Whether hidden, weight or bias needs a gradient."""

    def with_gradients(self, hidden: Tensor, head: Head) -> Group:
        """The group for a call with these arguments, which need not have been checked yet."""
        inputs = (hidden, head.weight, head.bias)
        takes = [torch.is_grad_enabled() and isinstance(each, Tensor) and each.requires_grad for each in inputs]
        return Group(self.name, self.sum_hidden, takes[0], any(takes))


def group_of(process_group: ProcessGroup | Group | None) -> Group | None:
    """The argument `process_group` as a Group. Raises TypeError for anything that is no process group, and ValueError
    for one that this process does not belong to. The integrations pass a Group of their own."""
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


def operation_of(name: str, split: Group | Shard | None) -> str:
    """The name in `backend.BACKENDS` of an operation on a whole head, or on one that is split over processes."""
    return name if split is None else f"{name}, shards"


@contextlib.contextmanager
def reporting_errors(group: ProcessGroup, *near: object) -> Iterator[None]:
    """A context: if this process raises an error inside, the others, which wait in `agree`, raise an error too.

    `near`: arguments of the call that may be tensors; see `_message_device`.
    """
    _agreed.yet = False
    try:
        yield
    except Exception:
        if not _agreed.yet:
            with contextlib.suppress(Exception):  # this process's own error is the one to raise
                device = _message_device(group, *near)
                _gather(_message(_FAILED, 0, [], device), group.size(), group).wait(_SHORTLY)
        raise


def chunks_ahead(hidden: Tensor) -> int:
    """How many further chunks `run_ahead` starts before it finishes one."""
    return 1 if hidden.is_cuda else 0


def run_ahead(
    rows: Tensor | int,
    size: int,
    hidden: Tensor,  # (N, D)
    start: Callable[[Rows, Tensor], Started],
    finish: Callable[[Rows, Tensor, Started], None],
) -> None:
    """Calls start(rows, hidden (n, D)) and then finish(rows, hidden, result of start) for each chunk in turn.

    On a GPU, the next chunk is started before a chunk is finished: its product runs while the processes exchange the
    numbers of this one. On a CPU this has no use: gloo would not exchange them sooner, and a second chunk of logits
    would not fit the caches.
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
    """Tensors that are being gathered from all processes."""

    def __init__(self, out: Tensor, work: Any) -> None:
        self._out, self._work = out, work

    def wait(self, *limit: timedelta) -> Tensor:
        """(processes, ...), in rank order. On a GPU the stream waits, and not the host."""
        self._work.wait(*limit)
        return self._out


def _gather(part: Tensor, processes: int, group: ProcessGroup) -> Gathered:
    # It has another name in older releases of torch.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    out = part.new_empty(processes, *part.shape)
    return Gathered(out, gather(out.view(-1), part.contiguous().view(-1), group=group, async_op=True))


@dataclass(frozen=True, eq=False)
class Shard:
    """This process's part [start, start + size) of the vocabulary."""

    group: ProcessGroup
    rank: int
    sizes: tuple[int, ...]
    """The sizes of all shards, in rank order; some may be 0."""
    starts: Tensor
    """(processes,) int64, on the device of the hidden states: the first vocabulary entry of each shard."""
    stops: Tensor
    """(processes,) int64: the vocabulary entry after the last one of each shard."""

    @property
    def start(self) -> int:
        """The vocabulary entry of this shard's first row."""
        return sum(self.sizes[: self.rank])

    @property
    def size(self) -> int:
        """V_r, the number of vocabulary entries of this shard."""
        return self.sizes[self.rank]

    @property
    def vocabulary(self) -> int:
        """V, the number of vocabulary entries of all shards."""
        return sum(self.sizes)

    @property
    def largest(self) -> int:
        """The size of the largest shard, at least 1, from which all processes compute the number of rows of a chunk."""
        return max(1, *self.sizes)

    def owner(self, target: Tensor) -> Tensor:
        """The rank of the process that has each target (...) int64 in [0, V)."""
        return torch.bucketize(target, self.stops, right=True)

    def local(self, target: Tensor) -> Tensor:
        """Targets (...) int64 as entries of this shard; -1 if another process has them."""
        local = target - self.start
        return torch.where((local >= 0) & (local < self.size), local, -1)

    def gather(self, part: Tensor) -> Gathered:
        """Starts to gather `part`, which has the same shape and dtype in all processes."""
        return _gather(part, len(self.sizes), self.group)

    def sum_(self, part: Tensor) -> Tensor:
        """The sum of `part` over the group, in its memory."""
        dist.all_reduce(part, group=self.group)
        return part


def with_whole_head(shard: Shard, group: Group, hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
    """Hidden states and the whole head, for a definition that each process computes by itself. The head's gradient
    reaches this process's rows; that of the hidden states is as `Group.sum_hidden` says."""
    if not group.sum_hidden and shard.rank != 0:
        hidden = _WithoutGradient.apply(hidden)
    bias = None if head.bias is None else _Whole.apply(head.bias, shard)
    return hidden, replace(head, weight=_Whole.apply(head.weight, shard), bias=bias)


class _WithoutGradient(torch.autograd.Function):
    """The same tensor, with a gradient of zeros and not None, so that later collectives on it happen in all
    processes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return torch.zeros_like(grad_outputs[0])


class _Whole(torch.autograd.Function):
    """Gathers (V, ...) from (V_r, ...); the gradient of (V_r, ...) is the part of these rows.

    It can be differentiated once: for a function of that gradient, each process has derivatives by its own rows only.
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
    """Sums the gradient of the hidden states over the group, if `Group.sum_hidden` is true."""
    if shard is not None and group is not None and group.sum_hidden and gradients.hidden is not None:
        shard.sum_(gradients.hidden)


def common_facts(hidden: Tensor, head: Head, group: Group, needs: Sequence[bool]) -> dict[str, object]:
    """Facts on hidden states, head and gradients that every operation passes to `agree`."""
    return {
        "the number of rows of hidden": hidden.shape[0],
        "the hidden size": hidden.shape[1],
        "the dtype of hidden": hidden.dtype,
        "bias, softcap or temperature": (head.bias is None, head.softcap, head.temperature),
        "whether hidden requires a gradient": (group.takes_hidden, needs[0]),
        "whether hidden, weight or bias requires a gradient": group.takes_any,
    }


FACTS = 24
"""How many numbers each process sends to the others at the start of a call."""
_OK, _FAILED = 1, 2


def agree(
    group: Group, operation: str, rows_of_head: int, like: Tensor, check: Callable[[], None], **facts: object
) -> Shard:
    """This process's shard; checks that all processes of the group got the same arguments. One collective.

    The host reads the result; if it is exchanged by NCCL, the host waits for the GPU.

    Args:
        group: the group.
        operation: the name of the operation.
        rows_of_head: V_r, the only number that may differ between processes.
        like: a tensor on the device of the hidden states.
        check: raises an error if a value of this process's arguments is wrong, whatever the others have. The others
            then raise an error too, also in a compiled graph, where only the operator runs.
        facts: everything that has to be the same in all processes, by its name in the message: integers directly;
            integer tensors, and other objects by their repr, as a checksum. Checks that follow, once V is known, may
            depend on nothing else.

    Raises:
        ValueError: in all processes, naming the first thing that differs.
        Exception: what `check` raises, in this process; a ValueError in the others.
        RuntimeError: while a CUDA graph is captured, since the host cannot read then.
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
    sizes = torch.tensor([row[1] for row in answers], device="cpu")
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
    """The device types, such as "cuda", whose tensors the group can exchange; empty if unknown."""
    return [device.type for device in group._device_types]  # pyright: ignore[reportAttributeAccessIssue]


def _check_device(group: ProcessGroup, hidden: Tensor) -> None:
    kinds = _device_kinds(group)
    if kinds and hidden.device.type not in kinds:
        raise ValueError(f"hidden is on {hidden.device}: process_group exchanges tensors on {' and '.join(kinds)} only")


def _message_device(group: ProcessGroup, *near: object) -> torch.device:
    """The device of the messages of a call. All processes have to choose the same, even one whose tensors are on a
    wrong device, so it depends on the group: the CPU if the group supports it, else a GPU; if it has several, that of
    `near`."""
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
