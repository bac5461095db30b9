"""Lines of a page that a program writes, between a comment that says which program and `<!-- end -->`."""

from __future__ import annotations

from collections.abc import Sequence

END = "<!-- end -->\n"


def replaced(page: str, begin: str, lines: str) -> str:
    """`page` with `lines`, which end in a line break, between the comment `begin` and END.

    Raises ValueError if the page lacks either.
    """
    before, after = _around(page, begin)
    return f"{before}{begin}\n{lines}{END}{after}"


def written(page: str, begin: str) -> str:
    """The lines of `page` between the comment `begin` and END. Raises ValueError if the page lacks either."""
    before, after = _around(page, begin)
    return page[len(f"{before}{begin}\n") : len(page) - len(END + after)]


def _around(page: str, begin: str) -> tuple[str, str]:
    before, found, rest = page.partition(f"{begin}\n")
    _, end, after = rest.partition(END)
    if not (found and end):
        raise ValueError(f"expected the line {begin} and, after it, {END.strip()}")
    return before, after


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *body])
