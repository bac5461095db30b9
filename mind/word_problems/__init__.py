"""A built-in source of training data: maths word problems with a rationale in every perspective that has a writer.

It needs no download and no teacher model. Problems come from families of one structure each. Three families are held
out, so that a student can be tried on structures that it has not seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from mind.errors import MindError
from mind.records import Question, Rationale
from mind.word_problems.families_measures import MEASURE_FAMILIES
from mind.word_problems.families_objects import OBJECT_FAMILIES
from mind.word_problems.families_ood import HELD_OUT_FAMILIES
from mind.word_problems.manners import WRITERS
from mind.word_problems.problem import Family, Problem, draw

_FAMILIES = {
    "train": OBJECT_FAMILIES + MEASURE_FAMILIES,
    "ood": HELD_OUT_FAMILIES,
}
TRAIN_FAMILIES: tuple[str, ...] = tuple(family.name for family in _FAMILIES["train"])
"""The names of the families that `generate` draws from by default."""
OOD_FAMILIES: tuple[str, ...] = tuple(family.name for family in _FAMILIES["ood"])
"""The names of the held-out (out-of-distribution) families."""
FAMILIES: tuple[str, ...] = TRAIN_FAMILIES + OOD_FAMILIES
"""The names of all families."""

_ATTEMPTS = 1000
"""Draws of one question before a family counts as exhausted."""


def generate(
    count: int,
    seed: int,
    *,
    families: Literal["train", "ood"] = "train",
    perspectives: Sequence[str] | None = None,
) -> list[Question]:
    """`count` different questions, each with its integer answer and a rationale for each of `perspectives`.

    Rationales are in the order of WRITERS (mind/word_problems/manners.py), which has the paper's eight perspectives; by
    default there is one for each writer. The families take turns and are then shuffled, so their numbers differ by one
    at most. The same arguments give the same questions in every process, and the choice of perspectives changes no
    text. Another seed gives other questions (a chance repeat is rare), which serve as a held-out set. An id is
    "word-problems-<families>-<seed>-<index>-<family>".

    Raises MindError for a count below 1, for unknown `families`, for a perspective without a writer, and for a count
    that exhausts a family.
    """
    if count < 1:
        raise MindError(f"count is {count}: expected at least 1 word problem")
    if families not in _FAMILIES:
        raise MindError(f"families is {families!r}: expected {' or '.join(map(repr, _FAMILIES))}")
    asked = tuple(WRITERS) if perspectives is None else perspectives
    if missing := [name for name in asked if name not in WRITERS]:
        raise MindError(
            f"word problems: no writer for the perspective {missing[0]}: there are writers for {', '.join(WRITERS)}"
        )
    source = f"word-problems-{families}-{seed}"
    pool = _FAMILIES[families]
    order = [pool[index % len(pool)] for index in range(count)]
    random.Random(source).shuffle(order)
    seen: set[str] = set()
    questions = []
    for index, family in enumerate(order):
        # A generator for each question: a change in one family leaves the texts of the others alone.
        rng = random.Random(f"{source}-{index}")
        problem, text = _draw_new(family, rng, seen)
        # All are written, since each moves the generator on for the next.
        written = [Rationale(name, write(problem, rng)) for name, write in WRITERS.items()]
        rationales = tuple(rationale for rationale in written if rationale.perspective in asked)
        questions.append(Question(f"{source}-{index}-{family.name}", text, str(problem.answer), rationales=rationales))
    return questions


def _draw_new(family: Family, rng: random.Random, seen: set[str]) -> tuple[Problem, str]:
    """A problem and its wording that is not in `seen`, to which it is added."""
    for _ in range(_ATTEMPTS):
        problem = draw(family, rng)
        text = problem.text(rng.choice(family.questions))
        if text not in seen:
            seen.add(text)
            return problem, text
    raise MindError(f"word problems: family {family.name} has too few different questions for this count")
