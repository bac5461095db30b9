"""The texts that the student is pretrained on: words and numbers of all families, solutions of some.

All problems are of the part "train" (mind/word_problems/parts.py), so no question of a test is among them, whatever its
wording.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

from bench.testbed.tokenizer import ASSISTANT, END, USER
from mind.word_problems.levels import LEVELS
from mind.word_problems.parts import numbers_of, part_of
from mind.word_problems.problem import Family, Problem, draw

LEVEL_NAMES = ("one-step", "two-step")
REACH = 1.5
"""Of the numbers in questions (`mind data word-problems --reach`)."""
DRILL_REACH = 2.25
"""Of those in bare computations, so that the larger numbers of a test are no unknown ones."""
KNOWN = ("shares", "packs", "twice")
"""The families whose solutions the student sees: of all four operations, of one and of two steps."""


class Piece(NamedTuple):
    """A part of a text, and whether the student learns to predict it."""

    text: str
    labeled: bool


@dataclass(frozen=True)
class Shares:
    """Of each kind among the texts; the rest are solutions of known families in plain equations."""

    echo: float = 0.1
    drill: float = 0.25
    reading: float = 0.15
    question: float = 0.1
    told: float = 0.15


class Texts:
    """Draws texts, the same for the same seed."""

    def __init__(self, seed: int, shares: Shares | None = None, known: tuple[str, ...] = KNOWN) -> None:
        self._rng = random.Random(f"texts-{seed}")
        self._shares = shares or Shares()
        self._writers = LEVELS["one-step"].writers
        families = {family.name: family for name in LEVEL_NAMES for family in LEVELS[name].families}
        self._all = tuple(families.values())
        self._known = tuple(families[name] for name in known)
        self._words = sorted({word for family in self._all for text in family.questions for word in text.split()})

    def draw(self) -> list[Piece]:
        """The next text."""
        kinds = {
            self.echo: self._shares.echo,
            self.drill: self._shares.drill,
            self.reading: self._shares.reading,
            self.question: self._shares.question,
            self.told: self._shares.told,
        }
        place = self._rng.random()
        for kind, share in kinds.items():
            if place < share:
                return kind()
            place -= share
        return self.solved()

    def echo(self) -> list[Piece]:
        """A random list of words and numbers, twice: copying is learned from these first."""
        words = [self._word() for _ in range(self._rng.randint(6, 14))]
        listed = " ".join(words)
        return [Piece(f"{ASSISTANT}{listed}.", False), Piece(f" {listed}.", True)]

    def drill(self) -> list[Piece]:
        """Computations as the families need them, without words."""
        pieces = [Piece(ASSISTANT, False)]
        for place in range(6):
            problem = self._problem(self._rng.choice(self._all), DRILL_REACH)
            asked, result = problem.equation(self._rng.choice(problem.family.steps)).split("= ")
            pieces += [Piece(f"{' ' if place else ''}{asked}= ", False), Piece(f"{result}.", True)]
        return pieces

    def reading(self) -> list[Piece]:
        """A question of any family, and the numbers in it with what they are."""
        problem = self._problem(self._rng.choice(self._all), REACH)
        nouns = [f"{problem.text(given.noun)}: {problem.values[given.symbol]}" for given in problem.family.givens]
        text = problem.text(self._rng.choice(problem.family.questions))
        return [Piece(f"{text}\n", False), Piece(f"{'; '.join(nouns)}.{END}", True)]

    def question(self) -> list[Piece]:
        """A question of any family: words to read."""
        return [Piece(self._asked(self._problem(self._rng.choice(self._all), REACH)), True)]

    def told(self) -> list[Piece]:
        """A question of a known family in one of the perspectives."""
        problem = self._problem(self._rng.choice(self._known), REACH)
        write = self._rng.choice(tuple(self._writers.values()))
        return self._solution(problem, write(problem, self._rng))

    def solved(self) -> list[Piece]:
        """A question of a known family, and its computations alone."""
        problem = self._problem(self._rng.choice(self._known), REACH)
        return self._solution(problem, plain(problem))

    def _solution(self, problem: Problem, text: str) -> list[Piece]:
        return [Piece(self._asked(problem), False), Piece(f"{text}\n#### {problem.answer}{END}", True)]

    def _asked(self, problem: Problem) -> str:
        return f"{USER}{problem.text(self._rng.choice(problem.family.questions))}{ASSISTANT}"

    def _word(self) -> str:
        if self._rng.random() < 0.5:
            return str(self._rng.randrange(2, 200))
        return self._rng.choice(self._words).format_map(_Blank())

    def _problem(self, family: Family, reach: float) -> Problem:
        while True:
            problem = draw(family.reaching(reach), self._rng)
            if all(part_of(numbers_of(family.name, problem.text(text))) == "train" for text in family.questions):
                return problem


class _Blank(dict):
    """Whatever a template names is an "it"."""

    def __missing__(self, name: str) -> str:
        return "it"


def plain(problem: Problem) -> str:
    """The computations alone, as in "2 * 3 = 6. 6 - 4 = 2."."""
    return " ".join(f"{problem.equation(step)}." for step in problem.family.steps)
