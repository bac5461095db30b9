"""The code blocks of the pages in docs/: what each is, and how the commands among them are parsed."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.guide import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
_BLOCK = re.compile(r"(?:<!-- ([^\n]*) -->\n)?^```([\w{}-]*)(?: \S+)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NOT_RUN, RUN = "not run: ", re.compile(r"(tests/\S+) runs this")


class Block(NamedTuple):
    """A code block between fences."""

    note: str
    """The comment in the line before it, or nothing."""
    language: str
    """In braces the site's directive, which is no code."""
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """All of a page, in order."""
    text = page.read_text()
    for found in _BLOCK.finditer(text):
        yield Block(found[1] or "", found[2], found[3], text.count("\n", 0, found.start()) + 1)


def commands(text: str) -> list[list[str]]:
    """The words of each command line of a block; a backslash at the end of a line joins it to the next."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


class Parsed(Exception):
    """The options of a command, in place of what it would do."""


def parse(words: list[str], patch: pytest.MonkeyPatch) -> Any:
    """The options that `mind` with these words would run with, in the working directory; fails as the command would."""
    import mind.cli.commands as module

    assert words[0] == "mind", words
    wanted = {command.run for command in module.COMMANDS.values()}
    plain = module.resolved

    def stopping(options: Any = None) -> None:
        raise Parsed(options)

    with patch.context() as inside:
        inside.setattr(module, "resolved", lambda name: stopping if name in wanted else plain(name))
        try:
            module.run(words[1:])
        except Parsed as parsed:
            return parsed.args[0]
        except SystemExit as end:  # of the parser, which has said why
            raise AssertionError(f"{shlex.join(words)}: exit status {end.code}") from None
    raise AssertionError(f"{shlex.join(words)}: no command was run")


def prepare(words: list[str]) -> None:
    """Makes the files that the parser itself reads: those of --config, --resume and of the folders that an answer is
    made from."""
    from mind.config import MindConfig
    from mind.data.sources import SourceConfig
    from mind.teacher.config import GenerateConfig, ModelConfig
    from mind.typed_json import save_json

    asked = GenerateConfig("x", SourceConfig("questions.jsonl"), ModelConfig("m"))
    train = "train" in words[1:3]
    for option, value in zip(words, words[1:], strict=False):
        if option == "--config":
            write(Path(value), MindConfig() if train else asked, save_json)
        elif option == "--output" and "--resume" in words:
            write(Path(value) / "config.json", dataclasses.replace(MindConfig(), output=value), save_json)
        elif option in ("--dual", "--rewrite", "--prefix"):
            write(Path(value) / "generate.json", asked, save_json)


def write(file: Path, value: Any, save: Any) -> None:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        save(value, file)
