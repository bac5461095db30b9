"""Training questions with a validation set and tests, none of which has numbers and family in common with another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mind.errors import MindError, require
from mind.records import Question
from mind.word_problems import DEFAULT_LEVELS, Lapses, generate, other_families

LARGER = 1.5
"""How many times as far as those of training the numbers of the test with larger ones reach."""


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

    Validation and tests have each problem, by family and numbers, once: the error of an accuracy is that of independent
    questions. Those of training may be the same problem in other words.

    Args:
        count: how many questions "train" has.
        seed: of all sets.
        validation: how many "validation" has, which are of the families of training; 0: there is no such set.
        test: how many each of the tests has; 0: there are none. "id" is of the families of training, "ood" of the other
            families of the levels, and "larger" of the families of training with larger numbers.

    The other arguments are as for `mind.word_problems.generate`, which raises MindError for them; so does this for
    negative counts, if no family of the levels is left for "ood", and for a set that has too few different problems.
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
    """A set that has each problem once; an error names it."""
    try:
        return generate(count, seed, distinct=True, **options)
    except MindError as error:
        raise MindError(f"{name}: {error}") from None
