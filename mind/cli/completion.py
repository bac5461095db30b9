"""`mind completion`: a script for the shell, made by tyro from the options of all commands."""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

import tyro

from mind.cli.commands import COMMANDS, GROUPS, SHORT, resolved
from mind.cli.terminal import say


@dataclass(frozen=True)
class Completion:
    """Print a script that makes the shell complete commands, options and their values.

    For bash: eval "$(mind completion bash)", in ~/.bashrc to keep it. For zsh and fish it goes to a file in a folder
    where they look: mind completion zsh > FOLDER/_mind, mind completion fish > ~/.config/fish/completions/mind.fish.
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]
    """The shell that is to complete."""


def print_completion(options: Completion) -> None:
    with suppress(SystemExit), redirect_stdout(io.StringIO()) as script:  # tyro ends the program with it
        tyro.cli(_all_commands(), prog="mind", args=["--tyro-write-completion", options.shell, "-"])
    lines = script.getvalue().splitlines()
    # A description over several lines would be taken for several completions.
    lines = [line.replace(r"\n", " ") if line.startswith("COMPLETION_SPEC = ") else line for line in lines]
    # Where nothing fits, a file's name does.
    say("\n".join(line.replace("complete -F ", "complete -o default -F ") for line in lines))


def _all_commands() -> Any:
    """The commands as a type of tyro: a union of their options by name, a group as a union in it."""
    names = {name: name for name in COMMANDS} | SHORT
    top = {name: _options(whole, name) for name, whole in names.items() if " " not in name}
    for group in GROUPS:
        inner = {name.split()[1]: name for name in COMMANDS if name.startswith(f"{group} ")}
        members = [_options(whole, name) for name, whole in inner.items()]
        top[group] = Annotated[_union(members), tyro.conf.subcommand(name=group)]
    return _union(top.values())


def _union(kinds: Iterable[Any]) -> Any:
    return reduce(or_, kinds)


def _options(command: str, name: str) -> Any:
    kind, summary = resolved(COMMANDS[command].options), COMMANDS[command].summary
    return Annotated[kind, tyro.conf.subcommand(name=name, description=summary, prefix_name=False)]
