"""The command line says what to type: after a stop, for a word that it does not know, and by the tab key."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sample_experiment import write_experiment
from test_terminal import A_RUN, ROOT, raising
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mind.cli import commands, completion, main
from mind.cli.commands import COMMANDS, resolved
from mind.cli.options import options_of
from mind.cli.terminal import command_line
from mind.config import MindConfig
from mind.latent.store import Store
from mind.methods import METHODS, PRESETS
from mind.run.schedule import rate_factors
from mind_kernels.backend import BACKENDS

GENERATE = ["generate", "--output", "my set", "--questions.path", "q.jsonl", "--teacher.model", "m"]


def test_ctrl_c_says_what_to_type(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    Path("set").mkdir()
    Path("set/responses.jsonl").touch()
    cases = [
        (GENERATE, "mind.teacher.generate.ask_teacher", f"to go on: {command_line('data', *GENERATE)}"),
        (["judge", "set"], "mind.teacher.judge.judge", "to go on: mind data judge set"),
        (["grade", "a", "--output", "b"], "mind.grading.grade.grade_file", "to start again: mind grade a --output b"),
        (arguments, "mind.run.train.train", f"to go on: {command_line(*arguments)}"),
    ]
    for words, function, remedy in cases:
        monkeypatch.setattr(function, raising(KeyboardInterrupt()))
        assert main(words) == 130
        assert capsys.readouterr().err.splitlines()[-1] == f"mind: interrupted; {remedy}"
    run = tmp_path / "run"  # the run has begun: its folder says the rest

    def begun(*_, **__):
        run.mkdir()
        (run / "config.json").write_text(A_RUN)
        raise KeyboardInterrupt

    monkeypatch.setattr("mind.run.train.train", begun)
    assert main(arguments) == 130
    remedy = f"to go on: {command_line('train', '--output', str(run), '--resume')}"
    start = "no step is saved yet, so --resume starts from the beginning"
    assert capsys.readouterr().err.splitlines()[-1] == f"mind: interrupted; {start}; {remedy}"


def test_ctrl_c_says_from_where_a_job_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one = '{"id": "a"}\n'
    Path("my set").mkdir()
    Path("my set/responses.jsonl").write_text(one * 1200 + one[:5])  # a kill cut the last line short
    Path("my set/judge-replies.jsonl").write_text(one)
    expert = tmp_path / "expert"
    expert.mkdir()
    (expert / "config.json").write_text(A_RUN)
    states = Store(Path("states"))
    states.file.parent.mkdir()
    for student in ("expert-0-0", "base"):
        states.put(student, "of a run", {"own": np.zeros(2)})
    folder = write_experiment(tmp_path / "experiment", {"base": 0, "mind": 1, "sbs": 0}, seeds=(0, 1))
    cases = {
        "mind.teacher.generate.ask_teacher": (GENERATE, "1,200 answers are stored and not asked for again; to go on: "),
        "mind.teacher.judge.judge": (["judge", "my set"], "1 judgement is stored and not asked for again; to go on: "),
        "mind.experiment.runner.prepare": (
            ["experiment", "plan.json", "--output", str(folder)],
            "5 of 11 jobs are done, and unfinished runs go on from their last saved step; to go on: ",
        ),
        "mind.latent.analyze.analyze": (
            ["latent", str(expert), "--questions", "q.jsonl", "--output", "states"],
            "2 results of students are stored and not computed again; to go on: ",
        ),
    }
    for function, (words, told) in cases.items():
        monkeypatch.setattr(function, raising(KeyboardInterrupt()))
        assert main(words) == 130
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"mind: interrupted; {told}mind "), function

    def second_student(*_):
        Path("results.json").write_text('{"students": {"a": {}}}')
        raise KeyboardInterrupt

    monkeypatch.setattr("mind.data.questions.load_questions", second_student)
    assert main(["evaluate", "--students", "a", "b", "--files", "x", "--output", "results.json"]) == 130
    told = "results.json holds the results of 1 student, which --overwrite would replace; to start again: mind evaluate"
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"mind: interrupted; {told}")


def test_ctrl_c_before_a_run_is_written_over_does_not_go_on_with_it(tmp_path, monkeypatch, capsys, arguments):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(A_RUN)
    monkeypatch.setattr("mind.run.train.train", raising(KeyboardInterrupt()))
    assert main([*arguments, "--overwrite"]) == 130
    remedy = f"to go on: {command_line(*arguments, '--overwrite')}"
    assert capsys.readouterr().err.splitlines()[-1] == f"mind: interrupted; {remedy}"


def test_a_job_that_is_not_complete_says_what_to_type(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_text('{"id": "a", "question": "1 + 1?", "answer": "2"}\n')
    words = [*GENERATE, "--teacher.base-url", "http://127.0.0.1:9/v1", "--traffic.first-wait-seconds", "60"]
    began = time.monotonic()
    assert main(words) == 1 and time.monotonic() - began < 20  # a server that is not there is not waited for
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-2].startswith("stopped: ") and "│" not in captured.out
    assert "connection refused: " in captured.out and "or name another by --teacher.base-url" in captured.out
    assert captured.out.splitlines()[-1] == f"to go on once that is mended: {command_line('data', *words)}"
    assert "next:" not in captured.out


def test_a_full_disk_says_what_to_type(monkeypatch, capsys):
    monkeypatch.setattr("mind.teacher.generate.ask_teacher", raising(OSError(28, "No space left on device", "f")))
    assert main(GENERATE) == 2
    remedy = f"when there is room, to go on: {command_line('data', *GENERATE)}"
    assert capsys.readouterr().err == f"mind: error: f: No space left on device; {remedy}\n"


def test_a_folder_in_a_suggested_command_is_quoted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = Path("it's my set")
    folder.mkdir()
    (folder / "questions.jsonl").write_text('{"id": "a", "question": "1 + 1?", "answer": "2"}\n')
    (folder / "responses.jsonl").touch()
    assert main(["filter", str(folder), "--output", "x.jsonl"]) == 2
    command = re.search("run `(.*)` first", capsys.readouterr().err)[1]
    assert shlex.split(command) == ["mind", "data", "judge", str(folder)]


@pytest.mark.parametrize(
    "called, shown",
    [
        ("/usr/bin/mind", "/usr/bin/mind"),
        (".venv/bin/mind", ".venv/bin/mind"),
        ("/x/mind/__main__.py", f"{Path(sys.executable).name} -m mind"),
        ("/usr/bin/pytest", "mind"),
    ],
)
def test_what_to_type_is_how_it_was_called(called, shown, monkeypatch):
    monkeypatch.setattr(sys, "argv", [called])
    monkeypatch.setenv("PATH", "/nowhere")
    assert command_line("judge", "my set") == f"{shown} judge 'my set'"


@pytest.mark.parametrize(
    "words, meant",
    [
        ("trian --output x", "train"),
        ("Train", "train"),
        ("evalute --files x", "evaluate"),
        ("genrate", "generate"),
        ("data genrate --output x", "data generate"),
        ("data trian", "train"),
        ("dta judge x", "data judge"),
        ("word-problems", "data word-problems"),
        ("data words", "data word-problems"),
        ("reprot runs/mine", "report"),
        ("data filtre", "data filter"),
        ("completions", "completion"),
        ("xyzzy", None),
        ("data xyzzy", None),
        ("--output x train", None),
        ("data --output x", None),
    ],
)
def test_an_unknown_command_is_told_with_what_was_meant(words, meant, capsys):
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    suggestion = f"perhaps you meant `mind {meant}`" if meant else "lists the commands"
    assert captured.out == "" and captured.err.count("\n") == 1
    assert suggestion in captured.err and ("perhaps" in captured.err) == bool(meant)


@pytest.mark.parametrize(
    "words, meant",
    [
        ("train --method mdin", "mind"),
        ("train --method mind-unifrom", "mind-uniform"),
        ("train --train.lr-scheduler cosin", "cosine"),
        ("train --data.train quetsions.jsonl", "questions.jsonl"),
        ("train --data.train questions.jsonl --data.perspectives Socratic planing", "Socratic"),
        ("data check sub/questons.jsonl", "sub/questions.jsonl"),
        ("generate --output x --questions.path questions.jsonl --teacher.model m --perspectives planing", "planning"),
        ("data word-problems --output x.jsonl --perspectives analgy", "analogy"),
        ("experiment word-problms --output x", "word-problems"),
        ("experiment plna.json --output x", "plan.json"),
        ("compare sbu", "sub"),
        ("train --method xyzzy", None),
        ("data check xyzzy", None),
    ],
)
def test_an_unknown_name_is_told_with_what_was_meant(words, meant, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "plan.json").write_text("{}")
    row = '{"id": "a", "question": "1 + 1?", "answer": "2", "rationales": [{"perspective": "socratic", "text": "?"}]}'
    for folder in (tmp_path, tmp_path / "sub"):
        (folder / "questions.jsonl").write_text(row)
    assert main(words.split()) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("mind: error: ")
    assert (f"; perhaps you meant {meant}" in message) if meant else ("perhaps" not in message)


@pytest.mark.parametrize(
    "words, named",
    [
        ("train --output=", "--output"),
        ("train --config=", "--config"),
        ("data check q.jsonl --limit ''", "--limit"),
        ("evaluate --files q.jsonl ' '", "--files"),
        ("generate --questions.path '' --teacher.model m", "--questions.path"),
        ("grade '' --output x", "a word of the command"),
        ("report ''", "a word of the command"),
        ("judge ''", "a word of the command"),
    ],
)
def test_an_empty_value_is_not_the_current_folder(words, named, capsys):
    assert main(shlex.split(words)) == 2
    assert capsys.readouterr().err == f"mind: error: {named} is empty: expected a value\n"


def test_an_option_that_comes_again_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "data word-problems --output w.jsonl --count 3 --levels one-step --levels=two-step --count=2 --seed -1"
    assert main(words.split()) == 0
    told = re.findall(r"^mind: (--.*times.*)$", capsys.readouterr().err, re.M)
    assert told == [
        "--count is given 2 times: only the last counts",
        "--levels is given 2 times: only the values after the last one count; give all values after one --levels",
    ]
    assert len(Path("w.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("command", "option", "several"),
    [
        ("train", "data.perspectives", True),
        ("train", "student.lora_targets", True),
        ("train", "train.seed", False),
        ("train", "student.model", False),
        ("train", "options.anything", False),
        ("evaluate", "files", True),
        ("evaluate", "students", True),
        ("evaluate", "samples", False),  # of a dataclass whose name the option leaves out
        ("data generate", "prices", True),
        ("data generate", "teacher.model", False),
    ],
)
def test_which_options_take_several_values(command, option, several):
    known = options_of(commands.resolved(COMMANDS[command].options)).get(f"--{option.replace('_', '-')}")
    assert (known is not None and known.takes > 1) is several


@pytest.mark.parametrize(("here", "shown"), [("4", "--nproc-per-node 4"), ("2", "..."), (None, "...")])
def test_what_to_type_in_a_launch_is_that_of_one_machine_or_left_open(here, shown, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if here is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert command_line("train", "--resume") == f"torchrun {shown} -m mind train --resume"


def test_the_version_is_told_without_loading_anything(capsys):
    for option in ("--version", "-V", "version"):
        assert main([option]) == 0
        assert re.fullmatch(r"mind \S.*, Python 3\S+, torch \d\S+, transformers \d\S+\n", capsys.readouterr().out)
    assert loaded(["--version", "--help", "trian", "data help"], "tyro") == []


def loaded(commands, package, **options):
    """Those of the commands, in a process that starts with nothing, by whose end the package is loaded."""
    program = (
        "import sys\nfrom mind.cli import main\n"
        "for words in sys.argv[2:]:\n"
        "    try: main(words.split())\n"
        "    except SystemExit: pass\n"
        "    if sys.argv[1] in sys.modules: print('loaded', words, file=sys.stderr)\n"
    )
    options = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "capture_output": True} | options
    ended = subprocess.run([sys.executable, "-c", program, package, *commands], text=True, **options)
    assert ended.returncode == 0 and "Traceback" not in ended.stderr
    return [line for line in ended.stderr.splitlines() if line.startswith("loaded ")]


def test_what_is_wrong_with_the_input_is_told_before_torch_is_loaded(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    (tmp_path / "q.jsonl").write_text('{"id": "a", "question": "1 + 1?", "answer": "2"}\n')
    commands = [
        "train --data.train none.jsonl",
        "train --student.model ./none",
        "train --output taken",
        "train --help",
        "train --train.max-steps -5",
        "evaluate --files none.jsonl",
        "evaluate --files q.jsonl --student.model no/such/folder",
        "report none",
        "filter none --output x.jsonl",
        "judge none",
        "grade none --output x.jsonl",
        "train --resume --output none",
    ]
    assert loaded(commands, "torch", cwd=tmp_path) == []


def test_the_help_of_train_names_its_own_options_and_the_methods(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    shown = capsys.readouterr().out
    assert "--resume" in shown and "--config FILE" in shown and "--no-resume" not in shown
    assert all(f'"{name}"' in shown for name in METHODS)


COMPLETE = """
mind() { :; }
eval "$script"
declare -F _tyro_mind > /dev/null
try() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _tyro_mind
    echo "${COMPREPLY[*]}"
}
"""


def test_bash_completes_commands_options_and_values(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    asked = {
        "mind tr": "train",
        "mind data gen": "generate",
        "mind train --student.mod": "--student.model",
        "mind train --train.share-prompts ": "auto always never",
        "mind data judge --mod": "--model",
        "mind generate --teacher.en": "--teacher.engine --teacher.engine-options",
        "mind train --method mind-un": "mind-uniform",
        "mind train --method s": "sbs sft single",
        "mind train --output x --train.lr-scheduler con": "constant constant_with_warmup",
        "mind train --data.perspectives socratic c": "contrastive counterfactual",
        "mind generate --perspectives pl": "planning",
        "mind train --student.att": "--student.attention",  # whose description has several lines
        "mind train --qui": "--quiet",
        "mind doct": "doctor",
        "mind doctor --qui": "--quiet",
        "mind experiment w": "word-problems",
        "mind experiment --output x p": "paper",
        "mind experiment paper --se": "--set",
        "mind data word-problems --output x --families ood sh": "shares sharing shopping",
        "mind help comp": "compare completion",
        "mind completion z": "zsh",
        "mind help data word-": "word-problems",
        "mind ": None,
    }
    lines = "".join(f"try {' '.join(words.split(' ')[:-1])} '{words.split(' ')[-1]}'\n" for words in asked)
    shell = subprocess.run(["bash", "-c", COMPLETE + lines], env=os.environ | {"script": script}, capture_output=True)
    *completed, everything = shell.stdout.decode().splitlines()
    assert completed == [words for words in asked.values() if words], shell.stderr
    assert {name.split()[0] for name in COMMANDS} | {"help"} <= set(everything.split())
    assert "complete -o default -F _tyro_mind mind" in script


def test_the_values_to_complete_are_those_that_there_are():
    assert set(completion.METHODS) == METHODS.keys() and set(completion.VALUES["--method"]) == {*METHODS, *PRESETS}
    assert set(completion.VALUES["--objective.backend"]) == {"auto", *BACKENDS}
    config = MindConfig()
    for name in completion.VALUES["--train.lr-scheduler"]:
        rate_factors(dataclasses.replace(config.train, lr_scheduler=name), 10)
    attentions = ALL_ATTENTION_FUNCTIONS.valid_keys()
    assert set(completion.VALUES["--student.attention"]) - {"auto", "eager", "sdpa_spans"} <= set(attentions)
    for name in completion.VALUES["--metanet.feedback"]:
        dataclasses.replace(config.metanet, feedback=name)
    options = {
        flag for command in COMMANDS.values() if command.options for flag in options_of(resolved(command.options))
    }
    assert completion.VALUES.keys() <= options


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script(shell, capsys):
    assert main(["completion", shell]) == 0
    shown = capsys.readouterr().out
    assert "mind-uniform" in shown and "--student.model" in shown and "share-prompts" in shown
