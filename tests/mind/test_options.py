"""A wrong option is told in one line, like every other error, with the option that was meant."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
import tyro

from mind.cli import main
from mind.cli.commands import COMMANDS, resolved
from mind.cli.options import options_of


@pytest.mark.parametrize(
    "words, told",
    [
        ("train --metod sft", "unknown option --metod; perhaps you meant --method"),
        ("train --epochs=3", "unknown option --epochs; perhaps you meant --train.epochs"),
        ("train --learning_rate 3", "unknown option --learning_rate; perhaps you meant --metanet.learning-rate, "
                                    "--train.learning-rate"),
        ("train --xyzzy", "unknown option --xyzzy"),
        ("train -o x", "unknown option -o"),
        ("train --no-resume", "unknown option --no-resume; perhaps you meant --resume"),
        ("judge x --price 1 2 --bugdet.tokens 3", "unknown option --bugdet.tokens; perhaps you meant --budget.tokens"),
        ("train --train.learning-rate abc", "--train.learning-rate is abc: expected a number or None"),
        ("train --train.max_steps=1.5", "--train.max_steps is 1.5: expected a whole number"),
        ("train --student.dtype flaot32", "--student.dtype is flaot32: expected float32 or bfloat16; perhaps you meant "
                                          "float32"),
        ("train --data.generated-levels one-step x", "--data.generated-levels is x: expected one-step, two-step or "
                                                     "multi-step"),
        ("evaluate --evaluation.batch-size x", "--evaluation.batch-size is x: expected auto or a whole number"),
        ("completion tcsh", "SHELL is tcsh: expected bash, zsh or fish"),
        ("train --output --train.seed 1", "--output has no value: expected a value"),
        ("evaluate --overwrite True", "unexpected word True after --overwrite, which takes no value"),
        ("report a b", "unexpected word b"),
        ("filter x --output y.jsonl --pass-rate 1", "--pass-rate has 1 value: expected 2"),
        ("filter x --output y.jsonl --variation 0.5 y", "--variation is y: expected a number"),
        ("filter", "FOLDER and --output are missing"),
        ("latent a b", "--questions is missing"),
        ("filter x --output y --scripts a b c", "--scripts is b: expected a number"),
        ("filter x --output y --scripts a 0.5", "--scripts is a 0.5: expected a name and 2 numbers for each entry"),
        ("filter x --output y --scripts 0.1 0.5", "--scripts is 0.1 0.5: expected a name and 2 numbers for each entry"),
        ("filter x --output y --scripts a 0,5 1", "--scripts is 0,5: expected a number"),
        ("filter x --output y --scripts a 0 1 b 0 1 2",
         "--scripts is a 0 1 b 0 1 2: expected a name and 2 numbers for each entry"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line_that_names_what_was_meant(words, told, capsys):
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    name = {"judge": "data judge", "filter": "data filter"}.get(words.split()[0], words.split()[0])
    assert captured.out == ""
    assert captured.err == f"mind: error: {told}; `mind {name} --help-all` lists all options\n"


@pytest.mark.parametrize(
    "words, told",
    [
        ("--method sft --options.l1 3", "--options.l1 is no option of method sft; --method names another: mode-cotd"),
        ("--options.top=5", "--options.top is no option of method mind; --method names another: kd, taid"),
        ("--method mind-table --options.max-drop 1",
         "--options.max-drop is no option of method mind-table; --method names another: redi"),
        ("--method redi --options.max-dorp 1", "unknown option --options.max-dorp; perhaps you meant "
                                               "--options.max-drop; `mind train --help-all` lists all options"),
    ],
)  # fmt: skip
def test_an_option_of_another_method_is_told_with_the_method(words, told, tmp_path, capsys):
    assert main(["train", "--output", str(tmp_path / "run"), *words.split()]) == 2
    assert capsys.readouterr().err.removeprefix("mind: loading PyTorch ...\n") == f"mind: error: {told}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.options])
@pytest.mark.filterwarnings("ignore:get_parser")
def test_the_options_that_are_known_are_those_of_the_parser(name):
    command = COMMANDS[name]
    assert command.options is not None
    for more in ([], ["--method", "redi"], ["--method", "nesycd"]) if name == "train" else ([],):
        default = tyro.MISSING_NONPROP if command.defaults is None else resolved(command.defaults)([*more, "--help"])
        parser = tyro.extras.get_parser(resolved(command.options), default=default)
        known = options_of(resolved(command.options), default if dataclasses.is_dataclass(default) else None)
        actions = {option: action for action in parser._actions for option in action.option_strings}
        actions = {option: action for option, action in actions.items() if option not in ("-h", "--help", "--stages")}
        assert {option for option in known if option.startswith("-")} == actions.keys()
        assert {option for option in actions if known[option].required} == {o for o, a in actions.items() if a.required}
        for option, action in actions.items():
            assert known[option].is_flag == (action.nargs == 0), option
            assert set(known[option].choices) <= set(action.choices or known[option].choices), option
            assert known[option].takes == action.nargs or action.nargs == "*" and known[option].takes > 1, option


def test_of_several_processes_one_tells_of_a_wrong_option(tmp_path):
    """The others end with the status of bad input, and none waits for another."""
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mind", "train", "--metod", "sft"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MIND_PROCESS_TIMEOUT": "60"}
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, env=environment)
    assert ended.returncode != 0 and ended.stderr.count("unknown option --metod; perhaps you meant --method") == 1
