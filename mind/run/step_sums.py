"""Adds up the results of a step over its micro-batches and over the processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from mind import processes
from mind.methods.step import LossTerms


class StepSums:
    """Sums by name, and L_real (Q, K) of the rationales that were computed; float64 on the student's device."""

    def __init__(self, shape: torch.Size, device: torch.device) -> None:
        """`shape` is (Q, K)."""
        self._sums: dict[str, Tensor] = {}
        self._l_real = torch.zeros(2, *shape, dtype=torch.float64, device=device)  # sum and count

    def add(self, terms: LossTerms) -> None:
        """Adds a micro-batch."""
        for name, value in terms.sums.items():
            self.add_number(name, value)
        self.add_number("loss", terms.loss.detach())
        self._l_real[0] += torch.where(terms.l_real.isnan(), 0, terms.l_real)  # an infinite loss stays infinite
        self._l_real[1] += ~terms.l_real.isnan()

    def add_number(self, name: str, value: Tensor | float) -> None:
        """Adds to one sum."""
        value = torch.as_tensor(value).to(self._l_real.device, torch.float64)
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def over_processes(self, processes: int) -> tuple[dict[str, float], Tensor]:
        """The sums over all processes, and L_real (Q, K) with nan for what no process computed; on the CPU.

        Waits for a GPU, once.
        """
        names = self._names(processes)
        zero = self._l_real.new_zeros(())
        values = torch.stack([self._sums.get(name, zero) for name in names]) if names else self._l_real.new_empty(0)
        values = torch.cat([values, self._l_real.flatten()])
        if processes > 1:
            torch.distributed.all_reduce(values)
        values = values.cpu()
        sums, l_real = values[: len(names)].tolist(), values[len(names) :].view(self._l_real.shape)
        return dict(zip(names, sums, strict=True)), l_real[0] / l_real[1]

    def _names(self, processes: int) -> list[str]:
        """The names of the sums of all processes: a process whose share of the step is empty knows none."""
        if processes == 1:
            return sorted(self._sums)
        names: list[list[str]] = [[] for _ in range(processes)]
        torch.distributed.all_gather_object(names, sorted(self._sums))
        return sorted(set().union(*names))


BUCKET_BYTES = 2**26
"""Bytes of gradients that are sent together: enough for the full bandwidth, little compared with the student."""


def add_up_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces the gradient of each trained parameter by its sum over all processes; a missing gradient counts as
    zero."""
    if processes.count() == 1:
        return
    processes.begin()
    gradients: list[Tensor] = []
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = _flatten_dense_tensors(bucket)
        torch.distributed.all_reduce(flat)
        for gradient, added in zip(bucket, _unflatten_dense_tensors(flat, bucket), strict=True):
            gradient.copy_(added)


def take_from_main(tensors: Iterable[Tensor]) -> None:
    """Copies the numbers of the main process to all, so that replicas start equal even if each drew its own new
    weights."""
    if processes.count() > 1:
        processes.begin()
        for tensor in tensors:
            torch.distributed.broadcast(tensor.data, 0)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one dtype, in buckets of at most BUCKET_BYTES or of a single tensor."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.nbytes > BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
