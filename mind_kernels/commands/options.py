"""The options of a command: a wrong one is told in one line that names the nearest one."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """argparse's parser, which would print its usage, and in another line the error."""

    names: tuple[str, ...] = ()
    """All options as they are typed, "--device", and arguments by name."""

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        self.names = (*self.names, *names)
        return super().add_argument(*names, **settings)

    def parse_args(self, words: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        options, left = self.parse_known_args(words, namespace)
        unknown = next((word.partition("=")[0] for word in left if word.startswith("-")), None)
        if unknown is not None:
            self.error(f"unknown option {unknown}{meant(unknown, self.names)}")
        if left:
            self.error(f"unexpected word {left[0]}")
        return options

    def error(self, message: str) -> NoReturn:
        """Ends the program; argparse calls it with words such as "argument --rows: is x"."""
        told = re.sub(r"^argument ([^:]+): (is )?", lambda found: f"{found[1]}{' is ' if found[2] else ': '}", message)
        fail(f"{told}; `{self.prog} --help` lists the options")


def fail(message: str) -> NoReturn:
    """Ends the program with exit status 2 and one line."""
    print(f"mind_kernels: error: {message}", file=sys.stderr)
    sys.exit(2)


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """The type of an option whose value is one of these names."""
    known = tuple(names)

    def value(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"is {text}: expected {listed(known)}{meant(text, known)}")
        return text

    return value


def whole_number(text: str) -> int:
    """The type of an option whose value is a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {text}: expected a whole number") from None


def listed(names: Sequence[str]) -> str:
    """The names as "a, b or c"."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def meant(word: str, known: Iterable[str]) -> str:
    """A suggestion for the end of a message: the name among `known` most similar to `word`; empty if none is."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; perhaps you meant {near[0]}" if near else ""
