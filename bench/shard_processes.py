"""Processes that have a part of the vocabulary each, and the ways in which they compute one loss together.

Of every way: the time of a call that all processes make at once, and what their collectives send, which the profiler
sees as the backend of the process group does.
"""

from __future__ import annotations

import contextlib
import datetime
import tempfile
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import loss_parallel

from mind_kernels import linear_cross_entropy

# Of PyTorch 2.13 on, which warns of the older names.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter_sum = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
TIMEOUT = datetime.timedelta(minutes=5)


class Inputs(NamedTuple):
    """Of one case."""

    hidden: Tensor  # (N, D), the same in all processes
    weight: Tensor  # (V, D); V_r of it in a process
    target: Tensor  # (N,)

    def first(self, rows: int) -> Inputs:
        return Inputs(self.hidden[:rows].detach().requires_grad_(), self.weight, self.target[:rows])


class Outputs(NamedTuple):
    loss: Tensor  # ()
    d_hidden: Tensor  # (N, D)
    d_weight: Tensor  # (V, D), or the rows of a process


class Traffic(NamedTuple):
    """Of one process in one call."""

    collectives: int
    sent: int
    """Bytes: what an algorithm that sends the least (a ring) sends of the tensors that the collectives were given."""


def gradients(loss: Tensor, inputs: Inputs) -> Outputs:
    return Outputs(loss.detach(), *torch.autograd.grad(loss, (inputs.hidden, inputs.weight)))


def sharded(inputs: Inputs, mesh: DeviceMesh, **options: Any) -> Outputs:
    return gradients(linear_cross_entropy(*inputs, process_group=mesh.get_group(), **options), inputs)


def gathered(inputs: Inputs, mesh: DeviceMesh) -> Outputs:
    """Every process puts the head together and has the unsharded call do all rows."""
    whole = _whole(inputs.weight, mesh)
    found = gradients(linear_cross_entropy(inputs.hidden, whole, inputs.target), inputs._replace(weight=whole))
    return found._replace(d_weight=found.d_weight.chunk(mesh.size())[mesh.get_rank()])


def gathered_rows(inputs: Inputs, mesh: DeviceMesh) -> Outputs:
    """Every process puts the head together and has the unsharded call do its share of the rows."""
    whole, group = _whole(inputs.weight, mesh), mesh.get_group()
    hidden = inputs.hidden.detach().chunk(mesh.size())[mesh.get_rank()].requires_grad_()
    target = inputs.target.chunk(mesh.size())[mesh.get_rank()]
    loss = linear_cross_entropy(hidden, whole, target, reduction="sum") / len(inputs.target)
    own = gradients(loss, Inputs(hidden, whole, target))
    found = Outputs(own.loss, torch.empty_like(inputs.hidden), torch.empty_like(inputs.weight))
    dist.all_reduce(found.loss, group=group)
    _gather(found.d_hidden, own.d_hidden, group=group)
    _scatter_sum(found.d_weight, own.d_weight, group=group)
    return found


def on_logits(inputs: Inputs, mesh: DeviceMesh) -> Outputs:
    """PyTorch's own: all logits of the shard in memory, and loss_parallel on them."""
    hidden = DTensor.from_local(inputs.hidden, mesh, [Replicate()], run_check=False)
    weight = DTensor.from_local(inputs.weight, mesh, [Shard(0)], run_check=False)
    with loss_parallel():
        loss = F.cross_entropy(F.linear(hidden, weight), inputs.target)
        found = gradients(loss, inputs)
    whole = found.loss
    return found._replace(loss=whole.full_tensor() if isinstance(whole, DTensor) else whole)


def _whole(weight: Tensor, mesh: DeviceMesh) -> Tensor:
    """The head (V, D) from the shards of all processes, which are of equal size."""
    whole = weight.new_empty(mesh.size() * weight.shape[0], weight.shape[1])
    _gather(whole, weight.detach(), group=mesh.get_group())
    return whole.requires_grad_()


