"""Responses and verdicts of which a test names what it is about."""

from __future__ import annotations

from typing import Any

from mind.records import Grade, Key, Response, Verdict


def make_response(question: str = "q", perspective: str = "socratic", sample: int = 0, **changes: Any) -> Response:
    """A response of three prompt tokens and four others, with `changes`."""
    values = {
        "key": Key(question, perspective, sample),
        "request": "ab",
        "model": "m",
        "text": "t",
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "attempts": 1,
        "seconds": 0.5,
        "created": "2026-11-21T10:00:00Z",
    }
    return Response(**values | changes)


def make_verdict(key: Key, verdict: Grade = "right") -> Verdict:
    return Verdict(key, verdict, "12", "equal as numbers", "rules")
