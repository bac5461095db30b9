"""The command line as a whole: `--help` of each command, the flags in the documents, and a data set up to a student."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import pytest
import tyro
from fault_proxy import FaultProxy, chat_answer

from mind.cli import SPINS, main
from mind.cli.brief import GENERAL
from mind.cli.commands import COMMANDS, HELP, SHORT, usage
from mind.cli.dataset import Filter
from mind.data.questions import load_questions, save_questions
from mind.errors import MindError
from mind.perspectives import PAPER_PERSPECTIVES, PERSPECTIVES
from mind.records import Question
from mind.run.data import load_data
from tests.docs_pages import PAGES
from tests.test_docs_pages import MINE as CHECKED_PAGES

ROOT = Path(__file__).resolve().parents[2]
OTHER_PAGES = sorted({str(page.relative_to(ROOT)) for page in PAGES if page not in CHECKED_PAGES})
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "Makefile", *OTHER_PAGES)
"""Those that tests/test_docs_pages.py does not parse command by command."""
OTHER_TOOLS = {
    "--fewer-cases",
    "--no-deps",
    "--no-build-isolation",
    "--config-settings",
    "--inplace",
    "--benchmark-enable",
}
OTHER_TOOLS |= {"--benchmark-only", "--nproc-per-node", "--nnodes", "--rdzv-id", "--rdzv-endpoint", "--rdzv-backend"}
OTHER_TOOLS |= {"--job-name", "--nodes", "--ntasks-per-node", "--cpus-per-task", "--gpus-per-node", "--help", "--dry"}
OTHER_TOOLS |= {"--exclude"}
"""Flags of pip, setup.py, pytest, torchrun, Slurm, bench/on_gpu.sh and auditwheel."""
OTHER_PROGRAMS = ("mind_kernels/commands", "bench", "build_tools", "tests")
"""Where the other programs of the repository are, whose parsers name their flags."""
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")
MAKE = {"$(BIN)/mind": "mind", "$(DEMO_OUTPUT)": "--output FOLDER", "$(DEMO)": "", "$(ARGS)": ""}


NAMES = {tuple(name.split()): name for name, command in COMMANDS.items() if command.options is not None}
NAMES |= {(name,): whole for name, whole in SHORT.items()}
"""The words of each command that has options -> its name."""


@pytest.fixture
def help_of(monkeypatch, capsys):
    """What `--help-all` of a command prints."""
    monkeypatch.setenv("COLUMNS", "200")

    def help_of(name: tuple[str, ...]) -> str:
        with pytest.raises(SystemExit) as end:
            main([*name, "--help-all"])
        assert end.value.code == 0
        return capsys.readouterr().out

    return help_of


def test_every_command_has_help_and_a_line_of_the_usage(help_of):
    for words, name in NAMES.items():
        text = help_of(words)
        assert f"usage: mind {name}" in text
        # Beside its flags each command says what it does.
        assert re.search(r"\n\n[A-Z][^│╭]{20,}", text), name
        assert re.search(rf"^  {name}\s+\w", usage(), re.M), name
        usage_line = text.partition("\n")[0]
        assert not re.search(r"\bSTR\b", usage_line.partition("--")[0]), usage_line  # what stands alone has a name


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], ["help", "--help"]], ids=" ".join)
def test_the_usage_names_the_commands(arguments, capsys):
    assert main(arguments) == 0 and capsys.readouterr().out == usage() + "\n"


@pytest.mark.parametrize("arguments", [["data"], ["data", "--help"], ["help", "data"], ["data", "help"]], ids=" ".join)
def test_the_usage_of_a_group_names_its_commands(arguments, capsys):
    assert main(arguments) == (2 if arguments == ["data"] else 0)
    shown = capsys.readouterr().out
    assert "mind data COMMAND" in shown and "  data judge" in shown and "  train" not in shown


@pytest.mark.parametrize("words", [["help", "grade"], ["help", "data", "judge"], ["data", "help", "judge"]])
def test_help_of_a_command_is_that_of_its_option(words, capsys):
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert main([*(word for word in words if word != "help"), "--help"]) == 0
    assert capsys.readouterr().out == shown and "--help-all" in shown


def command_lines(text: str) -> list[list[str]]:
    """The words of each command line of `mind` in a document."""
    for name, meaning in MAKE.items():
        text = text.replace(name, meaning)
    lines = re.findall(r"^[\t ]*(mind [a-z].*)", text.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines + re.findall(r"`(mind [a-z][^`]*)`", text)]


def command_of(words: list[str]) -> tuple[str, ...] | None:
    return next((name for name in NAMES if tuple(words[: len(name)]) == name), None)


FLAGS: dict[tuple[str, ...], set[str]] = {}


@pytest.fixture
def flags(help_of):
    """The options of every command, read once."""
    if not FLAGS:
        FLAGS.update({name: set(FLAG.findall(help_of(name))) for name in NAMES})
    return FLAGS


@cache
def flags_of_programs() -> set[str]:
    """The flags that the parsers of the repository's other programs add."""
    files = [file for room in OTHER_PROGRAMS for file in (ROOT / room).rglob("*.py")]
    return {flag for file in files for flag in re.findall(r'add_argument\(\s*"(--[a-z-]+)"', file.read_text())}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_and_flag_in_a_document_exists(flags, document):
    text = (ROOT / document).read_text()
    lines = command_lines(text)
    assert lines or document in ("CONTRIBUTING.md", *OTHER_PAGES)  # whose guides are pages of docs
    for words in lines:
        name = command_of(words)
        # "mind generate | judge | filter" and "mind data ..." speak of several.
        listed = words[0] in HELP or "|" in words or "..." in words
        assert name is not None or listed, f"{document}: mind {' '.join(words)}"
        if name is not None:
            # A method's own options, --options.NAME, are not among the flags of the default one.
            given = {word.partition("=")[0] for word in words if word.startswith("--") and "--options." not in word}
            assert given <= flags[name] | {"--help", *GENERAL}, f"{document}: mind {' '.join(words)}"
    known = set().union(*flags.values()) | OTHER_TOOLS | flags_of_programs() | set(GENERAL)
    mentioned = {flag for flag in FLAG.findall(text) if "--options." not in flag} if document.endswith(".md") else set()
    assert mentioned <= known, document


