"""The tiers of the fuzzer: what each of them draws, by name, and what it counts."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.fuzz.choices import Choices

Example = Callable[[str, Choices, Counter[str]], None]
"""Runs the random case that the choices make, of this name, and counts what it called; raises if something is wrong."""


@dataclass(frozen=True)
class Tier:
    """A set of random cases."""

    names: list[str]
    example: Example
    examples: int = 200
    """Of a round, with the same name."""
    counts: Counter[str] = field(default_factory=Counter)


def _operators() -> Tier:
    from tests.fuzz.operators import OPERATORS, one

    return Tier(list(OPERATORS), one)


CPU = "reference", "torch", "cpp"
"""The backends of a CPU without Triton's interpreter."""


def _judged(backends: Sequence[str], small: bool = False) -> Example:
    """Calls of a public operation on these backends, by its name."""
    from tests.fuzz.judge import check
    from tests.fuzz.public_cases import public_call

    def example(name: str, choices: Choices, counts: Counter[str]) -> None:
        call = public_call(name, choices, small=small)
        check(call, call.backends(backends), lambda backend: counts.update([f"{name} {backend}"]))

    return example


def _public() -> Tier:
    from tests.fuzz.public_cases import CASES

    return Tier(list(CASES), _judged(CPU))


def _interpreter() -> Tier:
    assert "TRITON_INTERPRET" in os.environ or "triton" not in sys.modules, "triton is imported without its interpreter"
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton and a kernel are imported
    from tests import fast_interpreter
    from tests.fuzz.public_cases import CASES

    warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton")  # lanes that are not stored overflow
    for place, name, replacement in fast_interpreter.replacements():
        setattr(place, name, replacement)
    names = [name for name in CASES if name != "linear_top_k"]
    return Tier(names, _judged(("triton", "triton_streaming"), small=True), examples=10)


def _refusals() -> Tier:
    from tests.fuzz.public_cases import CASES, public_call
    from tests.fuzz.refusals import check_refused

    def example(name: str, choices: Choices, counts: Counter[str]) -> None:
        call = public_call(name, choices)
        names = call.backends(CPU)
        check_refused(call, choices, names)
        counts.update(f"{name} {backend}" for backend in names)

    return Tier(list(CASES), example)


def _parsers() -> Tier:
    parsers = importlib.import_module("tests.fuzz.parsers")
    return Tier(list(parsers.PARSERS), parsers.example)


def _integrations() -> Tier:
    integrations = importlib.import_module("tests.fuzz.integrations")
    return Tier(integrations.NAMES, integrations.example, examples=50)


TIERS: dict[str, Callable[[], Tier]] = {
    "operators": _operators,
    "public": _public,
    "interpreter": _interpreter,
    "refusals": _refusals,
    "parsers": _parsers,
    "integrations": _integrations,
}
"""By name; called once, since the interpreter has to be chosen before kernels are imported."""
