"""What passes between the trainer and a method in one step: see method.py."""

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
"""From the last hidden states (N, D) of a micro-batch's labeled rows and the LM head to a number per sequence (Q, K),
nan for what is not in the micro-batch."""


class Observe(Protocol):
    """Forward passes without a graph, before anything of the step is trained on; the work is shared between the
    processes, and counted."""

    def __call__(
        self,
        chosen: Tensor,
        questions: Sequence[TokenizedQuestion] | None = None,
        /,
        *,
        measure: Measure | None = None,
    ) -> Tensor:
        """The student's mean NLL per token (Q, K) on each sequence that is `chosen` (Q, K) bool, float64 on the CPU,
        nan elsewhere; of the step's questions, or of Q others. `measure` computes something else in its place."""
        ...


class Sample(Protocol):
    """Answers of the student as it is: without a graph, with dropout off, counted. The same in all processes, in a
    resumed run and whatever the packs: they depend on the run's seed, the step and their place in the call alone."""

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        temperature: float,
        max_new_tokens: int,
        progress: Callable[[int], object] | None = None,
    ) -> list[tuple[int, ...]]:
        """Token ids that continue each prompt, from softmax(z / temperature); at least one, their end included, and at
        most `max_new_tokens`. `progress` gets the number of those done so far."""
        ...


def _no_sample(*_: Any, **__: Any) -> list[tuple[int, ...]]:
    raise NotImplementedError("this step has no sampler: MethodTrainer brings one")


@dataclass(frozen=True)
class Step:
    """One optimizer step, as the trainer hands it to `Method.prepare`."""

    number: int
    """From 0."""
    epoch: int
    """How many times all questions have been trained on before, from 0."""
    questions: Sequence[TokenizedQuestion]
    observe: Observe
    sample: Sample = _no_sample


@dataclass(frozen=True, eq=False)
class StepPlan:
    """What a step computes. A method may add fields for its own `finish_step`."""

    questions: Sequence[TokenizedQuestion]
    """Q, with rationales in K places: those of the step, or others that the method makes of them."""
    weights: Tensor
    """(Q, K) the weight of each rationale in the loss: constants, without a graph."""
    trained: Tensor
    """(Q, K) bool, on the CPU: forward and backward passes. None that is missing. In a step without any, which belongs
    to a search, the student is not moved, and `finish_step` gives the loss."""
    observed: Tensor
    """(Q, K) bool, on the CPU: a forward pass without a graph, to know L_real. None that is missing or trained on."""

    @classmethod
    def training(cls, questions: Sequence[TokenizedQuestion], weights: Tensor, **more: Any) -> Self:
        """Trains on what has a weight (Q, K), and observes nothing; `more` are the fields of a method's own."""
        return cls(questions, weights, weights != 0, torch.zeros_like(weights, dtype=torch.bool), **more)


class LossTerms(NamedTuple):
    """What a micro-batch gives to its step."""

    loss: Tensor
    """() its share of the step's loss, which is a mean over the step's Q questions; with a graph."""
    sums: Mapping[str, Tensor]
    """() each: numbers that the trainer adds up over the step's micro-batches and processes, by name."""
    l_real: Tensor
    """(Q, K) the student's mean NLL per token on each rationale of the micro-batch, without a graph; nan elsewhere."""

    @classmethod
    def of(cls, loss: Tensor, rows: RowStats, batch: MicroBatch, **sums: Tensor) -> LossTerms:
        """With the sums of the labeled rows that every method has: "rows" is their number, "correct" how many have
        the right argmax, "entropy" the sum of their entropies in nats, and "dropped_mass" the sum of the probabilities
        that the sparse gradient replaced. `rows` has the segments of `batch`: q K + k."""
        common = {"rows": torch.tensor(len(rows.nll)), "correct": rows.correct.sum(), "entropy": rows.entropy.sum()}
        if rows.dropped_mass is not None:
            common["dropped_mass"] = rows.dropped_mass.sum()
        return cls(loss, common | sums, rationale_means(rows, batch))


@dataclass(frozen=True)
class StepMetrics:
    """What a method has to say of a step, for metrics.jsonl, the report and TensorBoard."""

    means: Mapping[str, float] = field(default_factory=dict)
    """Numbers that are means over the step's questions; several steps between two log lines are averaged."""
    tables: Mapping[str, Tensor] = field(default_factory=dict)
    """(Q, K) each, nan where there is nothing to say of a rationale; logged as a mean per perspective."""
    latest: Mapping[str, float | Mapping[str, float]] = field(default_factory=dict)
    """Numbers, or objects of numbers, of which the latest is logged, such as a learning rate that moves."""
    work: Mapping[str, int] = field(default_factory=dict)
    """Tokens that the method computed by itself in the step, by kind (mind/run/work.py): what the trainer did for it
    is counted there."""
    loss: float | None = None
    """The loss of a step that trains on nothing; None: the sum of what was trained on."""


def slot_means(l_real: Tensor, slots: Mapping[str, int | slice]) -> dict[str, float]:
    """The mean over questions of L_real (Q, K) in one slot or in several, by name; left out if no question has any."""
    means = {name: float(l_real[:, slot].nanmean()) for name, slot in slots.items()}
    return {name: mean for name, mean in means.items() if not math.isnan(mean)}


def turn_of(name: str, epoch: int, count: int) -> int:
    """Which of `count` things of the question `name` has its turn in an epoch: one after another, from a first one that
    differs between questions."""
    return (epoch + crc32(name.encode())) % count


def random_of(seed: int, step: int, purpose: str) -> torch.Generator:
    """Random numbers of a run's seed, a step and a purpose alone: resumed runs and other processes draw the same."""
    digest = hashlib.sha256(f"{purpose} {seed} {step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))
