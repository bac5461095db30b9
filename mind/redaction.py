"""Commands without their secrets, for files and messages that keep how a program was called."""

from __future__ import annotations

import re
from collections.abc import Sequence

REDACTED = "REDACTED"

_SECRET = r"[\w.-]*(?:api[-_]?key|secret|password|passwd|passphrase|credentials?|authorization|cookie|(?:\b|[-_])token)"
_OPTION = re.compile(rf"--(?:{_SECRET}|[\w.-]*(?:key|headers?|auth))", re.IGNORECASE)
"""The name of an option with a secret value; not --teacher.api-key-env, which names a variable, or --budget.tokens."""
_PATTERNS = (
    # A field of a JSON object, and one of a configuration or a header, which goes on to the end of the word.
    (re.compile(rf'("{_SECRET}"\s*:\s*)"(?:[^"\\]|\\.)*"?', re.IGNORECASE), rf'\1"{REDACTED}"'),
    (re.compile(rf"(?<![\w?&]){_SECRET}\s*[=:]\s*(?!\s|//).+", re.IGNORECASE | re.DOTALL), None),
    # The user and the password of a URL, and a key in its query.
    (re.compile(r"(?<=://)[^/?#\s]*@"), f"{REDACTED}@"),
    (re.compile(r"([?&][\w.-]*(?:key|token|secret|password|signature|sig|auth)=)[^&#\s]+", re.IGNORECASE), None),
    # What HTTP calls the kind of a key, and how keys of known services begin.
    (re.compile(r"\b(Bearer|Basic)(\s+)\S+"), rf"\1\2{REDACTED}"),
    (
        re.compile(
            r"(?<![A-Za-z0-9])(?:(?:sk|pk|rk|gsk|hf|nvapi|glpat|r8|pplx|xai|github_pat|gh[pousr]|xox[a-z])[-_]"
            r"[A-Za-z0-9_-]{16,}|AKIA[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
        ),
        REDACTED,
    ),
)


def without_secrets(words: Sequence[str]) -> list[str]:
    """The words of a command line with "REDACTED" for what looks like a secret.

    That is each value of an option such as --x.headers or --x.api-key, the user and the password of a URL, a key in its
    query, fields such as "api_key" of JSON, and what begins as the keys of known services do. A secret that looks like
    any other text cannot be told from one, and stays.
    """
    safe, hidden = [], False
    for word in words:
        option, assigned, _ = word.partition("=")
        if option.startswith("--"):
            hidden = _OPTION.fullmatch(option) is not None
            safe.append(f"{option}={REDACTED}" if hidden and assigned else _redacted(word))
        else:
            safe.append(REDACTED if hidden else _redacted(word))
    return safe


def _redacted(word: str) -> str:
    for pattern, replacement in _PATTERNS:
        word = pattern.sub(replacement or _after_the_name, word)
    return word


def _after_the_name(match: re.Match[str]) -> str:
    """What a pattern found up to its first "=" or ":"."""
    found = match[0]
    end = min(place for sign in "=:" if (place := found.find(sign)) >= 0) + 1
    return found[:end] + REDACTED
