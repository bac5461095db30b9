"""What the tests of all trainers share: the record of what ran."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable

import pytest


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Puts what a test ran into pytest's report, from which `make integrations` makes a line of results.jsonl."""

    def add(trainer: str, lines: str, ran: str, **distances: float) -> None:
        """
        Args:
            trainer: the name of its distribution.
            lines: how many lines a user writes.
            ran: a kind of training, and after a comma which case of it.
            distances: |fused - stock| / |stock| of all losses (`loss`) and weights (`weights`) of four steps, or
                of the losses of a real model (`curve`), which a step of Adam takes further apart.
        """
        version = importlib.metadata.version(trainer)
        line = {"trainer": trainer, "version": version, "lines": lines, "ran": ran}
        rounded = {name: float(f"{value:.1e}") for name, value in distances.items()}
        record_property("ran", json.dumps(line | rounded))

    return add
