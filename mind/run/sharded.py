"""Divides the student, its gradient and the optimizer's state among the processes by FSDP2. mind/run/replicated.py
keeps a whole copy in each instead, with the same methods.

PyTorch's fully_shard divides each layer, and the rest of the model, after loading: it works with any transformers
model, including LoRA adapters, and leaves checkpoints to us. (transformers' DistributedConfig divides models while
loading, but without adapters, and its Trainer cannot resume them.) A layer is whole only while it computes, and its
gradient only until it has been summed over the processes; no process ever holds the whole gradient or the whole state
of the optimizer.

The processes exchange whole layers in every forward and backward pass, so all must run the same number of passes: a
process that has nothing left to compute runs passes over two tokens, whose loss is 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn

from mind import processes
from mind.batches.packing import plain_pack
from mind.batches.trunk import pack_hidden
from mind.errors import require
from mind.methods.step import LossTerms
from mind.records import MicroBatch
from mind.student.model import causal_lm, head_of
from mind.student.probe import trunk_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

_WEIGHTS = "sharded"
"""The subfolder of a checkpoint that holds the shards of the student and of the optimizer's state."""


class Sharded:
    """Each process has a share of every weight, of its gradient and of its optimizer state.

    All processes must call each method, in the same order.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Divides the `model` in place. It may have PEFT's wrapper, must be the same in all processes, and is on the
        device where it computes.

        Raises MindError for a model whose layers are not known, and for one that is divided already.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        self.model = model
        student: Any = causal_lm(model)
        require(not isinstance(student, FSDPModule), "train.shard fsdp2: the student is divided already")
        blocks = blocks_of(student)
        self._form = _without_weights(model)
        self._trunk = trunk_of(student)
        processes.begin()
        if not distributed.is_initialized():  # a single process, which has nobody to share with
            store = distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            distributed.init_process_group(store=store, rank=0, world_size=1)
        self._device = student.device
        mesh = init_device_mesh(self._device.type, (processes.count(),))
        self._group = mesh.get_group()
        options: dict[str, Any] = {"mesh": mesh, "mp_policy": _policy(student)}
        for block in blocks:
            # The layers computed last are needed first, by the backward pass and by methods that look at them before
            # it.
            fully_shard(block, **options, reshard_after_forward=block is not blocks[-1])
        fully_shard(student, **options, reshard_after_forward=False)
        parts = cast(list[FSDPModule], [*blocks, student])
        *_, self._last, self._student = parts
        # Otherwise FSDP assumes one order of forward passes, but processes differ in theirs inside `whole`.
        for before, part in zip([self._student, *parts], parts, strict=False):
            part.set_modules_to_backward_prefetch([before])
        self._parts = parts
        student._mind_inside = MethodType(lambda self, function: function(), student)
        register_fsdp_forward_method(student, "_mind_inside")
        self._inside: Callable[[Callable[[], Any]], Any] = student._mind_inside
        self.observe(lambda: None)  # the first forward pass tells FSDP which module is the outermost one

    def in_lockstep(self, batches: Sequence[MicroBatch]) -> Sequence[MicroBatch | None]:
        """The micro-batches of this process, followed by None for each that another process has more."""
        most = self._over_processes(len(batches), distributed.ReduceOp.MAX)
        return [*batches, *[None] * (most - len(batches))]

    def observe(self, compute: Callable[[], T]) -> T:
        """Runs `compute`: forward passes of the student without a graph; processes may run different numbers of
        passes."""
        with torch.no_grad():
            try:
                return self._inside(lambda: self._with_spare_passes(compute)[0])
            finally:
                for part in (self._student, self._last):
                    part.reshard()

    def learn(self, compute: Callable[[], LossTerms] | None) -> tuple[LossTerms | None, Tensor]:
        """Runs `compute`, which gives a micro-batch's part of the step, and returns it with the loss () to call
        backward on, in all processes at once; `compute` is None if this process has no micro-batch left."""
        known: list[LossTerms] = []

        def loss() -> Tensor:
            own, spare = self._with_spare_passes(compute)
            if own is None:
                head = head_of(self.model)
                unused = [tensor.sum() for tensor in (head.weight, head.bias) if tensor is not None]
                return spare + 0.0 * torch.stack(unused).sum().to(spare.dtype)
            known.append(own)
            return own.loss + spare.to(own.loss)

        total = self._inside(loss) * processes.count()  # FSDP divides the sum of the gradients by this number
        return (known[0] if known else None), total

    def add_up_gradients(self) -> None:
        """Called after the last backward pass of a step; nothing to do, since each process has its share of the summed
        gradient already."""

    def gradient_norm(self) -> Tensor:
        """The norm () of the student's gradient over all processes; all must call it."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm: Any = torch.nn.utils.get_total_norm(gradients)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def first(self, name: str | None) -> str | None:
        """The name found by the first process that found one in its share of the student."""
        return next(filter(None, processes.together(name)), None)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside the block, each process has all weights and may use the student freely, without a graph."""
        self._keep(True)
        try:
            for part in self._parts:
                part.unshard()
            yield
        finally:
            self._keep(False)
            for part in self._parts:
                part.reshard()

    def _keep(self, whole: bool) -> None:
        for part in self._parts:
            kept = whole or part in (self._student, self._last)
            part.set_reshard_after_forward(not kept, recurse=False)
            part.set_reshard_after_backward(not whole, recurse=False)

    def saved(self) -> nn.Module | None:
        """The whole student on the CPU of the main process, None in the others."""
        main, form = processes.main(), self._form
        whole = dict(form.named_parameters()) if main else {}
        replaced = {}
        for name, parameter in self.model.named_parameters():
            values: Any = parameter.detach()
            values = values.full_tensor().cpu()
            if main:
                replaced[id(whole[name])] = nn.Parameter(values, parameter.requires_grad)
        return copy.deepcopy(form, replaced) if main else None

    def save(self, folder: Path, optimizer: Any) -> None:
        """Writes each process's shards of the trained weights and of the optimizer's state into a checkpoint."""
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
        from torch.distributed.checkpoint.state_dict_saver import save

        state = {"model": self._trained(), "optimizer": get_optimizer_state_dict(self.model, optimizer)}
        with _failures():
            save(state, checkpoint_id=folder / _WEIGHTS)

    def load_weights(self, folder: Path) -> None:
        """Restores the trained weights from a checkpoint, which any number of processes may have written."""
        from torch.distributed.checkpoint.state_dict_loader import load

        with _failures():
            load({"model": self._trained()}, checkpoint_id=folder / _WEIGHTS)

    def load_optimizer(self, folder: Path, optimizer: Any) -> None:
        """Restores the optimizer's state from a checkpoint, which any number of processes may have written."""
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
        from torch.distributed.checkpoint.state_dict_loader import load

        state = {"optimizer": get_optimizer_state_dict(self.model, optimizer)}
        with _failures():
            load(state, checkpoint_id=folder / _WEIGHTS)
        set_optimizer_state_dict(self.model, optimizer, state["optimizer"])

    def _trained(self) -> dict[str, Tensor]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def _with_spare_passes(self, compute: Callable[[], T] | None) -> tuple[T | None, Tensor]:
        """Runs `compute`; also returns a zero () with the graph of the passes that this process ran only for the
        others.

        Each process that computes announces every pass; the processes that are done wait for these announcements.
        """

        def sign(*_: Any) -> None:
            self._any_computes(True)

        hook = self._trunk.register_forward_pre_hook(sign)
        try:
            own = None if compute is None else compute()
        finally:
            hook.remove()
        spare = torch.zeros((), device=self._device)
        while self._any_computes(False):
            spare = spare + 0.0 * pack_hidden(self.model, plain_pack([[0, 1]])).sum()
        return own, spare

    def _any_computes(self, this: bool) -> bool:
        """Tells the others whether this process computes; if it is done, it waits and returns whether any other
        computes."""
        sign = torch.full((), int(this), device=self._device)
        distributed.all_reduce(sign, group=self._group)
        return this or bool(sign)  # a process that computes does not wait for the GPU

    def _over_processes(self, number: int, operation: Any) -> int:
        value = torch.full((), number, device=self._device)
        distributed.all_reduce(value, operation, group=self._group)
        return int(value)


