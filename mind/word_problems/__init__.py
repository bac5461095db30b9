"""A built-in source of training data: maths word problems with a rationale in every perspective that has a writer.

It needs no download and no teacher model. Problems come from families of one structure each, and families from levels:
one step, two steps, several. Each level holds some families out, so that a student can be tried on structures that it
has not seen.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable, Sequence

from mind.errors import MindError, require
from mind.records import Question, Rationale
from mind.word_problems.levels import LEVELS, Level, LevelName
from mind.word_problems.problem import Family, Problem, draw

__all__ = ["DEFAULT_LEVELS", "LEVELS", "LevelName", "generate"]

DEFAULT_LEVELS: tuple[LevelName, ...] = ("multi-step",)

_ATTEMPTS = 1000
"""Draws of one question before a family counts as exhausted."""

_Numbers = tuple[str, tuple[str, ...]]
"""A family's name and the numbers of a question of it, sorted."""


def generate(
    count: int,
    seed: int,
    *,
    levels: Sequence[str] = DEFAULT_LEVELS,
    families: str | Sequence[str] = "train",
    perspectives: Sequence[str] | None = None,
    apart_from: Iterable[Question] = (),
) -> list[Question]:
    """`count` different questions, each with its integer answer and a rationale for each of `perspectives`.

    The families take turns and are then shuffled, so their numbers differ by one at most. The same arguments give the
    same questions in every process, and the choice of perspectives changes no text. An id is
    "word-problems-<levels>-<families>-<seed>-<index>-<family>", without levels if they are the default.

    Args:
        count: how many questions, at least 1.
        seed: another seed gives other questions, but for a repeat by chance.
        levels: names of LEVELS, whose families are put together.
        families: "train", the families of these levels to train on; "ood", those that they hold out; or names of
            families.
        perspectives: by default all that have a writer in each of the levels. Rationales are in the order of the
            level's writers, whose first eight are the paper's perspectives.
        apart_from: questions of this generator, such as those trained on: none of the new ones has the numbers and the
            family of one of them, so that they differ in more than names.

    Raises MindError for a count below 1, for unknown levels and families, for a perspective without a writer, and for a
    count that exhausts a family.
    """
    require(count >= 1, f"word problems: count is {count}: expected at least 1")
    families = (families,) if isinstance(families, str) else families
    pool = _pool(levels, families)
    names = _with_writers((LEVELS[level] for level in levels), perspectives)
    source = "-".join(["word-problems", *(levels if tuple(levels) != DEFAULT_LEVELS else ()), *families, str(seed)])
    order = [pool[index % len(pool)] for index in range(count)]
    random.Random(source).shuffle(order)
    taken = {_numbers(question.id.rpartition("-")[2], question.question) for question in apart_from}
    seen: set[str] = set()
    questions = []
    for index, (family, level) in enumerate(order):
        # A generator for each question: a change in one family leaves the texts of the others alone.
        rng = random.Random(f"{source}-{index}")
        problem, text = _draw_new(family, rng, seen, taken)
        # All are written, since each moves the generator on for the next.
        written = [Rationale(name, write(problem, rng)) for name, write in level.writers.items()]
        rationales = tuple(rationale for rationale in written if rationale.perspective in names)
        name, answer = f"{source}-{index}-{family.name}", str(problem.answer)
        questions.append(Question(name, text, answer, rationales=rationales, knowledge=family.rules))
    return questions


def _pool(levels: Sequence[str], families: Sequence[str]) -> list[tuple[Family, Level]]:
    """The families that are named, each once, and the level of each."""
    require(bool(levels) and bool(families), "word problems: no level or no family is named")
    for name in levels:
        require(name in LEVELS, f"word problems: there is no level {name}: expected some of {', '.join(LEVELS)}")
    pool: dict[str, tuple[Family, Level]] = {}
    for name in families:
        found = {family.name: (family, LEVELS[level]) for level in levels for family in LEVELS[level].named(name)}
        known = [family.name for level in levels for family in LEVELS[level].families]
        require(
            bool(found), f"word problems: there is no family {name}: expected train, ood or some of {', '.join(known)}"
        )
        pool |= found
    return list(pool.values())


def _with_writers(levels: Iterable[Level], asked: Sequence[str] | None) -> tuple[str, ...]:
    """The perspectives that are asked for, by default those that have a writer in all `levels`."""
    first, *others = (level.writers for level in levels)
    written = tuple(name for name in first if all(name in writers for writers in others))
    missing = [name for name in asked or () if name not in written]
    if missing:
        raise MindError(
            f"word problems: no writer for the perspective {missing[0]}: there are writers for {', '.join(written)}"
        )
    return written if asked is None else tuple(asked)


def _draw_new(family: Family, rng: random.Random, seen: set[str], taken: Collection[_Numbers]) -> tuple[Problem, str]:
    """A problem with other numbers than those `taken`, and its wording that is not in `seen`, to which it is added."""
    for _ in range(_ATTEMPTS):
        problem = draw(family, rng)
        text = problem.text(rng.choice(family.questions))
        if text not in seen and _numbers(family.name, text) not in taken:
            seen.add(text)
            return problem, text
    raise MindError(f"word problems: family {family.name} has too few different questions for this count")


def _numbers(family: str, text: str) -> _Numbers:
    return family, tuple(sorted(re.findall(r"\d+", text)))