def test_the_demo_is_a_run_of_enough_questions_that_training_does_not_see(monkeypatch, capsys):
    dry = subprocess.run(
        ["make", "-n", "train", "SEED=3", "ARGS="], cwd=ROOT, capture_output=True, text=True, check=True
    )
    configs = []

    def noted(config, **_):
        configs.append(config)
        raise MindError("enough")

    monkeypatch.setattr("mind.run.train.train", noted)
    (command,) = [line for line in dry.stdout.splitlines() if "mind train" in line]
    assert main(shlex.split(command)[1:]) == 2 and "enough" in capsys.readouterr().err
    (config,) = configs
    assert config.output == "runs/demo-3" and config.train.seed == 3
    data = load_data(config)
    (questions,) = data.evaluation.values()
    assert len(questions) >= 100 and len({question.question for question in questions}) == len(questions)
    families = {question.id.split("-")[-1] for question in questions}
    assert families == {question.id.split("-")[-1] for question in data.train} and len(families) == 14
    assert all(len(question.rationales) == 8 for question in data.train)
    assert not numbers_of(data.train) & (numbers_of(questions) | numbers_of(data.heldout))


def numbers_of(questions):
    """Family and numbers of each question."""
    return {(q.id.split("-")[-1], *sorted(re.findall(r"\d+", q.question))) for q in questions}


