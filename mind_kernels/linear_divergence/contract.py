"""What linear divergence takes, gives and asks of a backend: below its definition and its pass over the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from mind_kernels.head import Head, HeadGradients
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.linear_divergence.teachers import Teacher
from mind_kernels.row_chunks import Rows
from mind_kernels.shards import Group


class DivergenceArguments(NamedTuple):
    """What the operator takes, in the order of its schema."""

    hidden: Tensor  # (N, D)
    head: Head
    teacher: Teacher
    row_weight: Tensor | None  # (N,)
    divergence: Divergence
    reduction: str
    backend: str
    group: Group | None = None  # the processes among which both heads are split


class RowValues(NamedTuple):
    """What a row kernel returns, (n,) each, in the accumulation dtype."""

    divergence: Tensor
    entropy: Tensor
    target_entropy: Tensor


class DivergenceOutputs(NamedTuple):
    """What the operator gives."""

    loss: Tensor  # (), or (N,) for reduction "none"
    values: RowValues  # (N,)


class RowKernels(Protocol):
    """What a backend supplies for this operation: a module, or any other object with these names.

    With weights, the logits become their own gradient, in place.
    """

    def divergence_(
        self,
        logits: Tensor,  # (n, V), projected
        teacher_logits: Tensor,  # (n, V), projected
        weights: Tensor | None,  # (n,)
        head: Head,
        teacher_head: Head,
        divergence: Divergence,
    ) -> RowValues:
        """The divergence from a teacher of the same vocabulary; overwrites both logits."""
        ...

    def listed_divergence_(
        self,
        logits: Tensor,  # (n, V), projected
        ids: Tensor,  # (n, T), distinct in each row
        log_p: Tensor,  # (n, T + 1), log-probabilities of the events
        weights: Tensor | None,  # (n,)
        head: Head,
        divergence: Divergence,
    ) -> RowValues:
        """The divergence from a teacher's list; overwrites the logits.

        The events are each of the T tokens and, last, all others together. Where log_p is -inf there is no event: such
        a token is one of the others, and without the last event the student is renormalized over the rest.
        """
        ...


class ExactRows(Protocol):
    """Rows with a gradient, from hidden states to gradients in chunks of `size`."""

    size: int

    def add(
        self,
        rows: Rows,  # a chunk
        hidden: Tensor,  # (n, D), its hidden states
        weights: Tensor,  # (n,), of its rows
        gradients: HeadGradients,
    ) -> RowValues:
        """The values of the chunk's rows; adds their gradients."""
        ...


@runtime_checkable
class OwnProducts(Protocol):
    """What the kernels of a backend may have beside those of `RowKernels`."""

    def exact_rows(
        self, rows: int, hidden: Tensor, head: Head, teacher: Teacher, divergence: Divergence
    ) -> ExactRows | None:
        """For `rows` rows of `hidden`; None if those of `RowKernels` and PyTorch's products are to be taken."""
        ...


@dataclass(frozen=True)
class DivergenceStats:
    """Statistics of the rows, (N,), without a gradient; float32 (float64 for float64 input)."""

    divergence: Tensor
    """(N,) the divergence of the row in nats, without its weight."""
    entropy: Tensor
    """(N,) entropy of the student's softmax in nats."""
    target_entropy: Tensor
    """(N,) entropy in nats of the teacher's distribution as it is compared: p_t of kind "taid", or of a list's events.
    With the divergence of "forward_kl" or "taid" it adds up to the student's cross-entropy under that target."""