def ways(threshold: float) -> dict[str, Callable[[Inputs, DeviceMesh], Outputs]]:
    """By name what a process calls."""
    return {
        "sharded, exact": sharded,
        "sharded, sparse": partial(sharded, gradient_threshold=threshold),
        "gathered head, all rows": gathered,
        "gathered head, shared rows": gathered_rows,
        "loss_parallel on logits": on_logits,
    }


class Processes:
    """`count` processes of one thread each, over gloo, that wait for what to call."""

    def __init__(self, count: int, inputs: Inputs, threshold: float, folder: str) -> None:
        context, store = multiprocessing.get_context("spawn"), str(Path(folder) / "store")
        self._pipes, self._processes = [], []
        for rank in range(count):
            here, there = context.Pipe()
            arguments = (rank, count, store, inputs, threshold, there)
            self._processes.append(context.Process(target=_serve, args=arguments, daemon=True))
            self._processes[-1].start()
            self._pipes.append(here)
            there.close()

    def call(self, way: str, rows: int) -> None:
        """Of the first `rows` rows, to be timed: ends when all processes have their results."""
        self._ask("call", way, rows)

    def outputs(self, way: str, rows: int) -> Outputs:
        """The same, with the results: loss and d_hidden of the first process, d_weight put together."""
        found: list[Outputs] = self._ask("outputs", way, rows)
        for other in found[1:]:
            assert torch.equal(other.loss, found[0].loss), f"{way}: the processes have other losses"
        return found[0]._replace(d_weight=torch.cat([each.d_weight for each in found]))

    def traffic(self, way: str, rows: int) -> Traffic:
        """The same, counted: what a process sends, and the largest of all."""
        return max(self._ask("traffic", way, rows))

    def _ask(self, *request: Any) -> list[Any]:
        for pipe in self._pipes:
            pipe.send(request)
        answers: dict[Any, Any] = {}
        while len(answers) < len(self._pipes):
            ready: list[Any] = wait([pipe for pipe in self._pipes if pipe not in answers])
            for pipe in ready:
                try:
                    is_right, answers[pipe] = pipe.recv()
                except EOFError:
                    raise RuntimeError(f"{request}: a process has ended") from None
                if not is_right:  # the others may wait for it: let them not
                    raise RuntimeError(f"{request}: a process raised\n{answers[pipe]}")
        return [answers[pipe] for pipe in self._pipes]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()


@contextlib.contextmanager
def started(count: int, inputs: Inputs, threshold: float) -> Iterator[Processes]:
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(count, inputs, threshold, folder)
        try:
            yield processes
        finally:
            processes.close()


def _serve(rank: int, count: int, store: str, inputs: Inputs, threshold: float, pipe: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=TIMEOUT)
    mesh, part = init_device_mesh("cpu", (count,)), inputs.weight.chunk(count)[rank].clone().requires_grad_()
    ways_here = ways(threshold)
    while True:
        try:
            wanted, way, rows = pipe.recv()
        except EOFError:
            return
        try:
            call = partial(ways_here[way], inputs.first(rows)._replace(weight=part), mesh)
            if wanted == "call":
                call()
            pipe.send((True, {"call": lambda: None, "outputs": call, "traffic": partial(_traffic, call)}[wanted]()))
        except Exception:
            pipe.send((False, traceback.format_exc()))


def _traffic(call: Callable[[], Any]) -> Traffic:
    """What the collectives of a call were given, by the profiler's records of the backend."""
    count, sizes = dist.get_world_size(), {"float": 4, "double": 8, "long int": 8}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as found:
        call()
    # A ring's share of the tensor that a process gives (NCCL's PERFORMANCE.md of nccl-tests derives them).
    share = {"all_reduce": 2 * (count - 1) / count, "all_gather": count - 1, "reduce_scatter": (count - 1) / count}
    assert found.profiler is not None and found.profiler.kineto_results is not None
    collectives, sent = 0, 0.0
    for event in found.profiler.kineto_results.events():
        backend, _, name = event.name().partition(":")
        if backend != "gloo":
            continue
        collectives += 1
        for shape, dtype in zip(event.shapes(), event.dtypes(), strict=True):
            sent += share[name] * sizes[dtype] * torch.Size(shape).numel()
    return Traffic(collectives, round(sent))
