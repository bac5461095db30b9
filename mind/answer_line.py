"""The parts of a response: what it thinks aloud, its rationale, and the line "#### answer" that ends it.

Every function is linear in its text, because texts come from a model and may be arbitrarily odd.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice

ANSWER_MARKER = "####"

_THOUGHT = re.compile(r"[<◁](/?)(?:seed:)?(?:think(?:ing)?|thoughts?)[>▷]|\[(/?)THINK\]", re.IGNORECASE)
"""Begins or ends a thought."""
_CONTROL_TOKEN = re.compile(r"<[|｜][^<>|｜\s]{1,40}[|｜]>|</s>|<eos>|<end_of_turn>")
"""<|im_end|> and its like: what follows belongs to another turn."""
_FENCE = re.compile(r"^[ \t]*```.*\n?", re.MULTILINE)
_MARKED_LINE = re.compile(ANSWER_MARKER + r"[^\n]*")
_LINE = re.compile(r"\s*+([^\n]*)")
_HEADING = re.compile(r"\W*(?:step|part|case|problem|question|task|phase|stage)\b", re.IGNORECASE)
_ANNOUNCEMENT = re.compile(r"[\s*_#]*(?:the\s)?(?:final\s)?answer[\s*_]*:?[\s*_]*", re.IGNORECASE)
_DECORATION = "*_`>"
_MOST_LINES = 20
"""With a marker: more are no answer lines but noise, and comparing one may take a second."""


def suffix(answer: str) -> str:
    """The answer suffix that follows every rationale, without the end-of-turn token."""
    return f"\n{ANSWER_MARKER} {answer}"


def without_suffix(text: str) -> str:
    """`text` without the answer lines at its end, stripped; a marker with more text below it is a heading."""
    end = len(text)
    while (start := text.rfind(ANSWER_MARKER, 0, end)) >= 0:
        if "\n" in text[start + len(ANSWER_MARKER) : end].strip():
            break
        end = start
    return (text[: _undecorated(text, end)] if end < len(text) else text).strip()


def split_thoughts(text: str) -> tuple[str, str | None]:
    """The answer in `text`, and what stands before it between marks such as <think> and </think>; None without them.

    The first mark may be missing, as some chat templates write it into the prompt. A thought that does not end leaves
    no answer.
    """
    marks = list(_THOUGHT.finditer(text))
    if not marks:
        return text, None
    last = marks[-1]
    closed = bool(last[1] or last[2])
    thoughts = _THOUGHT.sub("", text[: last.start()] if closed else text).strip()
    return text[last.end() :].lstrip() if closed else "", thoughts


def answer_part(response: str) -> str:
    """What `response` says behind its thoughts and before the first token of a template, which ends its turn."""
    text, _ = split_thoughts(response)
    token = _CONTROL_TOKEN.search(text)
    return text[: token.start()] if token else text


def rationale_of(response: str, is_answer: Callable[[str], bool]) -> str:
    """What `response` says before its answer line, without thoughts, stripped.

    `is_answer` says whether a text behind "####" is the answer. The first such line ends the rationale, whatever
    follows it: "Hope this helps!", the end of a code fence, another check. A marker with another text is a heading.
    Empty for a response that never leaves its thoughts.
    """
    text = answer_part(response)
    cut = _first_answer_line(text, is_answer)
    text = _without_open_fence(without_suffix(text if cut is None else text[:cut]))
    above, _, last = text.rpartition("\n")
    return above.rstrip() if _ANNOUNCEMENT.fullmatch(last) else text


def _first_answer_line(text: str, is_answer: Callable[[str], bool]) -> int | None:
    """Where the first answer line begins if text stands below and above it, else None.

    What begins with its answer line is no rationale that ends there.
    """
    end = len(text.rstrip())
    for marked in islice(_MARKED_LINE.finditer(text), _MOST_LINES):
        line, below = marked[0].rpartition(ANSWER_MARKER)[2], marked.end()
        announced = _ANNOUNCEMENT.fullmatch(line) is not None
        if announced or not line.strip():
            following = _LINE.match(text, below)
            assert following is not None  # it matches any text
            line, below = following[1], following.end()
        if (announced or below < end) and not _HEADING.match(line) and is_answer(line.strip(f" \t{_DECORATION}")):
            start = _undecorated(text, marked.start())
            return start if text[:start].strip() else None
    return None


def _undecorated(text: str, start: int) -> int:
    """Where the decoration in front of a marker at `start` begins: "> **" of "> **#### 12**", "- " of a list."""
    line = text.rfind("\n", 0, start) + 1
    if not text[line:start].strip(f" \t{_DECORATION}-+•"):
        return line
    return len(text[:start].rstrip(_DECORATION))


def _without_open_fence(text: str) -> str:
    """`text`, stripped, without the line of a code fence that it does not close."""
    fences = list(_FENCE.finditer(text)) if "```" in text else []
    return (text[: fences[-1].start()] + text[fences[-1].end() :]).strip() if len(fences) % 2 else text
