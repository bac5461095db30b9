"""What is wrong with rationales, and which of them: a truth that a selection among perspectives can be compared with.

A rationale that skips tells the results of the second half of its steps without the computations: the answer is right,
but a student has to compute in its head what others write down. A rationale that slips has a wrong result in one step,
and goes on with it: it belies the answer that it is given with.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from mind.errors import MindError, require
from mind.records import Rationale, WrongRationale
from mind.word_problems.manners import Writer
from mind.word_problems.problem import Problem, solve

_ATTEMPTS = 200
_SLIPS = (-10, -2, -1, 1, 2, 10)


@dataclass(frozen=True)
class Lapses:
    """Which rationales have a lapse, and how many wrong ones come with a question."""

    by: Literal["nothing", "perspective", "steps", "family"] = "nothing"
    """Which perspectives are sound: all of them ("nothing"); the same ones in all problems ("perspective"); other ones
    per number of steps; or other ones per family."""
    sound: int = 2
    """How many perspectives are sound."""
    kind: Literal["skip", "slip"] = "skip"
    """What is wrong with rationales of the others: computations are missing ("skip"), or a result is wrong ("slip")."""
    rate: float = 1.0
    """Share of the rationales of the other perspectives that lapse."""
    wrong: int = 0
    """Wrong rationales per question, beside those to learn from: each is a copy of a rationale in which one result is
    wrong, and names that rationale as its twin. Rationales that slip themselves get none."""

    def __post_init__(self) -> None:
        require(self.sound >= 1, f"lapses.sound is {self.sound}: expected at least 1")
        require(0 < self.rate <= 1, f"lapses.rate is {self.rate}: expected a share in (0, 1]")
        require(self.wrong >= 0, f"lapses.wrong is {self.wrong}: expected at least 0")

    def sound_ones(self, perspectives: tuple[str, ...], steps: int, family: int) -> tuple[str, ...]:
        """The perspectives that never lapse with so many steps and this family, by number.

        Each next group has the next ones, and after the last the first again.
        """
        if self.by == "nothing":
            return perspectives
        group = {"perspective": 0, "steps": steps - 1, "family": family}[self.by]
        places = {(group * self.sound + place) % len(perspectives) for place in range(self.sound)}
        return tuple(name for place, name in enumerate(perspectives) if place in places)


class Told(NamedTuple):
    """A problem in all its perspectives."""

    rationales: tuple[Rationale, ...]
    wrong: tuple[WrongRationale, ...]
    truth: dict[str, str]
    """"sound", "skip" and "slip" with the names of the perspectives whose rationales are so, and "lapse_rate" with the
    share of those that are to lapse; nothing without lapses."""


def tell(
    problem: Problem,
    writers: Mapping[str, Writer],
    rng: random.Random,
    chance: random.Random,
    lapses: Lapses,
    family: int,
) -> Told:
    """The problem as each of the writers tells it.

    Args:
        problem: what is to be told.
        writers: perspective -> its writer.
        rng: of the writers.
        chance: of the lapses.
        lapses: which there are.
        family: the number of its family among all.
    """
    steps = len(problem.family.steps)
    sound = lapses.sound_ones(tuple(writers), steps, family)
    kinds: dict[str, str] = {}
    rationales, twins = [], []
    for name, write in writers.items():
        lapsed = name not in sound and chance.random() < lapses.rate
        kinds[name] = lapses.kind if lapsed else "sound"
        told = _lapsed(problem, lapses.kind, chance) if lapsed else problem
        again = random.Random()
        again.setstate(rng.getstate())
        rationales.append(Rationale(name, write(told, rng)))
        if lapses.wrong and kinds[name] != "slip":
            slip = slipped(told, chance)
            twins.append(WrongRationale(name, write(slip, again), str(slip.answer), right=rationales[-1].text))
    wrong = chance.sample(twins, min(lapses.wrong, len(twins)))
    truth = {kind: " ".join(name for name in kinds if kinds[name] == kind) for kind in ("sound", lapses.kind)}
    if lapses.by == "nothing":
        truth = {}
    else:
        truth = {kind: names for kind, names in truth.items() if names} | {"lapse_rate": f"{lapses.rate:g}"}
    return Told(tuple(rationales), tuple(wrong), truth)


def _lapsed(problem: Problem, kind: str, chance: random.Random) -> Problem:
    return replace(problem, skips=True) if kind == "skip" else slipped(problem, chance)


def slipped(problem: Problem, chance: random.Random) -> Problem:
    """The problem with another result of one step, and with what follows from it.

    Raises MindError if it has none that is a problem for all perspectives.
    """
    givens = {given.symbol: problem.values[given.symbol] for given in problem.family.givens}
    for _ in range(_ATTEMPTS):
        step = chance.choice(problem.family.steps)
        slip = {step.symbol: problem.values[step.symbol] + chance.choice(_SLIPS)}
        values = solve(replace(problem.family, limits={}), givens, slip)
        if values is not None:
            wrong = replace(problem, values=values)
            if wrong.answer != problem.answer and wrong.is_comparable and any(wrong.variants()):
                return wrong
    raise MindError(f"word problems: a problem of family {problem.family.name} has no slip")
