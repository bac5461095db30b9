"""Makes training questions with a validation set and tests that share no problem (family and numbers) with one
another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mind.errors import MindError, require
from mind.records import Question
from mind.word_problems import DEFAULT_LEVELS, Lapses, generate, other_families

LARGER = 1.5
"""The reach of the test with larger numbers, relative to training."""


def make_splits(
    count: int,
    seed: int,
    *,
    validation: int,
    test: int,
    levels: Sequence[str] = DEFAULT_LEVELS,
    families: Sequence[str] = ("train",),
    perspectives: Sequence[str] | None = None,
    reach: float = 1.0,
    lapses: Lapses | None = None,
) -> dict[str, list[Question]]:
    """The sets of an experiment by name.

    Validation and tests have each problem (family and numbers) only once, so that the errors of an accuracy are those
    of independent questions. Training questions may repeat a problem in other words.

    Args:
        count: number of questions in "train".
        seed: seed of all sets.
        validation: number of questions in "validation", from the training families; 0: no such set.
        test: number of questions in each test; 0: no tests. "id" uses the training families, "ood" the other families
            of the levels, and "larger" the training families with larger numbers.

    The other arguments are those of `mind.word_problems.generate`, with the same MindErrors. Also raises MindError for
    negative counts, if no family of the levels is left for "ood", and for a set with too few different problems.
    """
    for name, number in (("validation", validation), ("test", test)):
        require(number >= 0, f"word problems: {name} is {number}: expected at least 0")
    common = {"levels": levels, "perspectives": perspectives, "lapses": lapses}
    sets = {"train": generate(count, seed, families=families, reach=reach, part="train", **common)}
    if validation:
        here = {"families": families, "reach": reach, "part": "validation"}
        sets["validation"] = _distinct("validation", validation, seed, **here, **common)
    if test:
        here = {"reach": reach, "part": "test"} | common
        further = {"reach": reach * LARGER, "beyond": reach, "part": "test"} | common
        sets["id"] = _distinct("id", test, seed, families=families, **here)
        sets["ood"] = _distinct("ood", test, seed, families=other_families(levels, families), **here)
        sets["larger"] = _distinct("larger", test, seed, families=families, apart_from=sets["id"], **further)
    return sets


def _distinct(name: str, count: int, seed: int, **options: Any) -> list[Question]:
    """A set that has each problem once; an error names the set."""
    try:
        return generate(count, seed, distinct=True, **options)
    except MindError as error:
        raise MindError(f"{name}: {error}") from None
