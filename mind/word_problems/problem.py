"""Defines word problems: families as data, and problems drawn from them.

A family is a small table of templates, givens and steps. Because its steps name their operands instead of holding
numbers, the same family gives the problem itself, a smaller twin of it and a variant with one condition changed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import floor
from types import MappingProxyType

SMALLEST = 2
"""The smallest quantity, so that every noun after a number is correctly in the plural."""

PEOPLE = (
    ("Mia", "she", "her"),
    ("Tom", "he", "his"),
    ("Aisha", "she", "her"),
    ("Leo", "he", "his"),
    ("Nora", "she", "her"),
    ("Omar", "he", "his"),
    ("Priya", "she", "her"),
    ("Felix", "he", "his"),
    ("Clara", "she", "her"),
    ("Hugo", "he", "his"),
    ("Yuki", "she", "her"),
    ("Samuel", "he", "his"),
    ("Lena", "she", "her"),
    ("Marco", "he", "his"),
    ("Zoe", "she", "her"),
    ("Anton", "he", "his"),
)

RULES = {
    "+": "What comes together is added: a total is the sum of its parts.",
    "-": "What is left when something is taken away, and what is missing to a total, is a difference.",
    "*": "Equal groups make a product: their number times the size of one.",
    "/": "What is split evenly is divided: the whole by the number of parts, or by the size of one.",
}
"""By operation."""
PERCENTAGE = "A percentage is so many hundredths of the whole."
STEPS = "What is not asked for may be needed first: the result of one step is given to the next."

Operand = str | int
"""The symbol of a given or of an earlier step, or a constant such as 100 in a percentage."""


@dataclass(frozen=True)
class Given:
    """A number that the question states: `noun` says what it is, `unit` follows it ("" for a plain count)."""

    symbol: str
    noun: str
    unit: str
    values: range
    small: range = range(2, 7)
    """The values that it may have in the smaller twin."""


@dataclass(frozen=True)
class Step:
    """One computation, left op right: the clause `reason` says why, `everyday` puts it in plain words."""

    symbol: str
    noun: str
    unit: str
    left: Operand
    op: str
    right: Operand
    reason: str
    everyday: str


@dataclass(frozen=True)
class Mistake:
    """A typical wrong computation: `how` is a gerund phrase, `objection` the clause that refutes it."""

    left: Operand
    op: str
    right: Operand
    how: str
    objection: str


@dataclass(frozen=True)
class Family:
    """Problems of one structure; every text is a str.format template over symbols, people and the setting.

    `questions` are alternative wordings; `gist` sums up the situation in one clause, `scene` describes it for the
    intuitive manner, and `conclusion` is the clause with the answer. `limits` holds the largest possible value of a
    symbol if the real world sets one.
    """

    name: str
    givens: tuple[Given, ...]
    steps: tuple[Step, ...]
    questions: tuple[str, ...]
    gist: str
    scene: str
    conclusion: str
    mistake: Mistake
    settings: tuple[Mapping[str, str], ...] = ({},)
    limits: Mapping[str, int] = field(default_factory=dict)

    def reaching(self, factor: float) -> Family:
        """The family with givens and limits that reach `factor` times as far."""
        givens = tuple(
            replace(given, values=range(given.values.start, floor(given.values[-1] * factor) + 1, given.values.step))
            for given in self.givens
        )
        return replace(self, givens=givens, limits={name: floor(most * factor) for name, most in self.limits.items()})

    @property
    def rules(self) -> tuple[str, ...]:
        """The knowledge needed to solve its problems: one rule per kind of step, in the order of the steps."""
        kinds = [step.op for step in self.steps]
        percent = any(100 in (step.left, step.right) for step in self.steps)
        chained = len(self.steps) > 1
        return (
            *dict.fromkeys(RULES[kind] for kind in kinds),
            *[PERCENTAGE] * percent,
            *[STEPS] * chained,
        )


@dataclass(frozen=True)
class Problem:
    """A family with its numbers (givens and steps by symbol) and its words (people and setting)."""

    family: Family
    values: Mapping[str, int]
    words: Mapping[str, str]
    skips: bool = False
    """Whether rationales leave out its computations (mind/word_problems/lapses.py)."""

    @property
    def told(self) -> tuple[Step, ...]:
        """The steps that rationales tell: all, or only the second half."""
        steps = self.family.steps
        return steps[len(steps) // 2 :] if self.skips else steps

    @property
    def answer(self) -> int:
        return self.values[self.family.steps[-1].symbol]

    @property
    def mistaken_answer(self) -> int | None:
        mistake = self.family.mistake
        return compute(self.number(mistake.left), mistake.op, self.number(mistake.right))

    @property
    def is_comparable(self) -> bool:
        """Whether the answer, the value before it (if there is one) and the mistaken answer are different numbers."""
        rivals = [self.mistaken_answer, *(self.values[step.symbol] for step in self.family.steps[-2:])]
        return len(set(rivals)) == len(rivals) and None not in rivals

    def exceeds(self, family: Family) -> bool:
        """Whether one of the givens is larger than `family`, the same family with another reach, allows."""
        return any(self.values[given.symbol] > given.values[-1] for given in family.givens)

    def number(self, operand: Operand) -> int:
        return self.values[operand] if isinstance(operand, str) else operand

    def text(self, template: str) -> str:
        return template.format(**self.words, **self.values)

    def equation(self, step: Step | Mistake) -> str:
        """The computation in numbers, such as "6 * 12 = 72"; for a skipped step, its result alone."""
        left, right = self.number(step.left), self.number(step.right)
        if isinstance(step, Mistake):
            return f"{left} {step.op} {right} = {compute(left, step.op, right)}"
        result = self.values[step.symbol]
        return str(result) if self.skips else f"{left} {step.op} {right} = {result}"

    def twin(self, rng: random.Random) -> Problem:
        """A smaller problem of the same family, told in the same way."""
        return replace(draw(self.family, rng, small=True), skips=self.skips)

    def variants(self) -> Iterator[tuple[Given, Problem]]:
        """Every valid problem that differs in one given (taken from its range) and in the answer."""
        for given in self.family.givens:
            stated = {g.symbol: self.values[g.symbol] for g in self.family.givens}
            for value in given.values:
                values = solve(self.family, stated | {given.symbol: value})
                if values and value != stated[given.symbol]:
                    variant = replace(self, values=values)
                    if variant.answer != self.answer:
                        yield given, variant


def compute(left: int, op: str, right: int) -> int | None:
    """The result of one operation; None if it is below SMALLEST or not an integer."""
    if op == "/":
        value, remainder = divmod(left, right)
        if remainder:
            return None
    else:
        value = {"+": left + right, "-": left - right, "*": left * right}[op]
    return value if value >= SMALLEST else None


def solve(
    family: Family, givens: Mapping[str, int], slips: Mapping[str, int] = MappingProxyType({})
) -> dict[str, int] | None:
    """The values of givens and steps; None if a step has no valid value or exceeds a limit.

    `slips` are wrong results that replace the right ones.
    """
    values = dict(givens)
    for step in family.steps:
        left, right = (values[x] if isinstance(x, str) else x for x in (step.left, step.right))
        value = slips.get(step.symbol, compute(left, step.op, right))
        if value is None or value < SMALLEST or value > family.limits.get(step.symbol, value):
            return None
        values[step.symbol] = value
    return values


def draw(family: Family, rng: random.Random, small: bool = False) -> Problem:
    """A problem of `family`, drawn until it fits; with `small` its numbers come from the ranges of the twin.

    The answer, the value before it (if there is one) and the mistaken answer are different numbers, because the
    contrastive manners compare them, and there is a variant for the counterfactual manners.
    """
    while True:
        givens = {g.symbol: rng.choice(g.small if small else g.values) for g in family.givens}
        values = solve(family, givens)
        if values is None:
            continue
        problem = Problem(family, values, _words(family, rng))
        if small or _is_fit(problem):
            return problem


def every(family: Family) -> Iterator[Problem]:
    """All problems that `draw` can draw, each set of numbers once, in the same words."""
    words = _words(family, random.Random(0))
    for numbers in itertools.product(*(given.values for given in family.givens)):
        values = solve(family, {given.symbol: number for given, number in zip(family.givens, numbers, strict=True)})
        if values is not None and _is_fit(problem := Problem(family, values, words)):
            yield problem


def _is_fit(problem: Problem) -> bool:
    """Whether all manners can tell it."""
    return problem.is_comparable and any(problem.variants())


def _words(family: Family, rng: random.Random) -> dict[str, str]:
    (name, she, her), (other, _, _), (third, _, _) = rng.sample(PEOPLE, 3)
    people = {"name": name, "she": she, "her": her, "other": other, "third": third}
    return {**people, "She": she.title(), "Her": her.title(), **rng.choice(family.settings)}
