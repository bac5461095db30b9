"""Options for samples instead of one greedy answer, and for several students that answer together. mind/asking.py has
the options of every evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from mind.errors import require
from mind.typed_json import check_bounds, check_fields


@dataclass(frozen=True)
class SamplingConfig:
    """Samples of each answer instead of the greedy one."""

    samples: int | None = None
    """Number of samples per question, for their mean accuracy, majority vote and pass@k. None: one greedy answer."""
    temperature: float = 0.7
    """Temperature of the samples."""
    top_p: float = 0.95
    """Nucleus sampling: draw only from the most probable tokens whose probabilities add up to this."""
    seed: int = 0
    """Seed of the samples. Each sample depends only on the seed, its question and its number, not on other samples."""

    def __post_init__(self) -> None:
        check_fields("", self)
        bounds = {"samples": "1 to 10,000", "temperature": "a positive number", "top_p": "a number in (0, 1]"}
        check_bounds("", self, bounds)
        others, defaults = ((one.temperature, one.top_p, one.seed) for one in (self, SamplingConfig))
        require(
            self.samples is not None or others == defaults,
            "temperature, top_p and seed belong to samples: --samples N asks for N of them",
        )


@dataclass(frozen=True)
class InteractionConfig:
    """The two further students of method lorid, and how all three answer together; the first one is `student`."""

    knowledge: str | None = None
    """Folder of the knowledge generator: RUN/stages/1-lorid-kg/student."""
    deep: str | None = None
    """Folder of the deep reasoner: RUN/stages/2-lorid-dr/student."""
    rounds: int = 20
    """Samples per student and question, at most: a question is finished as soon as two answers agree."""
    temperature: float = 1.5
    """Temperature of the samples."""
    top_p: float = 0.9
    """Nucleus sampling: draw only from the most probable tokens whose probabilities add up to this."""
    seed: int = 0
    """Seed of the samples."""

    def __post_init__(self) -> None:
        check_fields("lorid", self)
        require(
            (self.knowledge is None) == (self.deep is None),
            "lorid.knowledge and lorid.deep name two students that answer together: give both or neither",
        )
        require(self.rounds >= 1, f"lorid.rounds is {self.rounds}: expected at least 1")
        require(self.temperature > 0, f"lorid.temperature is {self.temperature}: expected a positive number")
        require(0 < self.top_p <= 1, f"lorid.top_p is {self.top_p}: expected a number in (0, 1]")
