"""The losses inside other trainers: a fused model of transformers, and the functions that TRL gets, with random
arguments, against what they replace."""

from __future__ import annotations

from collections import Counter

from tests.fuzz.choices import Choices
from tests.fuzz.fused_models import fused_model
from tests.fuzz.trl_calls import trl_call

NAMES = ["fuse", "log_prob", "divergence"]


def example(name: str, choices: Choices, counts: Counter[str]) -> None:
    case = fused_model(choices).case() if name == "fuse" else trl_call(name, choices)
    case.check()
    counts[name] += 1
