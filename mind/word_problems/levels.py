"""The levels of difficulty: families by their number of steps, and the manners of telling that fit them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mind.word_problems.families_measures import MEASURE_FAMILIES
from mind.word_problems.families_objects import OBJECT_FAMILIES
from mind.word_problems.families_one_step import ONE_STEP_FAMILIES, ONE_STEP_HELD_OUT
from mind.word_problems.families_ood import HELD_OUT_FAMILIES
from mind.word_problems.families_two_steps import TWO_STEP_FAMILIES, TWO_STEP_HELD_OUT
from mind.word_problems.manners import WRITERS, Writer
from mind.word_problems.manners_brief import BRIEF_WRITERS
from mind.word_problems.problem import Family


@dataclass(frozen=True)
class Level:
    """Families of about the same difficulty, and the writers of their solutions."""

    train: tuple[Family, ...]
    ood: tuple[Family, ...]
    """Held-out families, to test a student on structures that it has not seen."""
    writers: Mapping[str, Writer]
    """Perspective -> the writer of its rationales."""

    @property
    def families(self) -> tuple[Family, ...]:
        """All its families."""
        return self.train + self.ood

    def named(self, name: str) -> tuple[Family, ...]:
        """The families that "train", "ood" or a family's own name selects; empty for another name."""
        groups = {"train": self.train, "ood": self.ood}
        return groups.get(name) or tuple(family for family in self.families if family.name == name)


LevelName = Literal["one-step", "two-step", "multi-step"]
LEVELS: dict[str, Level] = {
    "one-step": Level(ONE_STEP_FAMILIES, ONE_STEP_HELD_OUT, BRIEF_WRITERS),
    "two-step": Level(TWO_STEP_FAMILIES, TWO_STEP_HELD_OUT, BRIEF_WRITERS),
    "multi-step": Level(OBJECT_FAMILIES + MEASURE_FAMILIES, HELD_OUT_FAMILIES, WRITERS),
}
"""One and two steps with small numbers and rationales of about 30 and 50 tokens (of SmolLM2); three and four steps with
larger numbers and rationales of about 125."""
FAMILY_NUMBERS = {
    family.name: number
    for number, family in enumerate(family for level in LEVELS.values() for family in level.families)
}
"""The number of each family among all, by name."""
