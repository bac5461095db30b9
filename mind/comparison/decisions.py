"""Statistical decisions: what follows from several comparisons together, and from single runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

ALPHA = 0.05
"""The accepted share of false claims."""


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for multiple tests: if all claims with an adjusted value below ALPHA are made, the probability
    of any false one is at most ALPHA.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6
    (1979).
    """
    adjusted, highest = {}, 0.0
    for rank, (name, value) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(values) - rank) * value))
        adjusted[name] = highest
    return {name: adjusted[name] for name in values}


def all_hold(values: Sequence[float], alpha: float = ALPHA) -> bool:
    """Whether every one of the one-sided p-values is below `alpha`, an intersection-union test.

    "All of them hold" is false as soon as one is false, so each is tested at `alpha` without a correction for their
    number (R. L. Berger, Multiparameter hypothesis testing and acceptance sampling, Technometrics 24, 1982). False
    without values.
    """
    return bool(values) and all(value < alpha for value in values)


def whole_groups(values: Mapping[str, Sequence[float]]) -> list[str]:
    """Those of at most two groups of one-sided p-values for which "all of them hold" may be claimed.

    Both may be claimed if all values are below ALPHA; a single one only if its values are below ALPHA divided by the
    number of groups, since either could have been the one. The probability that a claimed group is false is then at
    most ALPHA, whichever hypotheses are true, if the groups' tests do not oppose each other (Y. Hochberg, A sharper
    Bonferroni procedure for multiple tests of significance, Biometrika 75, 1988).
    """
    whole = [group for group, own in values.items() if all_hold(own)]
    if len(whole) == len(values):
        return whole
    return [group for group in whole if all_hold(values[group], ALPHA / len(values))]


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> tuple[int, int, float]:
    """For two runs, arrays (N,) of True or False: the number of questions that only ours got right, the number that
    only theirs got right, and the exact two-sided p-value; 1 if there are none.

    Source: Q. McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12
    (1947), with the binomial distribution.
    """
    gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    tail = sum(math.comb(gained + lost, k) for k in range(min(gained, lost) + 1))
    return gained, lost, min(1.0, 2 * tail / 2 ** (gained + lost))


def detectable(discordance: float, questions: int, alpha: float = ALPHA, power: float = 0.8) -> float:
    """The smallest difference in accuracy that two runs show at the two-sided level `alpha` with this `power`.

    Args:
        discordance: the share of the questions that exactly one of the two runs gets right.
        questions: number of questions.
        alpha: the level of the test.
        power: how often a difference of that size is detected.
    """
    quantiles = NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)
    return min(1.0, quantiles * math.sqrt(discordance / questions))


def discordance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The share of the questions on which a run of ours and one of theirs differ, over all pairs of runs.

    Args:
        ours: (S, N) marks from 0 to 1; fractional ones count by their difference.
        theirs: (R, N) marks.

    One question of each kind is added, as in `mind.intervals.paired_difference`, so that it is never 0.
    """
    differing = np.abs(ours[:, None] - theirs[None]).mean((0, 1))
    return float(differing.sum() + 2) / (len(differing) + 2)
