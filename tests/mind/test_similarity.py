"""Similarity of rationales: n-gram sets, Jaccard indices, and the choices by them."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mind.similarity import distinct, most_diverse, ngram_sets, similarities

TEXTS = st.lists(st.text(alphabet="abc 1.?\n", max_size=30), max_size=8)


def similarity(one, other, n=3):
    return similarities(ngram_sets([one, other], n))[0][1]


@pytest.mark.parametrize(
    ("one", "other", "n", "expected"),
    [
        ("one two three four", "one two three four", 3, 1),
        ("One, two: THREE!", "one two - three", 3, 1),
        ("one two three four", "one two three five", 3, 1 / 3),
        ("a b c d", "b c d e", 1, 3 / 5),
        ("a b a b", "a b", 2, 1 / 2),
        ("5 + 7 = 12", "5 7 12", 2, 1),
        ("one two three", "three two one", 3, 0),
        ("one two", "one two", 3, 1),
        ("one two", "one two three", 3, 0),
        ("one", "two", 3, 0),
        ("...", "?!", 3, 1),
        ("...", "one", 3, 0),
        ("ÄRGER über x", "ärger Über x", 3, 1),
    ],
)
def test_pairs(one, other, n, expected):
    assert similarity(one, other, n) == pytest.approx(expected)


@given(TEXTS, st.integers(1, 4))
def test_similarities_are_the_definition(texts, n):
    def ngrams(text):
        words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} or {tuple(words)}

    table = similarities(ngram_sets(texts, n))
    for (i, one), (j, other) in itertools.product(enumerate(texts), repeat=2):
        a, b = ngrams(one), ngrams(other)
        assert table[i][j] == len(a & b) / len(a | b)


def test_distinct_compares_with_those_that_stay():
    table = [[1, 0.8, 0.2, 0.1], [0.8, 1, 0.9, 0.1], [0.2, 0.9, 1, 0.7], [0.1, 0.1, 0.7, 1]]
    assert distinct(table, 0.8) == [0, 2, 3]
    assert distinct(table, 0.7) == [0, 2]
    assert distinct(table, 1.0) == [0, 1, 2, 3]
    assert distinct([], 0.7) == []


def test_the_most_diverse_are_taken_farthest_first():
    #         a0  a1  b0  b1  c0
    table = [
        [1, 0.6, 0.5, 0.4, 0.5],
        [0.6, 1, 0.1, 0.3, 0.2],
        [0.5, 0.1, 1, 0.6, 0.3],
        [0.4, 0.3, 0.6, 1, 0.1],
        [0.5, 0.2, 0.3, 0.1, 1],
    ]
    groups = "aabbc"
    # Averages over other groups: a1 .2, b1 .27, c0 .28, b0 .3, a0 .47. Then b0 is farther from a1 than b1 and c0 are.
    assert most_diverse(table, range(5), groups, 8) == [1, 2, 4]
    assert most_diverse(table, range(5), groups, 2) == [1, 2]
    # Averages b1 .25, c0 .3, a0 .45.
    assert most_diverse(table, [0, 3, 4], groups, 8) == [3, 4, 0]
    assert most_diverse(table, [3], groups, 8) == [3]
    assert most_diverse(table, [], groups, 8) == []


def test_the_nearest_of_those_taken_counts():
    table = [[1, 0.1, 0.2, 0.5], [0.1, 1, 0.6, 0.5], [0.2, 0.6, 1, 0.6], [0.5, 0.5, 0.6, 1]]
    assert most_diverse(table, range(4), "abcd", 3) == [0, 1, 3]


def test_of_equally_diverse_ones_the_first_candidates_are_taken():
    table = [[1.0 if i == j else 0.0 for j in range(6)] for i in range(6)]
    assert most_diverse(table, [0, 1, 2, 3, 4, 5], "aabbcc", 2) == [0, 2]
    assert most_diverse(table, [5, 3, 4, 1, 2, 0], "aabbcc", 3) == [5, 3, 1]


@given(TEXTS, st.lists(st.sampled_from("abc"), min_size=8, max_size=8), st.integers(1, 4))
def test_every_group_is_represented_up_to_the_limit(texts, groups, keep):
    table = similarities(ngram_sets(texts, 2))
    taken = [groups[index] for index in most_diverse(table, range(len(texts)), groups, keep)]
    assert len(taken) == len(set(taken)) == min(keep, len(set(groups[: len(texts)])))


def test_sets_are_the_same_in_every_process():
    code = "from mind.similarity import ngram_sets; print(ngram_sets(['a b c d', 'b c d e', 'x'], 2))"
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert told == {"[frozenset({0, 1, 2}), frozenset({1, 2, 3}), frozenset({4})]\n"}


@pytest.mark.parametrize("piece", ["a", "a ", " ", "\x00", ".", "\n", "\ud800", "é "])
def test_no_text_takes_long(piece):
    start = time.process_time()
    similarities(ngram_sets([piece * (200_000 // len(piece))] * 3, 3))
    assert time.process_time() - start < 5
