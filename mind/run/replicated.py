"""Holds a whole copy of the student in each process. mind/run/sharded.py divides it instead, with the same methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from mind.methods.step import LossTerms
from mind.records import MicroBatch
from mind.run.step_sums import add_up_gradients

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")


class Replicated:
    """Each process has the whole student, computes its share of a step, and adds up the gradients with the others."""

    def __init__(self, model: PreTrainedModel) -> None:
        """`model` may have PEFT's wrapper."""
        self.model = model

    def in_lockstep(self, batches: Sequence[MicroBatch]) -> Sequence[MicroBatch | None]:
        """The micro-batches of this process, followed by None for each that another process has more."""
        return batches

    def observe(self, compute: Callable[[], T]) -> T:
        """Runs `compute`: forward passes of the student without a graph."""
        with torch.no_grad():
            return compute()

    def learn(self, compute: Callable[[], LossTerms] | None) -> tuple[LossTerms | None, Tensor]:
        """Runs `compute`, which gives a micro-batch's part of the step, and returns it with the loss () to call
        backward on; `compute` is None if this process has no micro-batch left, which only happens with
        `in_lockstep`."""
        assert compute is not None
        terms = compute()
        return terms, terms.loss

    def add_up_gradients(self) -> None:
        """Called after the last backward pass of a step: then each process has the gradient summed over all."""
        add_up_gradients(self.model.parameters())

    def gradient_norm(self) -> Tensor:
        """The norm () of the student's gradient; needs no exchange between processes."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def first(self, name: str | None) -> str | None:
        """The name that this process found in its copy of the student; all processes find the same."""
        return name

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside the block, each process may use the student freely, without a graph."""
        yield

    def saved(self) -> nn.Module | None:
        """The student as the main process saves it, None in the others."""
        return self.model
