"""95 % confidence intervals for an accuracy, and for the difference of two accuracies on the same questions."""

from __future__ import annotations

import math
from collections.abc import Iterable

Z = 1.959963984540054
"""The standard normal distribution has 95 % of its mass between -Z and Z."""


def wilson(correct: float, total: int) -> tuple[float, float]:
    """Wilson's score interval for the share of `correct` among `total`: within [0, 1], also if none or all are correct.

    `correct` may be a sum of shares, such as the share of right samples of each question.

    Raises ValueError unless 0 <= correct <= total and total >= 1. Source: E. B. Wilson, Probable inference, the law of
    succession, and statistical inference, JASA 22 (1927).
    """
    if not 0 <= correct <= total or total < 1:
        raise ValueError(f"{correct} of {total}: expected 0 <= correct <= total and at least one question")
    share, square = correct / total, Z**2 / total
    center = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    return max(center - half, 0.0), min(center + half, 1.0)


def paired_difference(pairs: Iterable[tuple[bool, bool]]) -> tuple[float, float]:
    """The interval for the accuracy after minus the accuracy before, from a pair (before, after) per question: within
    [-1, 1].

    It counts the questions that changed, with one added to those gained and one to those lost (the adjusted Wald
    interval of D. G. Bonett and R. M. Price, Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data, Journal of Educational and Behavioral Statistics 37, 2012). Two overlapping intervals say
    nothing about a difference on the same questions; this interval does. Raises ValueError without questions.
    """
    changes = [after - before for before, after in pairs]
    if not changes:
        raise ValueError("no pairs: expected at least one question")
    total = len(changes) + 2
    gained, lost = (changes.count(1) + 1) / total, (changes.count(-1) + 1) / total
    half = Z * math.sqrt((gained + lost - (gained - lost) ** 2) / total)
    return max(gained - lost - half, -1.0), min(gained - lost + half, 1.0)
