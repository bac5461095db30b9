"""Lists the commands by name and runs them. A command imports what it needs when it is called."""

from __future__ import annotations

import difflib
import errno
import itertools
import pkgutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mind import processes
from mind.cli.boundary import BAD_INPUT
from mind.cli.brief import brief
from mind.cli.doctor import versions
from mind.cli.launch import join
from mind.cli.options import known_option, options_of, parsed
from mind.cli.terminal import Unfinished, command_line, complain, say, set_up_quiet
from mind.errors import MindError, require
from mind.redaction import without_secrets


@dataclass(frozen=True)
class Command:
    """One command. `options`, `run`, `defaults` and `more_help` name functions or classes in mind.cli, or "module:name"
    there."""

    summary: str
    """Its line in the list of commands."""
    options: str | None
    """The dataclass that tyro turns into flags; its docstring says what the command does. None: no options."""
    run: str
    """The function that gets the options, and returns the exit status, None for 0, or `Unfinished` for 1."""
    defaults: str | None = None
    """The function that gets the words of the command line, and returns the defaults of the flags."""
    more_help: str | None = None
    """The function that gets the words of the command line, and returns text to show after the short help."""
    goes_on: bool = False
    """Whether it continues where it stopped if it is started again; other commands start from the beginning."""
    kept: str | None = None
    """The function that gets the options, and returns in words what an interrupted start has left; "" for nothing."""
    repeated: tuple[str, ...] = ()
    """Options that may be given several times, once per value."""
    several: bool = False
    """Whether a launch of several processes may run it, which then share the work."""


COMMANDS = {
    "data check": Command("count the questions of a file, and list what is wrong", "check:Check", "check:check"),
    "data generate": Command(
        "ask a teacher model for rationales",
        "dataset:Generate",
        "dataset:generate",
        defaults="dataset:generate_defaults",
        goes_on=True,
        kept="dataset:kept_answers",
    ),
    "data judge": Command(
        "judge each rationale: right or wrong",
        "dataset:Judge",
        "dataset:judge",
        goes_on=True,
        kept="dataset:kept_replies",
    ),
    "data filter": Command("choose the rationales to train on", "dataset:Filter", "dataset:filter_dataset"),
    "data import": Command(
        "make training records from rationales without perspectives", "dataset:Import", "dataset:import_rationales"
    ),
    "data word-problems": Command(
        "write word problems with eight rationales each", "dataset:WordProblems", "dataset:word_problems"
    ),
    "train": Command(
        "train a student, or go on with a run by --resume",
        "training:Train",
        "training:train_command",
        defaults="training:train_defaults",
        more_help="training:method_help",
        goes_on=True,
        several=True,
    ),
    "evaluate": Command(
        "measure a model's accuracy, and its NLL on rationales",
        "evaluating:Evaluate",
        "evaluating:evaluate_command",
        kept="evaluating:kept_students",
        several=True,
    ),
    "report": Command("write the report of a run again", "training:Report", "training:report_command"),
    "experiment": Command(
        "train a student per method and seed, at equal budgets",
        "experiment:Experiment",
        "experiment:experiment_command",
        goes_on=True,
        kept="experiment:kept_jobs",
        repeated=("--set",),
    ),
    "compare": Command(
        "say which methods of an experiment are better", "comparison:Compare", "comparison:compare_command"
    ),
    "grade": Command("grade responses of any model in a file", "dataset:Grade", "dataset:grade"),
    "lm-eval-tasks": Command(
        "write tasks for lm-evaluation-harness with this grader", "lm_eval:LmEvalTasks", "lm_eval:lm_eval_tasks"
    ),
    "latent": Command(
        "examine hidden states of single-perspective students",
        "latent:Latent",
        "latent:latent",
        goes_on=True,
        kept="latent:kept_vectors",
    ),
    "doctor": Command("show what is installed, what is missing, how to get it", None, "doctor:doctor"),
    "completion": Command(
        "print the script for the tab key in bash, zsh or fish", "completion:Completion", "completion:print_completion"
    ),
}
SHORT = {name: f"data {name}" for name in ("generate", "judge", "filter")}
GROUPS = tuple(dict.fromkeys(name.split()[0] for name in COMMANDS if " " in name))
HELP_OPTIONS = ("-h", "--help", "--help-all")
HELP, VERSION = ("help", *HELP_OPTIONS), ("version", "--version", "-V")
QUIET = ("-q", "--quiet")
EXAMPLES = (
    "mind train --output runs/first          # on built-in word problems",
    "mind data check questions.jsonl         # then data generate, judge and filter",
)
LIKE = 0.6
"""Commands with at least this ratio of difflib count as similar, as in difflib.get_close_matches."""


