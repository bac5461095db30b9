"""The interface of linear divergence: arguments, outputs, and the kernels that a backend has to supply."""

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
    """The arguments of the operator, in the order of its schema."""

    hidden: Tensor  # (N, D)
    head: Head
    teacher: Teacher
    row_weight: Tensor | None  # (N,)
    divergence: Divergence
    reduction: str
    backend: str
    group: Group | None = None  # the processes among which both heads are split


class RowValues(NamedTuple):
    """The values that a row kernel returns, (n,) each, in the accumulation dtype."""

    divergence: Tensor
    entropy: Tensor
    target_entropy: Tensor


class DivergenceOutputs(NamedTuple):
    """The outputs of the operator."""

    loss: Tensor  # (), or (N,) for reduction "none"
    values: RowValues  # (N,)


class RowKernels(Protocol):
    """The kernels that a backend has to supply for this operation: a module, or any other object with these names.

    With weights, the kernel overwrites the student's logits by their gradient.
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
        """The divergence from a teacher with the same vocabulary; overwrites the logits of both."""
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

        The events are each of the T tokens and, last, all other tokens together. An entry of log_p that is -inf is no
        event: the token then counts among the others; if the last event is missing, the student is renormalized over
        the listed tokens.
        """
        ...


class ExactRows(Protocol):
    """Rows with a gradient, computed from hidden states to gradients in chunks of `size`."""

    size: int

    def add(
        self,
        rows: Rows,  # a chunk
        hidden: Tensor,  # (n, D), its hidden states
        weights: Tensor,  # (n,), weights of its rows
        gradients: HeadGradients,
    ) -> RowValues:
        """Returns the values of the chunk's rows, and adds their gradients."""
        ...


@runtime_checkable
class OwnProducts(Protocol):
    """Further kernels that a backend may have, beside those of `RowKernels`."""

    def exact_rows(
        self, rows: int, hidden: Tensor, head: Head, teacher: Teacher, divergence: Divergence
    ) -> ExactRows | None:
        """An object for `rows` rows of `hidden`; None if `RowKernels` and PyTorch's products are to be used."""
        ...


@dataclass(frozen=True)
class DivergenceStats:
    """Statistics per row, without a gradient; float32 (float64 for float64 input)."""

    divergence: Tensor
    """(N,) the divergence of the row in nats, without its weight."""
    entropy: Tensor
    """(N,) entropy of the student's softmax in nats."""
    target_entropy: Tensor
    """(N,) entropy in nats of the distribution that the student is compared with: the teacher's, p_t for kind "taid",
    or that of a list's events. For "forward_kl" and "taid", divergence plus this entropy is the student's cross-entropy
    under that distribution."""
