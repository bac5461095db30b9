"""The kinds of divergence, as the few numbers that every backend computes with."""

from __future__ import annotations

from dataclasses import dataclass

# Each kind and the parameter that it takes.
KINDS = {
    "forward_kl": None,
    "reverse_kl": None,
    "jsd": "beta",
    "skew_forward_kl": "skew",
    "skew_reverse_kl": "skew",
    "taid": "interpolation",
}
_DEFAULTS = {"beta": 0.5, "skew": 0.1}


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
    """c: 0 where m is q, 1 where m is p."""
    interpolation: float = 1.0
    """t: p is the softmax of (1 - t) z_student + t z_teacher, a constant."""

    @property
    def difference_part(self) -> float:
        """d = a (1 - c) - b c: the -x + m above sum to d sum_v (q_v - p_v), which vanishes but for rounding.

        The derivative with respect to q is F' = b log(q / m) + (1 - c) d (q - p) / m.
        """
        return self.teacher_part * (1 - self.mixture) - self.student_part * self.mixture


def divergence_of(kind: str, beta: float | None, skew: float | None, interpolation: float | None) -> Divergence:
    """The divergence of this kind. Raises ValueError, naming the parameter, for one that is off or not the kind's."""
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: expected one of {', '.join(map(repr, KINDS))}")
    given = {"beta": beta, "skew": skew, "interpolation": interpolation}
    name = KINDS[kind]
    for other, value in given.items():
        if value is not None and other != name:
            raise ValueError(f"{other} is {value}: expected None, since kind {kind!r} does not use it")
    if name is None:
        return Divergence(1.0, 0.0, 0.0) if kind == "forward_kl" else Divergence(0.0, 1.0, 1.0)
    value = _DEFAULTS.get(name) if given[name] is None else float(given[name])
    _check(name, value)
    if kind == "jsd":
        return Divergence(value, 1 - value, value)
    if kind == "taid":
        return Divergence(1.0, 0.0, 0.0, value)
    return Divergence(1.0, 0.0, value) if kind == "skew_forward_kl" else Divergence(0.0, 1.0, 1 - value)


def _check(name: str, value: float | None) -> None:
    if name == "interpolation":
        if value is None or not 0.0 <= value <= 1.0:
            raise ValueError(f"interpolation is {value}: expected a number in [0, 1], which kind 'taid' requires")
    elif not 0.0 < value < 1.0:
        limits = "; what others call beta 0 and 1 are the kinds 'forward_kl' and 'reverse_kl'"
        raise ValueError(f"{name} is {value}: expected a number in (0, 1)" + (limits if name == "beta" else ""))
