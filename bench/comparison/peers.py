"""Lists which of the packages that the losses are compared with are installed: a line, `python -m
bench.comparison.peers`."""

from __future__ import annotations

import importlib.metadata

PEERS = ("torch", "triton", "transformers", "trl", "liger-kernel", "cut-cross-entropy", "quack-kernels")


def described(distribution: str) -> str:
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{distribution} not installed"


if __name__ == "__main__":
    print(*map(described, PEERS), sep=", ")
