"""A built-in source of training data: math word problems with a rationale in every perspective that has a writer.

It needs no download and no teacher model. Problems are drawn from families, each with one structure; families belong to
levels: one step, two steps, several steps. Each level holds some families out, so that a student can be tested on
structures that it has not seen.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from typing import get_args

from mind.display import meant
from mind.errors import MindError, require
from mind.progress import tracked
from mind.records import Question
from mind.word_problems.lapses import Lapses, tell
from mind.word_problems.levels import FAMILY_NUMBERS, LEVELS, Level, LevelName
from mind.word_problems.parts import Numbers, Part, numbers_of, part_of
from mind.word_problems.problem import Family, Problem, draw, every

__all__ = ["DEFAULT_LEVELS", "LEVELS", "Lapses", "LevelName", "Part", "family_of", "generate", "other_families"]

DEFAULT_LEVELS: tuple[LevelName, ...] = ("multi-step",)

MOST_QUESTIONS = 1_000_000
"""Number of questions of one file, at most: a slip of the finger would fill the memory before it is noticed."""
_ATTEMPTS = 1000
"""Number of draws for one question after which a family counts as exhausted."""


def generate(
    count: int,
    seed: int,
    *,
    levels: Sequence[str] = DEFAULT_LEVELS,
    families: str | Sequence[str] = "train",
    perspectives: Sequence[str] | None = None,
    apart_from: Iterable[Question] = (),
    reach: float = 1.0,
    beyond: float | None = None,
    part: Part | None = None,
    distinct: bool = False,
    lapses: Lapses | None = None,
) -> list[Question]:
    """`count` questions in different words, each with its integer answer and a rationale for each of `perspectives`.

    The families are used in turn and the result is shuffled, so their counts differ by at most one, unless `distinct`
    exhausts a family. Two questions may be the same problem, with the same numbers, in other words. The same arguments
    give the same questions in every process, and the choice of perspectives and of lapses changes no question. An id is
    "word-problems-<levels>-<families>-<reach>-<beyond>-<part>-<seed>-<index>-<family>", without the parts at their
    defaults.

    Args:
        count: number of questions, 1 to MOST_QUESTIONS.
        seed: another seed gives other questions, apart from repeats by chance.
        levels: names in LEVELS, whose families are used together.
        families: "train", the families of these levels for training; "ood", those that they hold out; or names of
            families.
        perspectives: None: all that have a writer in each of the levels. Rationales are in the order of the level's
            writers, whose first eight are the paper's perspectives.
        apart_from: questions of this generator, such as training questions: no new question has both the numbers and
            the family of one of them, so new ones differ in more than names.
        reach: factor by which the numbers may be larger than in the families.
        beyond: each question has a number that is too large for this reach; must be below `reach`.
        part: the part of all problems to draw from; problems of different parts never have the same family and numbers
            (mind/word_problems/parts.py). None: all problems.
        distinct: no two questions have the same family and numbers, as a test needs: two answers to the same problem
            are not independent. If a family has no further problem, the others replace it.
        lapses: what is wrong with which rationales (recorded in `Question.generated`), and how many wrong rationales
            to add; None: nothing.

    `Question.generated` names the family and the number of steps. Raises MindError for a count outside its bounds, for
    unknown levels, families and parts, for a perspective without a writer, for a reach below 1, and for a count that
    exhausts a family or, if the questions must be distinct, all of them.
    """
    require(1 <= count <= MOST_QUESTIONS, f"word problems: count is {count}: expected 1 to {MOST_QUESTIONS:,}")
    require(reach >= 1, f"word problems: reach is {reach}: expected at least 1")
    require(beyond is None or 1 <= beyond < reach, f"word problems: beyond is {beyond}: expected 1 <= beyond < reach")
    require(
        part in (None, *get_args(Part)),
        f"word problems: there is no part {part}: expected one of {', '.join(get_args(Part))}",
    )
    families = (families,) if isinstance(families, str) else families
    pool = _pool(levels, families)
    names = _with_writers((LEVELS[level] for level in levels), perspectives)
    source = "-".join(
        (
            "word-problems",
            *(levels if tuple(levels) != DEFAULT_LEVELS else ()),
            *families,
            *(() if reach == 1 else (f"reach-{reach:g}",)),
            *(() if beyond is None else (f"beyond-{beyond:g}",)),
            *(() if part is None else (part,)),
            str(seed),
        )
    )
    order = [pool[index % len(pool)] for index in range(count)]
    random.Random(source).shuffle(order)
    taken = {numbers_of(family_of(question), question.question) for question in apart_from}
    draws = _Draws(taken, reach, beyond, part, distinct)
    questions = []
    for index, turn in enumerate(tracked(order, "word problems", "question")):
        # One generator per question: a change in one family leaves the texts of the others unchanged.
        rng = random.Random(f"{source}-{index}")
        following = [pool[(index + place) % len(pool)] for place in range(len(pool))] if distinct else []
        drawn = next(((*one, *new) for one in (turn, *following) if (new := draws.new(one[0], rng))), None)
        if drawn is None:
            raise MindError(_exhausted(count, turn[0], [family for family, _ in pool], draws))
        family, level, problem, text = drawn
        # Every perspective is told, since each writer advances the generator for the next one.
        chance = random.Random(f"{source}-{index}-lapses")
        told = tell(problem, level.writers, rng, chance, lapses or Lapses(), FAMILY_NUMBERS[family.name])
        name, answer = f"{source}-{index}-{family.name}", str(problem.answer)
        questions.append(
            Question(
                name,
                text,
                answer,
                rationales=tuple(one for one in told.rationales if one.perspective in names),
                wrong_rationales=tuple(one for one in told.wrong if one.perspective in names),
                knowledge=family.rules,
                generated={"family": family.name, "steps": str(len(family.steps))} | told.truth,
            )
        )
    return questions


def family_of(question: Question) -> str:
    """The name of the family of a question of this generator, taken from the end of its id."""
    return question.id.rpartition("-")[2]


def other_families(levels: Sequence[str], families: Sequence[str]) -> Sequence[str]:
    """The families of these levels that are not among `families` (with the same names as in `generate`): a student
    trained on those has not seen them. Raises MindError if there are none."""
    named = {family.name for level in levels for name in families for family in LEVELS[level].named(name)}
    others = [family.name for level in levels for family in LEVELS[level].families if family.name not in named]
    require(
        bool(others), "word problems: no family is left for the test ood: train on fewer families, or make no such test"
    )
    # Use the short name if there is one, since it becomes a part of every id.
    return others if others != [family.name for level in levels for family in LEVELS[level].ood] else ("ood",)


def _pool(levels: Sequence[str], families: Sequence[str]) -> list[tuple[Family, Level]]:
    """The named families, each once, with the level of each."""
    require(bool(levels) and bool(families), "word problems: no level or no family is named")
    for name in levels:
        require(name in LEVELS, f"word problems: there is no level {name}: expected some of {', '.join(LEVELS)}")
    pool: dict[str, tuple[Family, Level]] = {}
    for name in families:
        found = {family.name: (family, LEVELS[level]) for level in levels for family in LEVELS[level].named(name)}
        known = [family.name for level in levels for family in LEVELS[level].families]
        require(
            bool(found),
            f"word problems: there is no family {name}: expected train, ood or some of {', '.join(known)}"
            + meant(name, known),
        )
        pool |= found
    return list(pool.values())


def _with_writers(levels: Iterable[Level], asked: Sequence[str] | None) -> tuple[str, ...]:
    """The perspectives that are asked for; None: those that have a writer in all `levels`."""
    first, *others = (level.writers for level in levels)
    written = tuple(name for name in first if all(name in writers for writers in others))
    missing = [name for name in asked or () if name not in written]
    if missing:
        raise MindError(
            f"word problems: no writer for the perspective {missing[0]}: there are writers for {', '.join(written)}"
            f"{meant(missing[0], written)}"
        )
    return written if asked is None else tuple(asked)


def _exhausted(count: int, family: Family, pool: Sequence[Family], draws: _Draws) -> str:
    """The message for a count that is too large."""
    if not draws.distinct:
        return f"word problems: family {family.name} has too few different questions for this count"
    there = sum(draws.problems(one) for one in pool)
    return (
        f"word problems: {count} questions are asked for, and there are {there} different problems, by family and "
        f"numbers, of {', '.join(one.name for one in pool)}: ask for fewer, for a larger reach or for more families"
    )


class _Draws:
    """Draws problems that were not drawn before."""

    def __init__(
        self, taken: Collection[Numbers], reach: float, beyond: float | None, part: Part | None, distinct: bool
    ) -> None:
        self._taken, self._reach, self._beyond, self._part = taken, reach, beyond, part
        self.distinct = distinct
        self._seen: set[str | Numbers] = set()
        self._exhausted: set[str] = set()

    def new(self, family: Family, rng: random.Random) -> tuple[Problem, str] | None:
        """A problem that fits the options and was not drawn before, and its wording; None if none is found."""
        larger = family.reaching(self._reach)
        for _ in range(_ATTEMPTS if family.name not in self._exhausted else 0):
            problem = draw(larger, rng)
            text = problem.text(rng.choice(family.questions))
            key = numbers_of(family.name, text) if self.distinct else text
            if key not in self._seen and self._wanted(family, problem, text):
                self._seen.add(key)
                return problem, text
        self._exhausted.add(family.name)
        return None

    def problems(self, family: Family) -> int:
        """How many different problems of this family fit the options."""
        found = {
            numbers_of(family.name, text)
            for problem in every(family.reaching(self._reach))
            for text in map(problem.text, family.questions)
            if self._wanted(family, problem, text)
        }
        return len(found)

    def _wanted(self, family: Family, problem: Problem, text: str) -> bool:
        numbers = numbers_of(family.name, text)
        return (
            numbers not in self._taken
            and (self._part is None or part_of(numbers) == self._part)
            and (self._beyond is None or problem.exceeds(family.reaching(self._beyond)))
        )