@pytest.mark.parametrize("own", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", None])
def test_threads_spin_briefly_unless_somebody_says_otherwise(monkeypatch, own):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    main(["--help"])  # torch is loaded here, and has read them
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv(own or "GOMP_SPINCOUNT", "7")
    if own is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    main(["--help"])
    assert os.environ.get("GOMP_SPINCOUNT") == {None: SPINS, "GOMP_SPINCOUNT": "7"}.get(own)


def test_the_command_line_does_not_load_torch_before_it_sets_them():
    command = "import sys, mind.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], cwd=ROOT).returncode == 0


def test_generate_says_where_the_word_problems_went(tmp_path, capsys):
    assert main(["data", "generate", "--output", str(tmp_path / "x.jsonl"), "--count", "5"]) == 2
    error = capsys.readouterr().err
    assert "expected --questions.path and --teacher.model" in error and "`mind data word-problems`" in error
    assert main(["generate"]) == 2
    assert error.splitlines()[0] in capsys.readouterr().err


def test_unnamed_rationales_are_imported(tmp_path, capsys):
    source, output = tmp_path / "unnamed.jsonl", tmp_path / "named.jsonl"
    rows = [
        {
            "id": "a",
            "question": "What is 1 plus 2?",
            "answer": "3",
            "rationales": ["1 + 2 = 3.", "It is 1 + 2 = 4.", "2 + 1 = 3 in all.", "1 + 2 = 3."],
        },
        {"id": "b", "question": "What is 2 plus 2?", "answer": "4", "rationales": ["2 + 2 = 5."]},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "import", str(source), "--output", str(output)]) == 0
    out = capsys.readouterr().out
    table, _, following = out.partition(str(output))
    assert "questions dropped too few" in table and "_" not in table
    assert "--data.perspectives path-1 path-2" in following
    counts = json.loads((tmp_path / "named.counts.json").read_text())
    assert counts == {
        "questions_read": 2,
        "questions_kept": 1,
        "questions_dropped_too_few": 1,
        "questions_given_knowledge": 0,
        "rationales_read": 5,
        "rationales_kept": 2,
        "rationales_empty": 0,
        "rationales_duplicate": 1,
        "rationales_no_answer": 0,
        "rationales_wrong_answer": 2,
        "rationales_kept_as_wrong": 0,
        "rationales_over_the_limit": 0,
        "rationales_of_dropped_questions": 0,
    }
    (question,) = load_questions(output)
    assert [rationale.perspective for rationale in question.rationales] == ["path-1", "path-2"]
    assert main(["data", "import", str(source), "--output", str(output)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["data", "import", str(source), "--output", str(tmp_path / "n.jsonl"), "--keep", "1"]) == 2
    assert "--keep 1" in capsys.readouterr().err


def test_word_problems_are_written(tmp_path):
    every, some = tmp_path / "every.jsonl", tmp_path / "some.jsonl"
    assert main(["data", "word-problems", "--output", str(every), "--count", "15"]) == 0
    questions = load_questions(every, perspectives=PAPER_PERSPECTIVES, require_rationales=True, minimum_rationales=8)
    assert len(questions) == 15
    command = ["data", "word-problems", "--output", str(some), "--count", "3", "--perspectives", "planning", "socratic"]
    assert main(command) == 0
    assert {len(question.rationales) for question in load_questions(some)} == {2}


def test_word_problems_of_a_level_apart_from_others(tmp_path, capsys):
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    levels = ["--levels", "one-step", "two-step"]
    assert main(["data", "word-problems", "--output", str(train), "--count", "28", *levels]) == 0
    options = ["--seed", "1", "--families", "gain", "bus", "--count", "6", "--apart-from", str(train)]
    assert main(["data", "word-problems", "--output", str(test), *levels, *options]) == 0
    families = [question.id.split("-")[-1] for question in load_questions(test)]
    assert sorted(families) == ["bus"] * 3 + ["gain"] * 3
    assert main(["data", "word-problems", "--output", str(tmp_path / "x.jsonl"), "--families", "gain"]) == 2
    assert "there is no family gain: expected train, ood or some of bakery" in capsys.readouterr().err
    command = ["data", "word-problems", "--output", str(tmp_path / "x.jsonl"), "--families", "bags", "--count", "40"]
    for options in (["--part", "test"], ["--apart-from", str(train)]):
        assert main([*command, "--levels", "one-step", *options]) == 2, "each problem of a test comes once"
        assert "40 questions are asked for, and there are" in capsys.readouterr().err


def test_responses_are_graded(tmp_path, capsys):
    rows = [{"id": "a", "answer": "4", "response": f"#### {number}"} for number in (4, 5, 4, "?")]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = str(tmp_path / "its grades.jsonl")
    assert main(["grade", str(tmp_path / "r.jsonl"), "--output", output]) == 0
    result, following = capsys.readouterr().out.splitlines()
    assert result == f"{output}: 2 of 4 right (50.0 %), 1 unparsed"
    words = shlex.split(following.partition(": ")[2])
    assert words[:4] == ["mind", "data", "filter", "FOLDER"]
    options = tyro.cli(Filter, args=words[3:])  # it can be typed so
    assert (options.student_grades, options.filter.easy_fraction) == (output, 0.5)


def test_from_questions_to_a_student(tmp_path, model_folder, monkeypatch, capsys):
    """generate, judge, filter and train, each on what the one before wrote, without a line in between."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    questions = [Question(f"sum-{n}", f"What is {n} + {n + 3}?", str(2 * n + 3)) for n in range(8)]
    save_questions(questions, tmp_path / "questions.jsonl")
    names = ("planning", "socratic")

    def teacher(body: bytes) -> bytes:
        system, user = (message["content"] for message in json.loads(body)["messages"])
        a, b = map(int, re.findall(r"\d+", user)[:2])
        if system == PERSPECTIVES["planning"].prompt:
            text = f"Plan: add both numbers. Then: {a} + {b} = {a + b}."
        else:
            text = f"What is sought? The sum. How large is it? {a} and {b} make {a + b}."
        return chat_answer(f"{text}\n#### {a + b if a != 7 else 0}")  # the last question is answered wrongly

    folder, train, run = tmp_path / "set", tmp_path / "train.jsonl", tmp_path / "run"
    with FaultProxy(teacher) as server:
        status = main(
            ["data", "generate", "--output", str(folder), "--questions.path", str(tmp_path / "questions.jsonl"),
             "--teacher.model", "m", "--teacher.base-url", server.url, "--perspectives", *names]
        )  # fmt: skip
    assert status == 0
    assert main(["data", "judge", str(folder)]) == 0
    assert main(["data", "filter", str(folder), "--output", str(train), "--license", "cc-by-4.0"]) == 0
    kept = load_questions(train, perspectives=names, require_rationales=True)
    assert [question.id for question in kept] == [question.id for question in questions[:-1]]
    assert "license: cc-by-4.0" in (tmp_path / "train.card.md").read_text()
    status = main(
        ["train", "--output", str(run), "--student.model", str(model_folder), "--student.max-length", "256",
         "--data.train", str(train), "--data.perspectives", *names, "--train.max-steps", "2", "--metanet.width", "16",
         "--metanet.warmup-epochs", "1", "--evaluation.max-new-tokens", "4"]
    )  # fmt: skip
    assert status == 0
    assert (run / "report.html").is_file() and (run / "student" / "config.json").is_file()
    out = capsys.readouterr().out
    assert f"next: mind data judge {folder}" in out and f"next: mind data filter {folder}" in out


def test_a_warning_of_this_package_is_one_line(monkeypatch):
    from mind.batches import isolation

    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # restores what main sets
    assert main(["--help"]) == 0
    told = RuntimeWarning("each sequence is computed in a row of its own")
    assert warnings.formatwarning(told, RuntimeWarning, isolation.__file__, 3) == f"mind: {told}\n"
    assert "elsewhere.py:3: RuntimeWarning: each" in warnings.formatwarning(told, RuntimeWarning, "elsewhere.py", 3)
