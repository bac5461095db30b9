"""How the student lies on the processes of a run: whole in each. mind/run/sharded.py has the other way, behind the same
methods."""

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
        """The micro-batches of this process, and None for each that another process has more."""
        return batches

    def observe(self, compute: Callable[[], T]) -> T:
        """`compute()`, forward passes of the student, without a graph."""
        with torch.no_grad():
            return compute()

    def learn(self, compute: Callable[[], LossTerms] | None) -> tuple[LossTerms | None, Tensor]:
        """`compute()`, what a micro-batch gives to its step, and the loss () whose backward pass is due; None if there
        is no micro-batch for this process, which only `in_lockstep` brings about."""
        assert compute is not None
        terms = compute()
        return terms, terms.loss

    def add_up_gradients(self) -> None:
        """After the last backward pass of a step: each process has the gradient of all from now on."""
        add_up_gradients(self.model.parameters())

    def gradient_norm(self) -> Tensor:
        """The norm () of the student's gradient; no process needs another to know it."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def first(self, name: str | None) -> str | None:
        """What this process found somewhere in the student, which is the same in all."""
        return name

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, each process may compute with the student as it likes, without a graph."""
        yield

    def saved(self) -> nn.Module | None:
        """The student as the main process saves it, None in the others."""
        return self.model
