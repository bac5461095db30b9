"""README.md as a package index shows it, which cannot follow links inside the repository."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = re.compile(r"(^```.*?^```[^\n]*\n?|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")
ELSEWHERE = ("http://", "https://", "mailto:", "#")


def long_description() -> str:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    return for_an_index((ROOT / "README.md").read_text(), urls.get("Repository"))


def for_an_index(markdown: str, repository: str | None) -> str:
    """The text with absolute links and pictures; without the repository's address, with their words alone."""

    def shown(link: re.Match[str]) -> str:
        image, text, target = link["image"], link["text"], link["target"]
        if target.startswith(ELSEWHERE):
            return link[0]
        if repository:
            return f"{image}[{text}]({repository.rstrip('/')}/{'raw' if image else 'blob'}/main/{target})"
        return "" if image else text

    parts = CODE.split(markdown)  # text and code in turn
    return "".join(part if number % 2 else LINK.sub(shown, part) for number, part in enumerate(parts))
