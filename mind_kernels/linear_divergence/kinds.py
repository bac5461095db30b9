"""The kinds of divergence: their parameters, the coefficients that backends use, and the definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mind_kernels import checks
from mind_kernels.definitions import finite, kl


@dataclass(frozen=True)
class Divergence:
    """sum_v a K(p_v, m_v) + b K(q_v, m_v), m = c p + (1 - c) q, of the student's softmax q and the teacher's p.

    K(x, m) = x log(x / m) - x + m: the Kullback-Leibler divergence of two distributions, and no entry is negative.
    """

    teacher_part: float
    """a"""
    student_part: float
    """b"""
    mixture: float
    """c: m is q for 0, and p for 1."""
    interpolation: float = 1.0
    """t: p is the softmax of (1 - t) z_student + t z_teacher, without a gradient."""

    @property
    def difference_part(self) -> float:
        """d = a (1 - c) - b c: the terms -x + m above sum to d sum_v (q_v - p_v), which is 0 except for rounding.

        The derivative with respect to q is F' = b log(q / m) + (1 - c) d (q - p) / m.
        """
        return self.teacher_part * (1 - self.mixture) - self.student_part * self.mixture

    def target(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """log p of the distribution that the student is compared with: the teacher's, or p_t, without a gradient; (N,
        E)."""
        if self.interpolation == 1:
            return log_p
        return torch.log_softmax(torch.lerp(finite(log_q.detach()), finite(log_p), self.interpolation), -1)

    def of(
        self,
        log_q: Tensor,  # (N, E), the student's, for E events
        log_p: Tensor,  # (N, E), the result of `target`
    ) -> Tensor:
        """The divergence of each row (N,): the definition, differentiable with respect to the student."""
        c = self.mixture
        if c in (0, 1):
            log_m = log_p if c else log_q
        else:
            log_m = torch.logaddexp(finite(log_p) + math.log(c), finite(log_q) + math.log1p(-c))
        value = torch.zeros_like(log_q[:, 0])
        if self.teacher_part:
            value = value + self.teacher_part * kl(log_p, log_m)
        if self.student_part:
            value = value + self.student_part * kl(log_q, log_m)
        return value


class Kind(NamedTuple):
    """A kind of divergence: the name of its parameter, and the Divergence for a value of it."""

    parameter: str | None
    divergence: Callable[[float], Divergence]


KINDS = {
    "forward_kl": Kind(None, lambda _: Divergence(1.0, 0.0, 0.0)),
    "reverse_kl": Kind(None, lambda _: Divergence(0.0, 1.0, 1.0)),
    "jsd": Kind("beta", lambda beta: Divergence(beta, 1 - beta, beta)),
    "skew_forward_kl": Kind("skew", lambda skew: Divergence(1.0, 0.0, skew)),
    "skew_reverse_kl": Kind("skew", lambda skew: Divergence(0.0, 1.0, 1 - skew)),
    "taid": Kind("interpolation", lambda t: Divergence(1.0, 0.0, 0.0, t)),
}
_DEFAULTS = {"beta": 0.5, "skew": 0.1}


def divergence_of(kind: str, beta: float | None, skew: float | None, interpolation: float | None) -> Divergence:
    """The Divergence of this kind. Raises ValueError for a parameter that is out of range or not used by the kind."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: expected one of {', '.join(map(repr, KINDS))}")
    given = {"beta": beta, "skew": skew, "interpolation": interpolation}
    parameter = KINDS[kind].parameter
    for name, value in given.items():
        if value is not None and name != parameter:
            raise ValueError(f"{name} is {value}: expected None, since kind {kind!r} does not use it")
    value = 0.0 if parameter is None else _checked(parameter, given[parameter])
    return KINDS[kind].divergence(value)


def _checked(name: str, value: float | None) -> float:
    """The value of a parameter, or its default for None."""
    checks.number(name, value)
    value = _DEFAULTS.get(name) if value is None else value
    if name == "interpolation":
        if value is None or not 0.0 <= value <= 1.0:
            raise ValueError(f"interpolation is {value}: expected a number in [0, 1], which kind 'taid' requires")
    elif value is None or not 0.0 < value < 1.0:
        limits = "; what others call beta 0 and 1 are the kinds 'forward_kl' and 'reverse_kl'"
        raise ValueError(f"{name} is {value}: expected a number in (0, 1)" + (limits if name == "beta" else ""))
    return value
