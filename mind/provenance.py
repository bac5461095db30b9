"""What a file says of its origin: when it was written, and by digests from what."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime


def now() -> str:
    """The time in UTC, to the second: "2026-11-21T19:00:00Z"."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def text_digest(text: str) -> str:
    """The SHA-256 of `text`, in hexadecimal; lone surrogates are allowed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
