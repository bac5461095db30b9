"""Splits a response into its parts: thoughts, the rationale, and the line "#### answer" at its end.

Every function takes time linear in the length of its text, because a model may write any text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice

ANSWER_MARKER = "####"

_THOUGHT = re.compile(r"[<◁](/?)(?:seed:)?(?:think(?:ing)?|thoughts?)[>▷]|\[(/?)THINK\]", re.IGNORECASE)
"""A mark at which a thought begins or ends."""
_CONTROL_TOKEN = re.compile(r"<[|｜][^<>|｜\s]{1,40}[|｜]>|</s>|<eos>|<end_of_turn>")
"""A control token such as <|im_end|>: what follows it belongs to another turn."""
_FENCE = re.compile(r"^[ \t]*```.*\n?", re.MULTILINE)
_MARKED_LINE = re.compile(ANSWER_MARKER + r"[^\n]*")
_LINE = re.compile(r"\s*+([^\n]*)")
_HEADING = re.compile(r"\W*(?:step|part|case|problem|question|task|phase|stage)\b", re.IGNORECASE)
_ANNOUNCEMENT = re.compile(r"[\s*_#]*(?:the\s)?(?:final\s)?answer[\s*_]*:?[\s*_]*", re.IGNORECASE)
_EMPHASIS = "*_`"
_DECORATION = _EMPHASIS + ">"  # the last one quotes, at the beginning of a line
_MOST_OF_A_TAG = 20
_OPENED = re.compile(rf"<[A-Za-z]{{1,10}}[1-6]?>[ \t{_EMPHASIS}]{{0,7}}\Z")
"""An HTML tag that opens at the end of a text, of at most _MOST_OF_A_TAG characters."""
_MOST_LINES = 20
"""Answer lines to look at, at most: more of them are noise, and each comparison may take a second."""


def suffix(answer: str) -> str:
    """The answer suffix that follows every rationale, without the end-of-turn token."""
    return f"\n{ANSWER_MARKER} {answer}"


def without_suffix(text: str) -> str:
    """`text` stripped, without the answer lines at its end. A marker with more text below it counts as a heading."""
    end = len(text)
    while (start := text.rfind(ANSWER_MARKER, 0, end)) >= 0:
        if "\n" in text[start + len(ANSWER_MARKER) : end].strip():
            break
        end = start
    return (text[: _undecorated(text, end)] if end < len(text) else text).strip()


def split_thoughts(text: str) -> tuple[str, str | None]:
    """The answer in `text`, and the thought before it; None if there is no thought. Marks such as <think> and </think>
    enclose it.

    The first mark may be missing, since some chat templates write it into the prompt. If the thought does not end, the
    answer is empty.
    """
    marks = list(_THOUGHT.finditer(text))
    if not marks:
        return text, None
    last = marks[-1]
    closed = bool(last[1] or last[2])
    thoughts = _THOUGHT.sub("", text[: last.start()] if closed else text).strip()
    return text[last.end() :].lstrip() if closed else "", thoughts


def answer_part(response: str) -> str:
    """The part of `response` after its thoughts and before the first control token, which ends its turn."""
    text, _ = split_thoughts(response)
    token = _CONTROL_TOKEN.search(text)
    return text[: token.start()] if token else text


def rationale_of(response: str, is_answer: Callable[[str], bool]) -> str:
    """The part of `response` before its answer line, without thoughts, stripped.

    `is_answer` says whether the text after "####" is the answer. The rationale ends at the first such line, whatever
    follows it: "Hope this helps!", the end of a code fence, another check. A marker followed by another text counts as
    a heading. The result is empty if the response never ends its thoughts.
    """
    text = answer_part(response)
    cut = _first_answer_line(text, is_answer)
    text = _without_open_fence(without_suffix(text if cut is None else text[:cut]))
    above, _, last = text.rpartition("\n")
    return above.rstrip() if _ANNOUNCEMENT.fullmatch(last) else text


def _first_answer_line(text: str, is_answer: Callable[[str], bool]) -> int | None:
    """The start of the first answer line that has text above and below it, else None.

    A response that begins with its answer line has no rationale that ends there.
    """
    end = len(text.rstrip())
    for marked in islice(_MARKED_LINE.finditer(text), _MOST_LINES):
        line, below = marked[0].rpartition(ANSWER_MARKER)[2], marked.end()
        announced = _ANNOUNCEMENT.fullmatch(line) is not None
        if announced or not line.strip():
            following = _LINE.match(text, below)
            assert following is not None  # the pattern matches any text
            line, below = following[1], following.end()
        if (announced or below < end) and not _HEADING.match(line) and is_answer(line.strip(f" \t{_DECORATION}")):
            start = _undecorated(text, marked.start())
            return start if text[:start].strip() else None
    return None


def _undecorated(text: str, start: int) -> int:
    """The position at which the decoration before a marker at `start` begins: "> **" in "> **#### 12**", "- " in a
    list, "<p>" in "<p>#### 12</p>"."""
    line = text.rfind("\n", 0, start) + 1
    while tag := _OPENED.search(text, max(line, start - _MOST_OF_A_TAG), start):
        start = tag.start()
    if not text[line:start].strip(f" \t{_DECORATION}-+•"):
        return line
    return len(text[:start].rstrip(_EMPHASIS))


def _without_open_fence(text: str) -> str:
    """`text` stripped, without the opening line of a code fence that is never closed."""
    fences = list(_FENCE.finditer(text)) if "```" in text else []
    return (text[: fences[-1].start()] + text[fences[-1].end() :]).strip() if len(fences) % 2 else text
