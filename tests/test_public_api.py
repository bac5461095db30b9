"""The names that users import, and what the package says of its backends."""

from __future__ import annotations

import mind_kernels


def test_public_names():
    for name in mind_kernels.__all__:
        assert getattr(mind_kernels, name).__doc__, f"{name} has no docstring"


def test_backends_say_why_they_are_missing():
    backends = mind_kernels.backends()
    assert backends["reference"].available and backends["torch"].available
    assert all(status.available or status.reason for status in backends.values())
