"""The help: the short one fits a screen and says of options what their definitions say. And what --quiet leaves."""

from __future__ import annotations

import re
import shlex

import pytest
import tyro
from test_what_to_type import loaded

from mind.cli import main
from mind.cli.brief import BRIEFS, COLUMNS, GENERAL, brief
from mind.cli.commands import COMMANDS, resolved, usage
from mind.config import MindConfig
from mind.progress import Progress, quiet, tell

LINES = 40


@pytest.fixture
def described(monkeypatch, capsys):
    """The options of a command -> what is said of them in full, in one line each."""
    monkeypatch.setenv("COLUMNS", "100")

    def described(command: str) -> dict[str, str]:
        with pytest.raises(SystemExit) as end:
            main([*command.split(), "--help-all"])
        assert end.value.code == 0
        found, name = {}, ""
        for line in capsys.readouterr().out.splitlines():
            if begins := re.match(r"(?:│ |  )(-[^ ,]*|[A-Z]+|\{.*?\})(?=[ ,])", line):
                name = begins[1]
            found[name] = f"{found.get(name, '')} {line.strip('│ ')}"
        return found

    return described


def test_every_command_has_a_short_help_of_a_screen():
    assert list(BRIEFS) and set(BRIEFS) == set(COMMANDS)
    for text in (usage(), usage("data"), *map(brief, BRIEFS)):
        lines = text.splitlines()
        assert len(lines) <= LINES and max(map(len, lines)) <= COLUMNS, text


@pytest.mark.parametrize("command", [name for name, command in COMMANDS.items() if command.options])
def test_the_short_help_says_what_the_options_are(command, described):
    full = described(command)
    for option, text in BRIEFS[command].options.items():
        name = option.split()[0]
        name = "{bash,zsh,fish}" if name == "SHELL" else name
        assert name in full, f"{command} has no {name}"
        its = re.findall(r"\((default: .*|required|repeatable)\)", full[name])
        told = re.search(r"\(default (.*)\)$", text)
        if name.startswith("-"):
            assert ("(required)" in text) == (its == ["required"]), (command, name)
        assert not told or its == [f"default: {told[1]}"], (command, name)


def commands_of(example: str) -> list[list[str]]:
    line = example.replace("\\\n", " ")
    return [] if line.startswith("#") else [shlex.split(line)]


def test_every_example_can_be_typed():
    found = [words for one in BRIEFS.values() for example in one.examples for words in commands_of(example)]
    lines = re.findall(r"^  (mind .*)", usage().partition("examples:")[2], re.M)
    found += [shlex.split(line, comments=True) for line in lines]
    assert len(found) >= 25
    for program, *words in found:
        if program != "mind":
            assert (
                words[:3] == ["-m", "mind_kernels", "check"] or words == ["mind completion bash"] or program == "eval"
            )
            continue
        name = next(name for name in COMMANDS if words[: len(name.split())] == name.split())
        command, rest = COMMANDS[name], words[len(name.split()) :]
        rest = rest[: rest.index(">")] if ">" in rest else rest
        if command.options is None:
            assert not rest
        else:
            default = resolved(command.defaults)(rest if "--resume" not in rest else []) if command.defaults else None
            tyro.cli(resolved(command.options), args=rest, default=default or tyro.MISSING_NONPROP)


def test_the_short_help_loads_next_to_nothing(capsys):
    helps = ["--help", "--version", "help", "data", *(f"{name} --help" for name in COMMANDS)]
    assert loaded(helps, "tyro") == [] and loaded(["doctor --help", "train -h"], "numpy") == []
    assert loaded(["train --help-all", "evaluate --help-all"], "torch") == []
    assert main(["evaluate", "-h"]) == 0
    assert capsys.readouterr().out == brief("evaluate") + "\n"


