"""The output of the commands: everything is printed through here, so that no text can control the terminal."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mind import processes
from mind.display import readable
from mind.files import naming
from mind.progress import quiet, set_quiet

if TYPE_CHECKING:
    from mind.summary import Summary


@dataclass(frozen=True)
class Unfinished:
    """The result of a command that left something undone, which the same command would do; its exit status is 1."""

    once: str = ""
    """What must change before, such as " once that is mended"."""
    changing: str = ""
    """How the options begin whose values must change, such as "--budget."."""

    def __int__(self) -> int:
        return 1


def set_up_terminal() -> None:
    """Prepares this process: output to a closed stream is discarded, characters that the terminal's encoding lacks are
    shown by their codes, NO_COLOR turns styles off (tyro has a variable of its own), and progress bars of libraries
    appear only on terminals."""
    for name, flags in (("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:  # first of all: a file that is opened would get its descriptor
            descriptor = os.open(os.devnull, flags)
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if plain() or not (sys.stdout.isatty() and sys.stderr.isatty()):
        os.environ["PYTHON_TYRO_ANSI_CODES"] = "False"
    if not sys.stderr.isatty():
        _without_bars()


def set_up_quiet(asked: bool) -> None:
    """With `--quiet` only results, warnings and errors are printed."""
    set_quiet(asked)
    if asked:
        _without_bars()


def _without_bars() -> None:
    """Turns off the bars of libraries, which read this when they are loaded."""
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")


def plain() -> bool:
    """Whether the user wants no colors and styles (https://no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))


def say(text: str) -> None:
    """Prints a line, or several."""
    _print(readable(text) + "\n")


def _print(text: str) -> None:
    if not processes.speaks():  # one of several processes speaks
        return
    with naming("standard output"):
        print(text, end="", flush=True)


def note(text: str) -> None:
    """Announces on standard error something that will take a while."""
    if processes.main() and not quiet():
        complain("mind", f"{text} ...")


def note_loading(*what: str) -> None:
    """Announces that these are loaded: "PyTorch", "transformers", or the name of a model. A package that is loaded
    already, which was announced then, is left out."""
    modules = {"PyTorch": "torch", "transformers": "transformers"}
    left = [name for name in what if modules.get(name) not in sys.modules]
    if left:
        note("loading " + " and ".join(filter(None, [", ".join(left[:-1]), left[-1]])))


def complain(program: str, text: str) -> None:
    """Prints `text` on standard error as a message of `program`. Further lines are indented, so that none looks like a
    message of its own."""
    print(f"{program}: {readable(text)}".replace("\n", "\n  "), file=sys.stderr, flush=True)


def given_option(words: Sequence[str], name: str) -> str | None:
    """The value of the option `name`, for options that are read before the others; None if it is not given."""
    value = None
    for place, word in enumerate(words):
        if word == name:
            value = words[place + 1] if place + 1 < len(words) else None
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value


def command_line(*words: str) -> str:
    """The command line to type for this program with these words."""
    return shlex.join([*_program(), *words])


def say_next(*words: str, purpose: str = "") -> None:
    """Prints the next command at the end of a line, where it is easy to copy."""
    if not quiet():
        say(f"next{purpose and f', {purpose}'}: {command_line(*words)}")


def _program() -> list[str]:
    if (count := processes.count()) > 1:
        one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(count)
        # torchrun does not tell what it was given on each of several machines.
        return ["torchrun", *(["--nproc-per-node", str(count)] if one_machine else ["..."]), "-m", "mind"]
    called, found = Path(sys.argv[0]), shutil.which("mind")
    if called.name == "__main__.py" and called.parent.name == "mind":
        return [Path(sys.executable).name, "-m", "mind"]
    if called.name != "mind" or (found is not None and called.exists() and os.path.samefile(found, called)):
        return ["mind"]
    return [str(called)]


def print_summary(title: str, summary: Summary) -> None:
    """Prints the result of a command as a table: integers with thousands commas, other numbers to four places."""
    print_table(title, [{name: _shown(value) for name, value in row.items()} for row in summary.as_rows()])


def print_table(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Prints `rows`, whose keys are the columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def text(value: str) -> Text:  # no markup: "[/b]" may be the name of a model
        return Text(readable(value))

    table = Table(title=text(title))
    for name in rows[0] if rows else ():
        table.add_column(text(name))
    for row in rows:
        table.add_row(*map(text, row.values()))
    width = None if sys.stdout.isatty() else 110
    console = Console(width=width, color_system=None if plain() else "auto")
    with console.capture() as shown:  # rich ends the program if nobody reads
        console.print(table)
    _print(shown.get())


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
