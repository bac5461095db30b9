"""Commands without their secrets, for files and messages that keep how a program was called."""

from __future__ import annotations

import re
from collections.abc import Sequence

REDACTED = "REDACTED"

# Names of secrets, and ends of names that are often something else: there the value must not be a path or a sentence.
_STRONG = r"(?:api[-_]?key|secret|password|passwd|passphrase|credentials?|authorization|cookie)"
_WEAK = r"(?:(?:\b|[-_])(?:token|key|auth)|(?-i:[a-z](?:Token|Key)))"
_START = r"(?<![\w.-])[\w.-]{0,64}?"
_OPTION = re.compile(rf"--(?:[\w.-]*(?:{_STRONG}|(?:\b|[-_])token)|[\w.-]*(?:key|headers?|auth))", re.IGNORECASE)
"""The name of an option with a secret value; not --teacher.api-key-env, which names a variable, or --budget.tokens."""
_ASSIGNED = (
    re.compile(rf"({_START}{_STRONG}\s*=\s*)\S.*", re.IGNORECASE | re.DOTALL),
    re.compile(rf"({_START}{_WEAK}=)[^\s/]+", re.IGNORECASE),
    re.compile(r"((?:[\w-]{0,64}(?:authorization|cookie|api-key|-token|-auth))\s*:\s*)\S.*", re.IGNORECASE | re.DOTALL),
)
"""A whole word, as --set and headers have it."""
_FIELD = rf"[\w.-]{{0,64}}?(?:{_STRONG}|{_WEAK})"
_PATTERNS = (
    # A field of JSON, also one within a text of JSON, and one of Python.
    (re.compile(rf'("{_FIELD}"\s*:\s*)(?:"(?:[^"\\]|\\.)*"?|[^\s,"{{}}\[\]]+)', re.IGNORECASE), rf'\1"{REDACTED}"'),
    (re.compile(rf'(\\"{_FIELD}\\"\s*:\s*\\").*?(\\")', re.IGNORECASE), rf"\1{REDACTED}\2"),
    (re.compile(rf"('{_FIELD}'\s*:\s*)'[^']*'?", re.IGNORECASE), rf"\1'{REDACTED}'"),
    # The user and the password of a URL, and a key in its query.
    (re.compile(r"(?<=://)[^/?#\s]*@"), f"{REDACTED}@"),
    (
        re.compile(r"([?&][\w.-]{0,64}(?:key|token|secret|password|signature|sig|auth)=)[^&#\s]+", re.I),
        rf"\1{REDACTED}",
    ),
    # What HTTP calls the kind of a key, and the keys of known services.
    (re.compile(r"\b(Bearer|Basic)(\s+)[\w.~+/=-]{16,}"), rf"\1\2{REDACTED}"),
    (
        re.compile(
            r"(?<![A-Za-z0-9])(?:sk-[\w-]{0,40}?(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{16,}[\w-]*"
            r"|(?:sk|pk|rk)_(?:live|test)_\w{16,}|(?:hf|gsk|r8|gh[pousr])_[A-Za-z0-9]{30,}|github_pat_\w{30,}"
            r"|(?:nvapi|pplx|xai)-[\w-]{40,}|(?:glpat|xox[a-z])-[\w-]{20,}"
            r"|AKIA[A-Z0-9]{16}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
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
    for pattern in _ASSIGNED:
        if found := pattern.fullmatch(word.lstrip("-")):
            return word[: len(word) - len(word.lstrip("-"))] + found[1] + REDACTED
    for pattern, replacement in _PATTERNS:
        word = pattern.sub(replacement, word)
    return word
