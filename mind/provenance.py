"""Describes the origin of a file: when it was written, and digests of what it was made from."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mind.redaction import without_secrets


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


def without_folders(name: str) -> str:
    """The last part of a path that starts with "/", "~" or ".", since its folders may name people; other names
    unchanged."""
    return (Path(name).name or name) if name.startswith(("/", "~", ".")) else name


def command() -> str:
    """The command line of this process, with the program's name instead of its path, and without what looks like a
    secret (`mind.redaction`), since files keep it."""
    program, *arguments = sys.argv or [""]
    return shlex.join([Path(program).name, *without_secrets(arguments)])


NUMERIC_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "numpy")
"""Packages that the numbers of a run may depend on."""


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The version of Python and of each installed one of the packages, by name."""
    known = {"python": platform.python_version()}
    for name in packages:
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            continue
    return known