def usage(group: str = "") -> str:
    """The list of all commands, or of those of a group."""
    name = f"mind {group}".strip()
    lines = [f"  {name:<20}{command.summary}" for name, command in COMMANDS.items() if name.startswith(group)]
    about = ["Distil step-by-step reasoning of a teacher into a small language model.", ""]
    short = ["`data` may be left out of `mind data generate`, `judge` and `filter`."]
    hints = [f"`{name} COMMAND --help` shows the options of a command, with examples."]
    more = ["`mind --version` prints the versions; `--quiet` leaves out progress and notes."]
    return "\n".join(
        [f"usage: {name} COMMAND [options]", "", *([] if group else about), *lines, "", *hints]
        + ([] if group else [*short, *more, "", "examples:", *(f"  {line}" for line in EXAMPLES)])
    )


def run(arguments: Sequence[str]) -> int:
    """Runs the command with which the arguments begin; returns the exit status. Raises MindError for bad input."""
    _check_values(arguments)
    words = [word for word in arguments if word not in QUIET]
    set_up_quiet(len(words) < len(arguments))
    if words[:1] and words[0] in VERSION:
        say(versions())
        return 0
    if words[:1] == ["help"]:  # "mind help train" is "mind train --help"
        words = [*words[1:], "--help"]
    group = words.pop(0) if words[:1] and words[0] in GROUPS else ""
    if group and words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in HELP:
        say(usage(group))
        return 0 if words else BAD_INPUT
    name = f"{group} {words[0]}".strip()
    name = SHORT.get(name, name)
    if name in COMMANDS:
        return start(name, words[1:])
    raise MindError(unknown(group, words))


def _check_values(words: Sequence[str]) -> None:
    """Raises MindError if --quiet or --help stands in the place of an option's value: it would be taken out, and the
    next word would become the value."""
    first = [word for word in words if word not in QUIET][:2]
    named = (" ".join(first), *(SHORT.get(word, word) for word in first[:1]))
    options = next((COMMANDS[name].options for name in named if name in COMMANDS), None)
    general = (*QUIET, *HELP_OPTIONS)
    for before, word in itertools.pairwise(words):
        if options is None or word not in general or before in general or not before.startswith("--"):
            continue
        require(
            (option := known_option(options_of(resolved(options)), before)) is None or option.is_flag,
            f"{before} is followed by {word}: expected a value; if {word} is the value, write {before}={word}",
        )


def start(name: str, words: Sequence[str]) -> int:
    """Runs a command with the words that follow its name."""
    command, asked = COMMANDS[name], set(words)
    if asked & {*HELP_OPTIONS} and not ("--help-all" in asked and command.options):
        more = resolved(command.more_help)(words) if command.more_help and len(words) > 1 else ""
        say("\n\n".join(filter(None, [brief(name), more])))
        return 0
    if command.options is None:
        require(not words, f"mind {name} takes no options: {' '.join(words)} is one too many")
        return resolved(command.run)()
    others = [word for word in words if word not in HELP_OPTIONS]
    return _started(name, command, ["--help", *others] if asked & {*HELP_OPTIONS} else words)


