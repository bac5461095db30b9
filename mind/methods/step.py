"""The data that the trainer and a method exchange in one step (see method.py)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self
from zlib import crc32

import torch
from torch import Tensor

from mind.batches.cross_entropy import rationale_means
from mind.records import MicroBatch, TokenizedQuestion
from mind_kernels import Head, RowStats

Measure = Callable[[Tensor, Head, MicroBatch], Tensor]
"""Computes a number per sequence (Q, K), nan for those outside the micro-batch, from the last hidden states (N, D) of a
micro-batch's labeled rows and the LM head."""


class Observe(Protocol):
    """Runs forward passes without a graph, before the step trains on anything; the processes share the work, and it is
    counted."""

    def __call__(
        self,
        chosen: Tensor,
        questions: Sequence[TokenizedQuestion] | None = None,
        /,
        *,
        measure: Measure | None = None,
    ) -> Tensor:
        """The student's mean NLL per token (Q, K), float64 on the CPU, on each sequence that `chosen` (Q, K) bool
        marks, nan elsewhere. The sequences are those of the step's questions, or of Q other `questions`. `measure`
        computes another number instead."""
        ...


class Sample(Protocol):
    """Samples answers of the current student: without a graph, with dropout off, counted. The answers depend only on
    the run's seed, the step and their place in the call; so they are the same in all processes, in a resumed run and
    with any packing."""

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        temperature: float,
        max_new_tokens: int,
        progress: Callable[[int], object] | None = None,
    ) -> list[tuple[int, ...]]:
        """Token ids that continue each prompt, drawn from softmax(z / temperature): at least one and at most
        `max_new_tokens`, the end token included. `progress` gets the number of finished answers."""
        ...


def _no_sample(*_: Any, **__: Any) -> list[tuple[int, ...]]:
    raise NotImplementedError("this step has no sampler: MethodTrainer brings one")


@dataclass(frozen=True)
class Step:
    """One optimizer step, as the trainer passes it to `Method.prepare`."""

    number: int
    """The step's number, from 0."""
    epoch: int
    """How many times all questions have been trained on before this step."""
    questions: Sequence[TokenizedQuestion]
    observe: Observe
    sample: Sample = _no_sample


@dataclass(frozen=True, eq=False)
class StepPlan:
    """What a step computes. A method may add fields that its own `finish_step` reads."""

    questions: Sequence[TokenizedQuestion]
    """Q questions with sequences in up to K slots: those of the step, or others that the method makes from them."""
    weights: Tensor
    """(Q, K) the weight of each rationale in the loss: constants, without a graph."""
    trained: Tensor
    """(Q, K) bool, on the CPU: rationales that get forward and backward passes; only present ones. A step without any
    belongs to a search: it does not change the student, and `finish_step` returns its loss."""
    observed: Tensor
    """(Q, K) bool, on the CPU: rationales that get a forward pass without a graph, for L_real; only present ones that
    are not trained on."""

    @classmethod
    def training(cls, questions: Sequence[TokenizedQuestion], weights: Tensor, **more: Any) -> Self:
        """A plan that trains on every sequence with a nonzero weight (Q, K) and observes nothing; `more` are the fields
        that a subclass adds."""
        return cls(questions, weights, weights != 0, torch.zeros_like(weights, dtype=torch.bool), **more)


class LossTerms(NamedTuple):
    """What a micro-batch contributes to its step."""

    loss: Tensor
    """() its share of the step's loss, which is a mean over the step's Q questions; with a graph."""
    sums: Mapping[str, Tensor]
    """Name -> () number, which the trainer adds up over the step's micro-batches and processes."""
    l_real: Tensor
    """(Q, K) the student's mean NLL per token on each rationale of the micro-batch, without a graph; nan elsewhere."""

    @classmethod
    def of(cls, loss: Tensor, rows: RowStats, batch: MicroBatch, **sums: Tensor) -> LossTerms:
        """Adds the sums of the labeled rows that every method reports: "rows" is their number, "correct" the number
        with the right argmax, "entropy" the sum of their entropies in nats, and "dropped_mass" the sum of the
        probabilities that the sparse gradient replaced. `rows` has the segments of `batch`: q K + k."""
        common = {"rows": torch.tensor(len(rows.nll)), "correct": rows.correct.sum(), "entropy": rows.entropy.sum()}
        if rows.dropped_mass is not None:
            common["dropped_mass"] = rows.dropped_mass.sum()
        return cls(loss, common | sums, rationale_means(rows, batch))


@dataclass(frozen=True)
class StepMetrics:
    """What a method reports about a step, for metrics.jsonl, the report and TensorBoard."""

    means: Mapping[str, float] = field(default_factory=dict)
    """Means over the step's questions; several steps between two log lines are averaged."""
    tables: Mapping[str, Tensor] = field(default_factory=dict)
    """(Q, K) each, nan for rationales without a value; logged as a mean per perspective."""
    latest: Mapping[str, float | Mapping[str, float]] = field(default_factory=dict)
    """Numbers, or objects of numbers, of which only the latest is logged, such as a changing learning rate."""
    work: Mapping[str, int] = field(default_factory=dict)
    """Tokens that the method itself computed in the step, by kind (mind/run/work.py), without those that the trainer
    computed for it, which it counts itself."""
    loss: float | None = None
    """The loss of a step that trains on nothing; None: the sum of the micro-batches' losses."""


def slot_means(l_real: Tensor, slots: Mapping[str, int | slice]) -> dict[str, float]:
    """The mean over questions of L_real (Q, K) in a slot or slice of slots, by name; a name without any value is left
    out."""
    means = {name: float(l_real[:, slot].nanmean()) for name, slot in slots.items()}
    return {name: mean for name, mean in means.items() if not math.isnan(mean)}


def turn_of(name: str, epoch: int, count: int) -> int:
    """Which of `count` things of the question `name` is due in an epoch: one after another, starting at one that
    differs between questions."""
    return (epoch + crc32(name.encode())) % count


def random_of(seed: int, step: int, purpose: str) -> torch.Generator:
    """A random generator that depends only on the run's seed, a step and a purpose: resumed runs and other processes
    draw the same numbers."""
    digest = hashlib.sha256(f"{purpose} {seed} {step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))
