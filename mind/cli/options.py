"""Reads the options of a command by tyro, and says in one line what is wrong with them."""

from __future__ import annotations

import dataclasses
import io
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mind import processes
from mind.cli.launch import LaunchEnded
from mind.cli.terminal import command_line
from mind.display import listed, meant, number_of, one_line
from mind.errors import MindError

_NUMBERS = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Option:
    """An option, or an argument without a name, of a command."""

    kinds: tuple[Any, ...]
    """The types of which its value has one."""
    required: bool = False

    @property
    def is_flag(self) -> bool:
        """Whether it takes no value."""
        return self.kinds == (bool,)

    @property
    def takes(self) -> float:
        """How many values it takes, at most."""
        if self.is_flag:
            return 0
        if self.places:
            return len(self.places)
        return math.inf if any((get_origin(kind) or kind) in (tuple, list, dict) for kind in self.kinds) else 1

    @property
    def places(self) -> tuple[Any, ...]:
        """The types of its values, if it takes a certain number of them."""
        tuples = [get_args(kind) for kind in self.kinds if get_origin(kind) is tuple]
        return next((kinds for kinds in tuples if Ellipsis not in kinds), ())

    @property
    def entry(self) -> tuple[Any, ...]:
        """The types of the words of one entry, a name and what it stands for, if it takes any number of entries."""
        pairs = [get_args(kind) for kind in self.kinds if get_origin(kind) is dict]
        return next(((name, *(get_args(value) or (value,))) for name, value in pairs), ())

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it may have, if these are few."""
        return tuple(str(choice) for kind in self.kinds if get_origin(kind) is Literal for choice in get_args(kind))


def parsed(name: str, kind: Any, words: Sequence[str], default: Any) -> Any:
    """The options of command `name`, whose dataclass is `kind`; `default` has their defaults.

    Raises MindError for words that they do not fit, and SystemExit after printing the help that the words ask for.
    """
    import tyro

    error = io.StringIO()
    try:
        with redirect_stderr(error):
            return tyro.cli(
                kind,
                prog=f"mind {name}",
                args=list(words),
                default=default,
                console_outputs="--help" not in words or processes.speaks(),
            )
    except SystemExit as end:
        if not end.code or isinstance(end, LaunchEnded):
            raise
        given = default if dataclasses.is_dataclass(default) else None
        wrong = next(_wrong(words, options_of(kind, given)), None) or _of_parser(error.getvalue())
        error = io.StringIO()
        raise MindError(f"{wrong}; `{command_line(*name.split(), '--help-all')}` lists all options") from None
    finally:
        sys.stderr.write(error.getvalue())  # what else was said, such as a warning


def options_of(kind: Any, default: Any = None, prefix: str = "") -> dict[str, Option]:
    """The options of a dataclass by name ("--data.train"), and its arguments without a name ("FOLDER").

    `default`, an instance, tells the options of a training method, which its type does not.
    """
    import tyro

    found: dict[str, Option] = {}
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        plain, marks = _unwrapped(hints[field.name])
        value = _default(field) if default is None else getattr(default, field.name)
        named = next((mark.name for mark in marks if getattr(mark, "name", None) is not None), field.name)
        name = prefix + named.replace("_", "-")
        if tyro.conf.UseAppendAction in marks:  # one value each time that it is given
            plain = get_args(plain)[0]
        kinds = get_args(plain) if get_origin(plain) in (Union, UnionType) else (plain,)
        within = type(value) if dataclasses.is_dataclass(value) else next(filter(dataclasses.is_dataclass, kinds), None)
        if within is not None:
            inner = f"{name}." if named and tyro.conf.OmitArgPrefixes not in marks else prefix
            found |= options_of(within, value if dataclasses.is_dataclass(value) else None, inner)
        elif isinstance(value, dict) and value:
            for key, entry in value.items():
                found |= options_of(type(entry), entry, f"{name}.{key}.") if dataclasses.is_dataclass(entry) else {}
        elif not (get_origin(plain) is dict and dataclasses.is_dataclass(get_args(plain)[1])):
            option = Option(kinds, value is dataclasses.MISSING)
            shown = next((mark.metavar for mark in marks if getattr(mark, "metavar", None)), named.upper()).split()[0]
            found[shown if tyro.conf.Positional in marks else f"--{name}"] = option
            if option.is_flag and tyro.conf.FlagCreatePairsOff not in marks:
                found[f"--{prefix}no-{named.replace('_', '-')}"] = option
    return found


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type, and the marks with which it is annotated."""
    if get_origin(hint) is not Annotated:
        return hint, ()
    return hint.__origin__, hint.__metadata__


