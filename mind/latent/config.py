"""The options of `mind latent`."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

from mind.errors import MissingError, require
from mind.typed_json import check_fields


@dataclass(frozen=True)
class LatentConfig:
    """What is analyzed, and how thoroughly."""

    runs: tuple[str, ...]
    """Finished run folders of method single: experts and null experts (data.shuffle_perspectives), one per perspective
    and seed. Their configurations say which is which."""
    questions: str
    """A file of at least 100 questions on which no run was trained, each with a rationale in every perspective."""
    output: str = "runs/latent"
    """The folder to write."""
    coverage: tuple[str, ...] = ()
    """Finished run folders of any method with the same student. The page says how many perspectives their samples
    cover, compared with samples of the untrained student."""
    encoder: str | None = None
    """A sentence-transformers model, by name or folder, for the view V6; None: no view V6."""
    max_new_tokens: int = 200
    """Longest answer, in tokens."""
    batch_size: int = 64
    """Questions per batch of generation."""
    pack_length: int = 4096
    """Tokens per row of the trunk, at most."""
    samples: int = 16
    """Samples per question and run of `coverage`, at temperature 1."""
    components: int = 16
    """Principal components that clusters and probes use."""
    mixture_seeds: int = 5
    """Seeds of the mixture model; the results are means over them."""
    draws: int = 200
    """Resamples of the questions for the intervals of clusters and of probes by question."""
    permutations: int = 100
    """Permutations of the perspectives, to measure chance."""
    seed: int = 0
    """Seed of the samples, resamples and pictures."""

    def __post_init__(self) -> None:
        check_fields("", self)
        places = [os.path.realpath(run) for run in self.runs]
        twice = [run for n, run in enumerate(self.runs) if places[n] in places[:n]]
        require(not twice, f"{', '.join(twice)}: the same run comes twice")
        least = {"max_new_tokens": 1, "batch_size": 1, "pack_length": 16, "samples": 2, "components": 2}
        least |= {"mixture_seeds": 1, "draws": 2, "permutations": 1, "seed": 0}
        for name, number in least.items():
            require(getattr(self, name) >= number, f"{name} is {getattr(self, name)}: expected at least {number}")
        for name, number in {"samples": 10_000, "draws": 1_000_000, "permutations": 1_000_000}.items():
            require(getattr(self, name) <= number, f"{name} is {getattr(self, name)}: expected at most {number:,}")
        require(self.seed < 2**31, f"seed is {self.seed}: expected a number below 2**31")


def check_packages() -> None:
    """Raises MindError if scikit-learn is missing."""
    if importlib.util.find_spec("sklearn") is None:
        raise MissingError("mind latent needs the package scikit-learn: pip install 'mind-kernels[latent]'")
