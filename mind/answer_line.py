"""The line "#### answer" that ends a rationale: written, and cut off again."""

from __future__ import annotations

ANSWER_MARKER = "####"


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
    return text[:end].strip()
