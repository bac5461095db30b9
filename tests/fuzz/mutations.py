"""Random changes of texts, bytes and JSON values that a program reads."""

from __future__ import annotations

import copy
import json
from typing import Any

from tests.fuzz.choices import Choices

PIECES = [
    "(",
    ")",
    "1",
    "1,111",
    ",",
    "1/",
    "1, ",
    ".5",
    "-",
    "$",
    "$1 000 ",
    "answer ",
    "answer is ",
    "answer: * ",
    "=",
    "#",
    "{",
    "}",
    "\\boxed{",
    "\\boxed{1}",
    "####",
    "#### 5\n",
    "yes ",
    "A",
    "(B",
    "(B) ",
    " ",
    "\n",
    "\r",
    "\t",
    "\0",
    "\x1b",
    "\ud800",
    ". ",
    "5 and 7. ",
    "\\frac{",
    "$x$",
    "\\(",
    "$$",
    "because 1 ",
    "since 1, ",
    "so 2 ",
    "1 pear ",
    "book ",
    "rounded to ",
    "to check ",
    "1{,}",
    "1,\\!111",
    "bank ",
    "two ",
    "\u0661",
    "\u2028",
    "1e9",
    "0/0",
    "\\",
    "3 or 4 ",
    "1 km a ",
    "2 hours and 30 minutes ",
    "2 to the power of ",
    "0.333",
    "1) x\n",
    "x = 5 or ",
]
"""Pieces of answers, of which graders make something."""
SIGNS = (
    '"',
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\\",
    "\\u0000",
    "\\ud800",
    "\n",
    "\r\n",
    "\x00",
    "\ufeff",
    "\u2028",
    "null",
    "true",
    "NaN",
    "-Infinity",
    "1e999",
    "9" * 400,
    "-0",
    "<think>",
    "</think>",
    "data:",
    '{"a": 1, "a": 2}',
    "[" * 300,
)
VALUES: tuple[Any, ...] = (
    None,
    "",
    " ",
    "text",
    "\ud800",
    "\x00",
    "a" * 3000,
    0,
    -1,
    2**70,
    1.5,
    -0.0,
    float("nan"),
    float("inf"),
    True,
    [],
    [None],
    {},
    {"": {}},
    [[[[]]]],
    {"type": "text", "text": []},
    "1",
    "A",
    "####",
    "\u202e",
)
MOST = 10_000
"""Characters or bytes of an input."""


def mutated_text(choices: Choices, text: str, pieces: tuple[str, ...] = (*PIECES, *SIGNS)) -> str:
    """The text after a few changes: pieces put in, spans left out, repeated or moved."""
    for _ in range(choices.number(5)):
        start = choices.number(len(text))
        end = min(len(text), start + choices.among((1, 0, 5, 60, 1000)))
        kind = choices.number(4)
        if kind == 0:
            text = text[:start] + choices.among(pieces) + text[start:]
        elif kind == 1:
            text = text[:start] + text[end:]
        elif kind == 2:
            text = (
                text[:start]
                + (text[start:end] or choices.among(pieces)) * choices.among((2, 9, 200, 3000))
                + text[end:]
            )
        elif kind == 3:
            text = text[end:] + text[start:end] + text[:start]
        else:
            text = text[:start] + chr(choices.number(0x2FFF)) + text[end:]
        text = text[:MOST]
    return text


def mutated_bytes(choices: Choices, data: bytes) -> bytes:
    """The same for bytes, which need not be UTF-8 then."""
    for _ in range(choices.number(3)):
        start = choices.number(len(data))
        end = min(len(data), start + choices.among((1, 0, 8, 100)))
        put = bytes([choices.number(255)]) * choices.among((1, 0, 2, 40))
        data = (data[:start] + put + data[end:])[:MOST]
    return data


def mutated_json(choices: Choices, value: Any) -> Any:
    """The value with a few of its parts replaced, left out, renamed or doubled."""
    value = json.loads(json.dumps(value))
    for _ in range(choices.number(3)):
        parts = list(_places(value))
        if not parts:
            return copy.deepcopy(choices.among(VALUES))
        inside, key = choices.among(parts)
        kind = choices.number(3)
        if kind == 0:
            inside[key] = copy.deepcopy(choices.among(VALUES))
        elif kind == 1:
            del inside[key]
        elif kind == 2 and isinstance(inside, dict):
            inside[choices.among(("", "x", key + key, key.upper(), "\x00"))] = inside[key]
        elif isinstance(inside[key], str):
            inside[key] = mutated_text(choices, inside[key])
        else:
            inside[key] = [inside[key]]
    return value


def _places(value: Any) -> Any:
    """Each part of a JSON value, as the object or list that holds it and its name or number there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(items):
        yield value, key
        yield from _places(part)
