"""The options of `mind latent`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from mind.errors import MissingError, require
from mind.typed_json import check_fields


@dataclass(frozen=True)
class LatentConfig:
    """What is analyzed, and how thoroughly."""

    runs: tuple[str, ...]
    """Finished run folders of method single: experts, one for each perspective and seed, and null experts
    (data.shuffle_perspectives), likewise. Which is which, their configurations say."""
    questions: str
    """A file of questions that no run was trained on, each with a rationale in every perspective; 100 or more."""
    output: str = "runs/latent"
    """The folder to write."""
    coverage: tuple[str, ...] = ()
    """Finished run folders of any method with the same student: how many perspectives do their samples, and those of
    the untrained student, come from?"""
    encoder: str | None = None
    """A sentence-transformers model, by name or folder, for the view V6; without one that view is left out."""
    max_new_tokens: int = 200
    """Tokens of an answer, at most."""
    batch_size: int = 64
    """Questions per batch of generation."""
    pack_length: int = 4096
    """Tokens of a row of the trunk, at most."""
    samples: int = 16
    """Per question and run of `coverage`, at temperature 1."""
    components: int = 16
    """Principal components that clusters and probes are given."""
    mixture_seeds: int = 5
    """Seeds of the mixture model, whose results are averaged."""
    draws: int = 200
    """Of the questions, behind the intervals of what describes clusters and of probes by question."""
    permutations: int = 100
    """Draws of permuted perspectives, which tell what chance gives."""
    seed: int = 0
    """Of samples, draws and pictures."""

    def __post_init__(self) -> None:
        check_fields("", self)
        require(len(set(self.runs)) == len(self.runs), "a run is named twice")
        least = {"max_new_tokens": 1, "batch_size": 1, "pack_length": 16, "samples": 2, "components": 2}
        least |= {"mixture_seeds": 1, "draws": 2, "permutations": 1, "seed": 0}
        for name, number in least.items():
            require(getattr(self, name) >= number, f"{name} is {getattr(self, name)}: expected at least {number}")
        require(self.seed < 2**31, f"seed is {self.seed}: expected a number below 2**31")


def check_packages() -> None:
    """Raises MindError without scikit-learn."""
    if importlib.util.find_spec("sklearn") is None:
        raise MissingError("mind latent needs the package scikit-learn: pip install 'mind-kernels[latent]'")