def blocks_of(student: PreTrainedModel) -> list[nn.Module]:
    """The layers of a model, in its order, found by transformers' own list of layer classes.

    Raises MindError for a model without such layers, and for one with parameters that cannot be divided layer by layer.
    """
    names, what = student._no_split_modules or (), f"train.shard fsdp2: {type(student).__name__}"
    blocks = {name: module for name, module in student.named_modules() if type(module).__name__ in names}
    require(bool(blocks), f"{what} does not name the layers to divide (_no_split_modules)")
    owners: dict[int, str | None] = {}
    for name, parameter in student.named_parameters(remove_duplicate=False):
        require(parameter.dim() > 0, f"{what}: its parameter {name} is a single number, which cannot be divided")
        owner = next((block for block in blocks if name.startswith(f"{block}.")), None)
        shared = owners.setdefault(id(parameter), owner) != owner
        require(not shared, f"{what}: its parameter {name} belongs to several layers, which are divided one by one")
    return list(blocks.values())


@contextmanager
def _failures() -> Iterator[None]:
    """Inside the block, a failure of one process while a checkpoint is written or read is raised in all; torch's own
    exception for it does not derive from Exception."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        failure, _ = next(iter(error.failures.values()))
        raise failure from None


def _policy(student: nn.Module) -> Any:
    """How gradients are summed: in their own dtype, but at least in float32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    short = any(p.requires_grad and p.dtype.itemsize < 4 for p in student.parameters())
    return MixedPrecisionPolicy(reduce_dtype=torch.float32 if short else None)


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy of the model with the names and shapes of its parameters but none of their memory."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, cast(dict[int, Any], empty))
