"""The words that put general rules before a question, in training and when a student is asked."""

from __future__ import annotations

from collections.abc import Sequence

RULES_WANTED = (
    "Which general rules is a question of this kind solved by? Write one per line, and do not solve the question.\n\n"
)
"""Stands before a question when a student is asked for its rules."""
KNOWLEDGE_WANTED = "`mind data generate --knowledge` asks a teacher for it"
"""What to do about questions without rules."""


def after_rules(rules: Sequence[str]) -> str:
    """The words before a question that is to be solved with these rules; empty without rules."""
    return "\n".join(["Rules that may help:", *rules, "", ""]) if rules else ""
