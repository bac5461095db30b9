"""Measures how similar rationales are by the Jaccard index of their word n-grams, and selects by it.

Everything is exact and within one question: there are few rationales, so all pairs are compared.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable, Sequence

from mind.words import words


def ngram_sets(texts: Sequence[str], n: int) -> list[frozenset[int]]:
    """The n-grams of the words of each text (mind/words.py), in lower case and without punctuation, as numbers; equal
    n-grams have equal numbers.

    A text of fewer than `n` words is a single shorter n-gram, so no set is empty.
    """
    numbers: defaultdict[tuple[str, ...], int] = defaultdict(itertools.count().__next__)
    sets = []
    for text in texts:
        found = words(text.lower())
        ngrams = zip(*(found[start:] for start in range(n)), strict=False) if len(found) >= n else [tuple(found)]
        sets.append(frozenset(map(numbers.__getitem__, ngrams)))
    return sets


def similarities(sets: Sequence[frozenset[int]]) -> list[list[float]]:
    """(R, R): the Jaccard index of each pair of the R sets, none of which is empty: |a & b| / |a | b|, in [0, 1]."""
    table = [[1.0] * len(sets) for _ in sets]
    for i, one in enumerate(sets):
        for j in range(i):
            shared = len(one & sets[j])
            table[i][j] = table[j][i] = shared / (len(one) + len(sets[j]) - shared)
    return table


def distinct(similarity: Sequence[Sequence[float]], threshold: float) -> list[int]:
    """The indices kept when going through them in order: those with a similarity below `threshold` to every index kept
    before."""
    kept: list[int] = []
    for index, row in enumerate(similarity):
        if all(row[earlier] < threshold for earlier in kept):
            kept.append(index)
    return kept


def most_diverse(
    similarity: Sequence[Sequence[float]], candidates: Sequence[int], groups: Sequence[Hashable], keep: int
) -> list[int]:
    """At most `keep` of the indices `candidates`, at most one per group, chosen to be dissimilar.

    `groups` gives the group of each index. Farthest first: the first choice is the least similar on average to the
    candidates of other groups, each further choice the least similar to its nearest one among those chosen. Groups are
    left out only if there are more than `keep`. Among equal ones, the earlier of `candidates` is chosen.
    """

    def to_the_rest(index: int) -> float:
        others = [similarity[index][other] for other in candidates if groups[other] != groups[index]]
        return sum(others) / len(others) if others else 0.0

    taken: list[int] = []
    left = list(candidates)
    nearest = {index: to_the_rest(index) for index in left}
    while left and len(taken) < keep:
        best = min(left, key=nearest.__getitem__)
        taken.append(best)
        left = [index for index in left if groups[index] != groups[best]]
        nearest = {index: max(similarity[index][other] for other in taken) for index in left}
    return taken