def _started(name: str, command: Command, words: Sequence[str]) -> int:
    import tyro

    assert command.options is not None
    if "--help" not in words:  # help needs no other process
        _check_one(name)
        join([*name.split(), *words])
    check_words(words, command)
    default: Any = tyro.MISSING_NONPROP if command.defaults is None else resolved(command.defaults)(words)
    options = parsed(name, resolved(command.options), words, default)
    shown = command_line(*name.split(), *without_secrets(words))
    again = f"to {'go on' if command.goes_on else 'start again'}: {shown}"
    try:
        status = resolved(command.run)(options) or 0
        if status and command.goes_on:
            change = status if isinstance(status, Unfinished) else Unfinished()
            say(f"to go on{change.once}: {command_line(*name.split(), *_to_change(words, change.changing))}")
        return int(status)
    except (KeyboardInterrupt, OSError) as error:
        if isinstance(error, KeyboardInterrupt):
            kept = ""
            if command.kept:
                with suppress(MindError, OSError):  # of a broken file the next start tells
                    kept = resolved(command.kept)(options)
            _add_note(error, "; ".join(filter(None, [kept, again])))
        elif command.goes_on and error.errno in (errno.ENOSPC, errno.EDQUOT):
            _add_note(error, f"when there is room, {again}")
        raise


def _to_change(words: Sequence[str], changing: str) -> Iterator[str]:
    """The words without secrets, with N for the values of options that begin so; "" is no option's beginning."""
    is_value = False
    for word in without_secrets(words):
        option, joined, _ = word.partition("=")
        changes = bool(changing) and option.startswith(changing)
        yield f"{option}=N" if changes and joined else "N" if is_value else word
        is_value = changes and not joined


def _check_one(name: str) -> None:
    """Raises MindError if a launch of several processes runs a command that is made for one, before it waits for others
    that may not exist."""
    several = " and ".join(f"`mind {one}`" for one, command in COMMANDS.items() if command.several)
    require(
        COMMANDS[name].several or processes.count() == 1,
        f"WORLD_SIZE is {processes.count()}, as in a launch of several processes, and `mind {name}` runs in one: "
        f"{processes.REMEDY}; several may share the work of {several}",
    )


def check_words(words: Sequence[str], command: Command) -> None:
    """Raises MindError for an empty value, which would be taken for the current folder.

    Warns of an option that is given twice and is not in `command.repeated`: the last one counts, which lets
    `make train ARGS=...` replace options.
    """
    given: Counter[str] = Counter()
    before = "a word of the command"
    for word in words:
        option, assigned, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if option:
            before = option
            given[option.replace("_", "-")] += 1
        require(bool(value.strip()) or bool(option and not assigned), f"{before} is empty: expected a value")
    for option, count in given.items():
        if count > 1 and option not in command.repeated and processes.speaks():
            of = None if command.options is None else known_option(options_of(resolved(command.options)), option)
            several = of is not None and of.takes > 1
            last = f"values after the last one count; give all values after one {option}" if several else "last counts"
            complain("mind", f"{option} is given {count} times: only the {last}")


def _add_note(error: BaseException, note: str) -> None:
    """Adds the note, unless the command has already said better what to type."""
    if not getattr(error, "__notes__", None):
        error.add_note(note)


def resolved(name: str) -> Any:
    """The object that "module:name" refers to in mind.cli."""
    return pkgutil.resolve_name(f"mind.cli.{name}")


def unknown(group: str, words: Sequence[str]) -> str:
    """The message for words that begin with no command of the group, naming the most similar command."""
    listed = f"`{command_line(*group.split(), '--help')}` lists the commands"
    if words[0].startswith("-"):
        return f"{words[0]} is no command: expected one before its options; {listed}"
    asked = f"{group} {words[0]}".strip()
    known = {name.split()[-1]: name for name in COMMANDS} | {name: name for name in (*COMMANDS, *GROUPS, *SHORT)}
    likeness, near = max(
        (difflib.SequenceMatcher(None, said, name).ratio(), name)
        for said in (asked, words[0], " ".join(words[:2]))
        for name in known
    )
    meant = f"; perhaps you meant `{command_line(*known[near].split())}`" if likeness >= LIKE else ""
    return f"unknown command {asked}{meant}; {listed}"
