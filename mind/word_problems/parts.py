"""Parts of all word problems there are, by their numbers: what is in one part is in no other, whatever its wording.

A problem belongs to a part by a checksum of its family and its numbers. So the questions that one trains on and those
that one tests with are apart although they were made at different times, by different seeds and in any number.
"""

from __future__ import annotations

import re
import zlib
from typing import Literal

Part = Literal["train", "validation", "test"]

_SHARES: tuple[tuple[Part, int], ...] = (("train", 12), ("validation", 3), ("test", 5))
"""Of twenty checksums each."""

Numbers = tuple[str, tuple[str, ...]]
"""A family's name and the numbers of a question of it, sorted."""


def numbers_of(family: str, question: str) -> Numbers:
    """What a question has in common with the same problem in other words, and with one whose numbers change places."""
    return family, tuple(sorted(re.findall(r"\d+", question)))


def part_of(numbers: Numbers) -> Part:
    """The part that problems with these numbers belong to."""
    family, values = numbers
    place = zlib.crc32(" ".join((family, *values)).encode()) % sum(share for _, share in _SHARES)
    for part, share in _SHARES:
        if place < share:
            return part
        place -= share
    raise AssertionError("the shares cover every place")
