"""Writes a comparison as Markdown, for a repository or a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mind.comparison.compare import Comparison
from mind.comparison.tables import Table, accuracy_table, answer_table, cost_table, difference_tables, seed_table
from mind.comparison.wording import NOT_THE_PAPERS, notes, sentences
from mind.display import one_line

_MARKS = re.compile(r"([\\`*_\[\]<>|~$&#])")


def comparison_markdown(comparison: Comparison) -> str:
    """The sentences, the notes and the tables."""
    return "\n".join(_lines(comparison))


def escaped(text: str) -> str:
    """`text` on one line, with all marks of Markdown and HTML escaped."""
    return _MARKS.sub(r"\\\1", one_line(text))


def _lines(comparison: Comparison) -> Iterator[str]:
    yield from (f"# {escaped(comparison.title)}", "")
    yield from (f"**{escaped(sentence)}**\n" for sentence in sentences(comparison))
    yield from (escaped(NOT_THE_PAPERS), "")
    yield from (f"- {escaped(note)}" for note in notes(comparison))
    for table in (
        accuracy_table(comparison),
        *difference_tables(comparison),
        cost_table(comparison),
        answer_table(comparison),
        seed_table(comparison),
    ):
        yield from _table(table)
    yield from ("", escaped(origin(comparison)), "")


def _table(table: Table) -> Iterator[str]:
    yield from ("", f"## {escaped(table.title)}", "")
    yield _row(table.columns)
    yield _row(["---", *["---:"] * (len(table.columns) - 1)], plain=True)
    yield from map(_row, table.rows)
    if table.about:
        yield from ("", escaped(table.about))


def _row(cells: Sequence[str], plain: bool = False) -> str:
    return f"| {' | '.join(cells if plain else map(escaped, cells))} |"


def origin(comparison: Comparison) -> str:
    """What the numbers were computed from, and how."""
    analysis = comparison.analysis
    return (
        f"Plan {comparison.plan}; analysis version {analysis['version']}, {analysis['draws']:,} draws of the bootstrap "
        f"with seed {analysis['seed']}."
    )
