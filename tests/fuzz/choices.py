"""The decisions that make a random case, as numbers: hypothesis draws them and makes them small, and a list of them is
the case itself, which a command can repeat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass
class Choices:
    """Decides by `decide`, which is given the largest number that is allowed, and remembers what it decided."""

    decide: Callable[[int], int]
    data: Any = None
    """The example of hypothesis that decides, if one does, for strategies of its own."""
    made: list[int] = field(default_factory=list)

    @classmethod
    def drawn(cls, data: Any) -> Choices:
        """Those of an example of hypothesis, of which `data` is a DataObject."""
        from hypothesis import strategies as st

        return cls(lambda most: data.draw(st.integers(0, most)), data)

    @classmethod
    def repeated(cls, code: str) -> Choices:
        """Those that `code` lists; the first one of what comes after the end of the list."""
        left = iter(code.split(".") if code else ())
        return cls(lambda most: min(most, int(next(left, 0))))

    @property
    def code(self) -> str:
        """What `repeated` takes."""
        return ".".join(map(str, self.made))

    def number(self, most: int) -> int:
        """An integer from 0 to `most`; 0 is the simplest."""
        self.made.append(self.decide(most))
        return self.made[-1]

    def among(self, values: Sequence[T]) -> T:
        """One of the values; the first is the simplest."""
        return values[self.number(len(values) - 1)]

    def rarely(self, one_in: int = 4) -> bool:
        """True once in so many times."""
        return self.number(one_in - 1) == one_in - 1

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.number(2**16 - 1))
