"""General rules beside a question: the words that stand before it, in training and where a student is asked."""

from __future__ import annotations

from collections.abc import Sequence

RULES_WANTED = (
    "Which general rules is a question of this kind solved by? Write one per line, and do not solve the question.\n\n"
)
"""Before a question for whose rules a student is asked."""
KNOWLEDGE_WANTED = "`mind data generate --knowledge` asks a teacher for it"
"""What to do about questions without any."""


def after_rules(rules: Sequence[str]) -> str:
    """Before a question that is to be solved with rules in mind; nothing without any."""
    return "\n".join(["Rules that may help:", *rules, "", ""]) if rules else ""