def known_option(known: Mapping[str, Option], word: str) -> Option | None:
    """The option that `word` names; tyro takes "_" for "-"."""
    return known.get(word.replace("_", "-"))


def _wrong(words: Sequence[str], known: Mapping[str, Option]) -> Iterator[str]:
    """What is wrong with the words of a command line, as far as the types of the options tell."""
    groups = _by_option(words)
    for word, _ in groups:
        if word and known_option(known, word) is None:
            yield f"unknown option {word}{_nearest(word, known)}"
    arguments = [(name, option) for name, option in known.items() if not name.startswith("-")]
    places, loose = sum(option.takes for _, option in arguments), list[str]()
    for word, values in groups:
        option = known_option(known, word)
        taken = 0 if option is None else int(min(option.takes, len(values)))
        yield from _wrong_values(word, option, values[:taken])
        loose += values[taken:]
        if len(loose) > places:
            after = f" after {word}, which takes no value" if option and option.is_flag else ""
            yield f"unexpected word {loose[int(places)]}{after}"
    for (name, option), value in zip(arguments, loose, strict=False):
        yield from _wrong_values(name, option, [value])
    given = {word.replace("_", "-") for word, _ in groups}
    missing = [name for name, option in arguments[len(loose) :] if option.required]
    missing += [
        name for name, option in known.items() if name.startswith("-") and option.required and name not in given
    ]
    if missing:
        yield f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing"


def _by_option(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each option with the words after it; those before the first option come under ""."""
    groups: list[tuple[str, list[str]]] = [("", [])]
    for word in words:
        if re.match("--|-[A-Za-z]", word):
            option, assigned, value = word.partition("=")
            groups.append((option, [value] if assigned else []))
        else:
            groups[-1][1].append(word)
    return groups


def _wrong_values(name: str, option: Option | None, values: Sequence[str]) -> Iterator[str]:
    if option is None or option.is_flag:
        return
    if option.places and values != ["None"]:
        if len(values) < len(option.places):
            yield f"{name} has {number_of(len(values), 'value')}: expected {len(option.places)}"
        entries = [(kind,) for kind in option.places]
    elif option.entry:
        count = len(option.entry)
        if len(values) % count:
            shown = one_line(" ".join(values), 100)
            yield f"{name} is {shown}: expected a name and {number_of(count - 1, 'number')} for each entry"
        entries = [(kind,) for kind in option.entry] * (len(values) // count)
    else:
        if not values and option.takes == 1:
            yield f"{name} has no value: expected {_expected(option.kinds)}"
        entries = [[_entry(kind) for kind in option.kinds]] * len(values)
    for value, kinds in zip(values, entries, strict=False):
        if not any(_fits(value, kind) for kind in kinds):
            near = meant(value, Option(tuple(kinds)).choices)
            yield f"{name} is {one_line(value, 100)}: expected {_expected(kinds)}{near}"


def _entry(kind: Any) -> Any:
    """The type of the values in a list of this type, which is str if only the parser knows it; the type itself if it is
    no list."""
    if (get_origin(kind) or kind) not in (tuple, list, dict):
        return kind
    arguments = get_args(kind)
    return arguments[0] if arguments[1:] in ((), (Ellipsis,)) else str


def _fits(value: str, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in map(str, get_args(kind))
    if kind is NoneType:
        return value == "None"
    if kind in _NUMBERS:
        try:
            kind(value)
        except ValueError:
            return False
    return True


def _expected(kinds: Sequence[Any]) -> str:
    told = [choice for kind in kinds for choice in (get_args(kind) if get_origin(kind) is Literal else [])]
    told += [
        _NUMBERS.get(kind, "a value") for kind in kinds if kind is not NoneType and get_origin(kind) is not Literal
    ]
    told += ["None"] * (NoneType in kinds)
    *first, last = dict.fromkeys(told)
    return f"{', '.join(first)} or {last}" if first else last


def _nearest(word: str, known: Mapping[str, Option]) -> str:
    """A suggestion: the options of this name in groups ("--train.epochs" for "--epochs"), or else the most similar
    one."""
    names = [name for name in known if name.startswith("--")]
    grouped = [name for name in names if name.endswith(f".{word.lstrip('-').replace('_', '-')}")]
    return f"; perhaps you meant {listed(grouped)}" if grouped else meant(word, names)


def _of_parser(text: str) -> str:
    """The first paragraph in the box that tyro prints, after its title, as one line. Without Unicode a box has rules of
    "-" alone."""
    said: list[str] = []
    for line in text.splitlines()[1:]:
        inside = line.strip("│ ")
        if inside.strip("─-╰╯ "):
            said.append(inside)
        elif said:
            break
    return one_line(" ".join(said), 300) or "the options cannot be read"
