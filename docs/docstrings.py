"""Docstrings as reStructuredText, for Napoleon: they are plain text, with `names` and indented equations."""

from __future__ import annotations

import re

SECTION = re.compile(r"(Args|Returns|Yields|Raises|Attributes|Source):$")


def as_rst(lines: list[str]) -> list[str]:
    """Names and equations as literal text; Napoleon makes fields of the sections, whose items are indented too."""
    found: list[str] = []
    literal = in_section = False
    for line in lines:
        in_section |= bool(SECTION.match(line))
        if line.strip():
            begins = line.startswith("    ") and not in_section
            if begins and not literal:
                found += ["", "::", ""]
            elif literal and not begins:
                found.append("")
            literal = begins
        found.append(line if literal else _inline(line))
    return found


def _inline(line: str) -> str:
    """`names` as literal text, and no character with a meaning of its own elsewhere."""
    parts = re.split(r"(`+[^`]+`+)", line)
    for place, part in enumerate(parts):
        parts[place] = f"``{part.strip('`')}``" if place % 2 else re.sub(r"([\\*|]|_(?!\w))", r"\\\1", part)
    return "".join(parts)


def setup(app) -> None:
    def process(app, what, name, obj, options, lines):
        lines[:] = as_rst(lines)

    app.connect("autodoc-process-docstring", process, priority=400)  # Napoleon's is 500