def test_the_help_of_a_method_shows_its_options(capsys):
    assert main(["train", "--method", "redi", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(brief("train")) and "--output" not in shown[len(brief("train")) :]
    assert "--options.gamma" in shown and "--stages.sft.learning-rate" in shown
    assert main(["train", "--method=mind-uniform", "-h"]) == 0
    assert "has no options of its own" in capsys.readouterr().out
    assert main(["train", "--method", "rdei", "--help"]) == 2
    assert capsys.readouterr().err.endswith("; perhaps you meant redi\n")


def test_a_group_or_nothing_shows_the_commands_and_fails(capsys):
    for words in ([], ["data"], ["--quiet"]):
        assert main(words) == 2
        assert capsys.readouterr().out.startswith("usage: mind")
    assert main(["--help-all"]) == 0


def test_quiet_leaves_results_warnings_and_errors(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["data", "word-problems", "--count", "2", "--output"]
    assert main([*words, "loud.jsonl"]) == 0 and "next: " in capsys.readouterr().out
    assert main(["-q", *words, "a.jsonl"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "a.jsonl: 2 questions\n" and captured.err == ""
    assert main([*words, "b.jsonl", "--count", "1", "--quiet"]) == 0
    assert "--count is given 2 times" in capsys.readouterr().err
    assert main(["train", "--method", "mnid", "--quiet"]) == 2
    assert re.fullmatch(r"mind: error: method is 'mnid': .*; perhaps you meant mind\n", capsys.readouterr().err)
    assert quiet()
    with Progress("texts", 2, "text") as bar:
        bar.update(1)
    tell("a line")
    assert capsys.readouterr().err == ""
    tell("3 of 4 questions are used", of_results=True)
    assert capsys.readouterr().err == "3 of 4 questions are used\n"
    main(["--version"])
    assert not quiet()


@pytest.mark.parametrize("word", ["-q", "--quiet", "-h", "--help", "--help-all"])
@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("train --output", "--output"),
        ("-q train --config", "--config"),
        ("evaluate --evaluation.last-line", "--evaluation.last-line"),
        ("evaluate --evaluation.last_line", "--evaluation.last_line"),
        ("judge --price", "--price"),
        ("data -q generate --teacher.model", "--teacher.model"),
        ("experiment plan.json --set", "--set"),
    ],
)
def test_a_general_option_is_not_taken_from_the_place_of_a_value(words, option, word, capsys):
    assert main([*words.split(), word, "given"]) == 2
    expected = f"{option} is followed by {word}: expected a value; if {word} is the value, write {option}={word}"
    assert capsys.readouterr() == ("", f"mind: error: {expected}\n")


def test_a_general_option_may_follow_a_switch_or_a_value(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in ("--output a.jsonl --overwrite -q", "--output b.jsonl -q --no-overwrite", "-q -q --output c.jsonl"):
        assert main(["data", "word-problems", *words.split()]) == 0
        assert quiet() and "next" not in capsys.readouterr().out
    assert {file.name for file in tmp_path.iterdir()} >= {"a.jsonl", "b.jsonl", "c.jsonl"}
    assert main(["data", "word-problems", "--output=-q"]) == 2 and not quiet()
    assert capsys.readouterr().err.startswith("mind: error: --output -q: expected a name that ends in .jsonl")
    for words in ("train --resume --help", "train --output a --help", "train -q --help", "train --help -q"):
        assert main(words.split()) == 0
        assert capsys.readouterr() == (brief("train") + "\n", "")


@pytest.mark.parametrize("words", ["--help-all --help", "--help --help-all", "--help-all --help-all", "-h --help-all"])
def test_help_that_is_asked_for_twice_is_no_complaint(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(["report", *words.split()])
    captured = capsys.readouterr()
    assert end.value.code == 0 and captured.err == "" and "Folder that `mind train --output` named" in captured.out


@pytest.mark.parametrize("option", GENERAL)
def test_general_options_are_those_of_no_command(option, described):
    """They are read before a command reads its own."""
    for name, command in COMMANDS.items():
        if command.options is not None:
            assert option not in described(name), name


def test_the_first_command_line_of_a_run_is_the_default():
    assert f"(default {MindConfig().output})" in brief("train")
