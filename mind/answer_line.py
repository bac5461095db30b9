"""The line "#### answer" that ends a rationale: written, cut off again, and read from a published gold answer."""

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


def published_answer(text: str) -> str:
    r"""The final answer of a solution as data sets publish it: behind its last "####", or in its last \boxed{...}.

    `text` itself if it is no solution but an answer, with or without a box around it.
    """
    _, marker, marked = text.rpartition(ANSWER_MARKER)
    if marker and marked.strip():
        return marked.strip()
    start = text.rfind("\\boxed{")
    if start <= 0:
        return text
    depth, inner = 1, start + len("\\boxed{")
    for end in range(inner, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[inner:end].strip() or text
    return text
