"""The README's table of trainers is what their tests recorded, at the versions that are installed for them."""

from __future__ import annotations

import re

import pytest
import results_table

from docs.generated import written
from tests.guide import ROOT

LINES = results_table.read()


def test_the_readme_has_the_table_of_the_results():
    page = results_table.README.read_text()
    assert written(page, results_table.BEGIN) == results_table.table(LINES), "make integrations ARGS=--record writes it"


def pins(file: str) -> dict[str, dict[str, str]]:
    """By section, the versions of the distributions."""
    found: dict[str, dict[str, str]] = {"": {}}
    section = ""
    for line in (ROOT / file).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif match := re.fullmatch(r"([\w.-]+)==(\S+)", line):
            found.setdefault(section, {})[match[1]] = match[2]
    return found


@pytest.mark.parametrize("trainer", results_table.TRAINERS)
def test_versions_are_the_pinned_ones(trainer):
    own = pins("constraints-integrations.txt").get(trainer) or pins("constraints.txt")[""]
    versions = {line["version"] for line in LINES if line["trainer"] == trainer}
    assert versions == {own[trainer]}, "make integrations ARGS=--record tests the pinned version"


def test_distances_are_within_what_the_readme_says():
    assert all(line.get("loss", 0) <= 1e-6 and line.get("weights", 0) <= 1e-5 for line in LINES)
