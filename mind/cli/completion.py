"""`mind completion`: prints a completion script for the shell, made by tyro from the options of all commands."""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field, make_dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from mind.cli.brief import GENERAL
from mind.cli.commands import COMMANDS, GROUPS, SHORT, resolved
from mind.cli.terminal import say
from mind.experiment.plan import packaged
from mind.perspectives import PAPER_PERSPECTIVES
from mind.word_problems.levels import LEVELS

Shell = Literal["bash", "zsh", "fish"]


@dataclass(frozen=True)
class Completion:
    """Print a script that makes the shell complete commands, options and their values.

    For bash: eval "$(mind completion bash)", in ~/.bashrc to keep it. For zsh and fish it goes to a file in a folder
    where they look: mind completion zsh > FOLDER/_mind, mind completion fish > ~/.config/fish/completions/mind.fish.
    """

    shell: Annotated[Shell, tyro.conf.Positional]
    """The shell that the script is for."""


METHODS = (
    *("compact", "edit", "kd", "lorid", "lorid-dr", "lorid-kg", "mcc-kd", "mind", "mode-cotd", "nesycd", "qcrd"),
    *("redi", "sbs", "sft", "taid"),
)
"""The names in mind.methods.METHODS, which would load PyTorch whenever a shell starts."""
_PRESETS = tuple(sorted(file.stem for file in (Path(__file__).parent.parent / "methods" / "presets").glob("*.json")))
VALUES: dict[str, Sequence[str]] = {
    "--method": (*METHODS, *_PRESETS),
    "--data.perspectives": PAPER_PERSPECTIVES,
    "--perspectives": PAPER_PERSPECTIVES,
    "--families": ("train", "ood", *(family.name for level in LEVELS.values() for family in level.families)),
    "--objective.backend": ("auto", "reference", "torch", "cpp", "cuda", "triton", "triton_streaming"),
    "--student.attention": ("auto", "sdpa", "sdpa_spans", "eager", "flex_attention", "flash_attention_2"),
    "--train.lr-scheduler": ("cosine", "linear", "constant", "constant_with_warmup"),
    "--metanet.feedback": ("all", "selected", "every-4"),
}
"""Values of options whose type is any text; other values may be right, too."""
ARGUMENTS: dict[str, Sequence[str]] = {"experiment": packaged()}
"""Values of a command's argument, by the name of the command; a file may be right, too."""
_SPEC = "COMPLETION_SPEC = "

_GENERAL = [
    (
        name.removeprefix("--").replace("-", "_"),
        Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help=text)],
        field(default=False),
    )
    for name, text in GENERAL.items()
]
"""The options of all commands, which `mind.cli.commands.run` reads."""


def print_completion(options: Completion) -> None:
    # tyro ends the program after printing the script
    with suppress(SystemExit), redirect_stdout(io.StringIO()) as script:
        tyro.cli(_all_commands(), prog="mind", args=["--tyro-write-completion", options.shell, "-"])
    lines = script.getvalue().splitlines()
    lines = [_improved(line, options.shell) if line.startswith(_SPEC) else line for line in lines]
    # If nothing fits, complete file names.
    say("\n".join(line.replace("complete -F ", "complete -o default -F ") for line in lines))


def _improved(line: str, shell: Shell) -> str:
    """The line with the options of all commands, with VALUES and ARGUMENTS; a description of several lines, which would
    count as several completions, becomes one line."""
    fish = shell == "fish"  # which has the line between double quotes
    plain = re.sub(r'\\([\\"$])', r"\1", line) if fish else line
    spec = ast.literal_eval(plain.removeprefix(_SPEC).replace(r"\n", " "))
    _add_values(spec)
    for name, values in ARGUMENTS.items():  # as commands after it, with the same options
        command = spec["subcommands"][name]
        command["subcommands"] = {value: command | {"description": value} for value in values}
    improved = f"{_SPEC}{spec!r}"
    return re.sub(r'([\\"$])', r"\\\1", improved) if fish else improved


def _add_values(spec: dict[str, Any]) -> None:
    for option in spec["options"]:
        known = next((VALUES[flag] for flag in option["flags"] if flag in VALUES), None)
        if known is not None:
            option |= {"type": "choice", "choices": list(known)}
    for command in spec["subcommands"].values():
        _add_values(command)


def _all_commands() -> Any:
    """All commands as a type for tyro: a union of their options by name; a group is a union within it."""
    top = _by_group(lambda name: (COMMANDS[name].summary, _options(name)))
    top["completion"] = _group("completion", dict.fromkeys(get_args(Shell), ("", _Nothing)))
    top["help"] = _group("help", _by_group(lambda name: (COMMANDS[name].summary, _Nothing)))
    return _union(top)


Described = tuple[str, Any]
"""A line about a command, and the type of its options, or of the commands in a group."""


@dataclass(frozen=True)
class _Nothing:
    """No options: ends the command line."""


def _by_group(described: Callable[[str], Described]) -> dict[str, Described]:
    """The first words of the commands, including their short names."""
    names = {name: name for name in COMMANDS} | SHORT
    top = {name: described(whole) for name, whole in names.items() if " " not in name}
    for group in GROUPS:
        top[group] = _group(group, {n.split()[1]: described(n) for n in COMMANDS if n.startswith(f"{group} ")})
    return top


def _group(name: str, inner: dict[str, Described]) -> Described:
    return f"{name} ...", _union(inner)


def _union(kinds: dict[str, Described]) -> Any:
    named = (
        Annotated[kind, tyro.conf.subcommand(name=name, description=line or name, prefix_name=False)]
        for name, (line, kind) in kinds.items()
    )
    return reduce(or_, named)


def _options(name: str) -> Any:
    """The options of a command, with those that all commands have."""
    options = COMMANDS[name].options
    return make_dataclass("Options", _GENERAL, bases=() if options is None else (resolved(options),), frozen=True)
