"""Training questions with a validation set and tests, none of which has numbers and family in common with another."""

from __future__ import annotations

from collections.abc import Sequence

from mind.errors import MindError, require
from mind.records import Question
from mind.word_problems import DEFAULT_LEVELS, LEVELS, Lapses, generate

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

    Args:
        count: how many questions "train" has.
        seed: of all sets.
        validation: how many "validation" has, which are of the families of training; 0: there is no such set.
        test: how many each of the tests has; 0: there are none. "id" is of the families of training, "ood" of the other
            families of the levels, and "larger" of the families of training with larger numbers.

    The other arguments are as for `mind.word_problems.generate`, which raises MindError for them; so does this for
    negative counts, and if no family of the levels is left for "ood".
    """
    for name, number in (("validation", validation), ("test", test)):
        require(number >= 0, f"word problems: {name} is {number}: expected at least 0")
    common = {"levels": levels, "perspectives": perspectives, "lapses": lapses}
    sets = {"train": generate(count, seed, families=families, reach=reach, part="train", **common)}
    if validation:
        sets["validation"] = generate(validation, seed, families=families, reach=reach, part="validation", **common)
    if test:
        trained = {family.name for level in levels for name in families for family in LEVELS[level].named(name)}
        others = [family.name for level in levels for family in LEVELS[level].families if family.name not in trained]
        if not others:
            raise MindError("word problems: no family is left for the test ood: train on fewer families")
        here = {"reach": reach, "part": "test"} | common
        further = {"reach": reach * LARGER, "beyond": reach, "part": "test"} | common
        sets["id"] = generate(test, seed, families=families, **here)
        sets["ood"] = generate(test, seed, families=others if others != _held_out(levels) else "ood", **here)
        sets["larger"] = generate(test, seed, families=families, apart_from=sets["id"], **further)
    return sets


def _held_out(levels: Sequence[str]) -> list[str]:
    return [family.name for level in levels for family in LEVELS[level].ood]
