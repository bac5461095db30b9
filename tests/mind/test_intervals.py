"""The intervals against their definitions: the score test that Wilson's inverts, and coverage by enumeration."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest

from mind.intervals import Z, paired_difference, wilson


def test_the_quantile():
    assert pytest.approx(NormalDist().inv_cdf(0.975), abs=1e-12) == Z


@pytest.mark.parametrize(
    ("correct", "total"), [(0, 1), (1, 1), (0, 8), (8, 8), (7, 50), (29, 50), (58, 100), (999, 1000)]
)
def test_wilson_holds_the_shares_that_the_score_test_does_not_reject(correct, total):
    low, high = wilson(correct, total)
    assert 0 <= low <= correct / total <= high <= 1 and low < high
    for share in (low, high):
        if 0 < share < 1:
            score = abs(correct / total - share) / math.sqrt(share * (1 - share) / total)
            assert score == pytest.approx(Z, rel=1e-9)
    assert (low == 0) == (correct == 0) and (high == 1) == (correct == total)


def test_wilson_stays_within_0_and_1():
    """Also where its bound is 1 but for roundings."""
    assert all(wilson(total, total)[1] <= 1 and wilson(0, total)[0] >= 0 for total in range(1, 300))


def test_wilson_as_published():
    """Newcombe's example of 81 of 263, in Statistics in Medicine 17 (1998) 857: 0.2553 to 0.3662."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def multinomial(total, gained, lost):
    """(gained, lost, probability) of each outcome."""
    for a in range(total + 1):
        for b in range(total + 1 - a):
            ways = math.comb(total, a) * math.comb(total - a, b)
            yield a, b, ways * gained**a * lost**b * (1 - gained - lost) ** (total - a - b)


@pytest.mark.parametrize(("gained", "lost"), [(0.45, 0.05), (0.1, 0.1), (0.02, 0.02), (0.7, 0.0), (0.2, 0.5)])
def test_the_interval_of_a_difference_covers_it_in_95_of_100_draws(gained, lost):
    total, covered = 40, 0.0
    for a, b, probability in multinomial(total, gained, lost):
        low, high = paired_difference([(False, True)] * a + [(True, False)] * b + [(True, True)] * (total - a - b))
        covered += probability * (low <= gained - lost <= high)
    assert 0.94 < covered <= 1


def test_the_difference_by_hand():
    """3 gained and 1 lost of 10: shares 4/12 and 2/12, variance (6/12 - (2/12)^2) / 12."""
    pairs = [(False, True)] * 3 + [(True, False)] + [(True, True)] * 6
    half = Z * math.sqrt((6 / 12 - (2 / 12) ** 2) / 12)
    assert paired_difference(pairs) == pytest.approx((2 / 12 - half, 2 / 12 + half), abs=1e-12)
    assert paired_difference([(False, True)] * 10)[1] == 1 and paired_difference([(True, False)] * 10)[0] == -1


def test_the_difference_counts_only_questions_that_change():
    changed = [(True, False)] * 3 + [(False, True)] * 3
    low, high = paired_difference(changed + [(True, True)] * 9)
    assert (low, high) == paired_difference(changed + [(False, False)] * 9) and low == -high
    low, high = paired_difference([(False, True)] * 10)
    assert 0 < low < high <= 1
    low, high = paired_difference([(True, True)] * 10)
    assert low == -high < 0, "ten questions do not show that nothing changes"


@pytest.mark.parametrize(
    "call", [lambda: wilson(0, 0), lambda: wilson(3, 2), lambda: wilson(-1, 2), lambda: paired_difference([])]
)
def test_nothing_to_count(call):
    with pytest.raises(ValueError, match="expected"):
        call()
