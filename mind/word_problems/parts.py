"""Divides all word problems into parts by their numbers: no two parts share a problem, whatever its wording.

A checksum of its family and its numbers assigns a problem to a part. So training and test questions differ even if they
were made at different times, with different seeds and in any number.
"""

from __future__ import annotations

import re
import zlib
from typing import Literal

Part = Literal["train", "validation", "test"]

_SHARES: tuple[tuple[Part, int], ...] = (("train", 12), ("validation", 3), ("test", 5))
"""Number of checksums, out of twenty, of each part."""

Numbers = tuple[str, tuple[str, ...]]
"""The name of the family and the sorted numbers of a question."""


def numbers_of(family: str, question: str) -> Numbers:
    """What a question shares with the same problem in other words, or with its numbers in another order."""
    return family, tuple(sorted(re.findall(r"\d+", question)))


def part_of(numbers: Numbers) -> Part:
    """The part to which problems with these numbers belong."""
    family, values = numbers
    place = zlib.crc32(" ".join((family, *values)).encode()) % sum(share for _, share in _SHARES)
    for part, share in _SHARES:
        if place < share:
            return part
        place -= share
    raise AssertionError("the shares cover every place")
