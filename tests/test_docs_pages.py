"""The pages in docs/ are true: commands parse, blocks run or say why not, names and messages are those of the code."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from functools import cache
from pathlib import Path

import pytest

from mind.run_folder import METHOD_STATE, RunFolder
from tests.docs_pages import DOCS, NOT_RUN, PAGES, RUN, blocks, commands, parse, prepare
from tests.guide import ROOT, block

OWN = (
    "data.md", "security.md", "paper-to-code.md", "tutorials/distil-from-a-teacher.md", "tutorials/add-a-method.md",
    "tutorials/compare-methods.md", "how-to/", "methods/", "reference/configuration.md", "reference/files.md",
    "reference/run-folder.md", "reference/environment.md", "reference/exit-statuses.md", "reference/errors.md",
)  # fmt: skip
"""The pages about the application."""
MINE = [page for page in PAGES if str(page.relative_to(DOCS)).startswith(OWN)]
TOOLS = {"python", "make", "git", "cd", "export", "torchrun"}
"""What begins a command line that is no command of `mind` and needs a note or a test of its own."""
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")
OTHER_FLAGS = {"--no-deps", "--nproc-per-node", "--help", "--help-all", "--quiet"}
"""Of pip, torchrun and every command."""


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.mark.parametrize("page", MINE, ids=name_of)
def test_every_command_parses_and_every_other_block_runs_or_says_why_not(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for one in blocks(page):
        where = f"{page.name}, line {one.line}"
        if one.note.startswith(NOT_RUN):
            assert len(one.note) > len(NOT_RUN) + 5, f"{where}: the reason is missing"
        elif run := RUN.fullmatch(one.note):
            assert f'"{run[1]}"' in (ROOT / run[1]).read_text() or page.name in (ROOT / run[1]).read_text(), where
        elif one.language == "json":
            for line in one.text.splitlines():
                json.loads(line)
        else:
            assert one.language in ("", "text"), f"{where}: a test of it, or a note why it is not run"
            for words in commands(one.text) if one.language == "" else ():
                assert words[0] == "mind", f"{where}: {words[0]}: a test of it, or a note why it is not run"
                prepare(words)
                parse(words, monkeypatch)


@pytest.mark.parametrize("page", MINE, ids=name_of)
def test_every_command_and_flag_within_a_line_exists(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    from mind.cli.commands import COMMANDS, GROUPS, SHORT

    names = {tuple(name.split()) for name in (*COMMANDS, *SHORT, *GROUPS, "help", "completion")}
    for words in (words.split() for words in re.findall(r"`mind ([a-z][^`]*)`", text)):
        assert any(tuple(words[: len(name)]) == name for name in names), f"mind {' '.join(words)}"
    mentioned = {flag for flag in FLAG.findall(text) if not flag.startswith(("--options.", "--stages."))}
    assert mentioned - flags() <= OTHER_FLAGS


@cache
def flags() -> set[str]:
    """Every option of every command."""
    import tyro

    from mind.cli.commands import COMMANDS, resolved

    found = set()
    for command in COMMANDS.values():
        if command.options is None:
            continue
        default = tyro.MISSING_NONPROP if command.defaults is None else resolved(command.defaults)(["--help"])
        parser = tyro.extras.get_parser(resolved(command.options), default=default)
        found |= {option for action in parser._actions for option in action.option_strings}
    return found | {flag.partition(".")[0] for flag in found} | {"--options", "--stages"}


@pytest.mark.parametrize("page", MINE, ids=name_of)
def test_every_link_leads_somewhere(page):
    own = {"install.md", "index.md", "performance.md", "experiments.md", "contributing.md", "several-devices.md"}
    own |= {"api.md", "SECURITY.md"}
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target and Path(target).name not in own and "concepts/" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", MINE, ids=name_of)
def test_every_anchor_of_a_link_is_a_heading(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*\.md)?#([^)]+)\)", page.read_text()):
        other = page.parent / target if target else page
        if other.exists():
            headings = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{target}#{anchor}"


@pytest.mark.parametrize("page", MINE, ids=name_of)
def test_a_page_begins_with_a_sentence(page):
    heading, empty, first, *_ = page.read_text().splitlines()
    assert heading.startswith("# ") and empty == "" and re.match(r"[A-Z].{20}", first), page


@pytest.mark.parametrize("page", MINE, ids=name_of)
def test_every_file_of_the_code_that_is_named_exists(page):
    for file in re.findall(r"`((?:mind|mind_kernels|tests|bench|docs)/[\w/.-]+)`", page.read_text()):
        assert (ROOT / file).exists(), file


def test_every_test_that_is_named_exists():
    for file, name in re.findall(r"`(tests/[\w/.]+)::(\w+)`", (DOCS / "paper-to-code.md").read_text()):
        assert f"\ndef {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


def test_the_sparse_gradient_of_the_guide_keeps_few_entries():
    names = {}
    exec(block(DOCS / "how-to" / "threshold.md", "tests/test_docs_pages.py"), names)
    assert 2**-17 < names["threshold"] < 2**-16 and 0 < names["kept"] < 20 and 0 <= names["dropped"] < 0.01
    assert names["hidden"].grad is not None and names["head"].grad is not None


def test_what_is_written_from_the_configuration_is_up_to_date():
    spec = importlib.util.spec_from_file_location("write_reference", DOCS / "write_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for page, text in module.pages().items():
        assert page.read_text() == text, f"{page.name}: run `python docs/write_reference.py`"
        assert "|  |" not in text, f"{page.name}: a field has no docstring"


def test_every_method_and_preset_has_its_page():
    from mind.methods import METHODS, PRESETS

    index = (DOCS / "methods" / "index.md").read_text() + (DOCS / "methods" / "ablations.md").read_text()
    index += (DOCS / "methods" / "lorid.md").read_text()
    for name in (*METHODS, *PRESETS):
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", index), name


def test_the_page_of_the_run_folder_has_every_file_of_it():
    page = (DOCS / "reference" / "run-folder.md").read_text()
    names = {path.name for path in RunFolder("RUN").written()} | {"checkpoint-N"}
    missing = {name for name in names if f"`{name}`" not in page and f"`{name}/`" not in page}
    assert missing == {"responses", "stages"} and METHOD_STATE in names  # these two as what is in them


def test_the_page_of_files_has_every_file_and_field_of_a_data_set():
    import dataclasses

    from mind.records import Question, Rationale, Response, Verdict, WrongRationale
    from mind.teacher.folder import DatasetFolder
    from mind.teacher.requests import Failure, Wasted

    page = (DOCS / "reference" / "files.md").read_text()
    files = [name for name, value in vars(DatasetFolder).items() if isinstance(value, property)]
    for name in files:
        assert f"`{getattr(DatasetFolder(Path('x')), name).name}`" in page
    for kind in (Question, Rationale, Response, Verdict, WrongRationale, Failure, Wasted):
        for field in dataclasses.fields(kind):
            assert field.name == "key" or re.search(rf'[`"]{field.name}[`"]', page), f"{kind.__name__}.{field.name}"


def test_the_page_of_the_environment_has_every_variable_that_is_read():
    page = (DOCS / "reference" / "environment.md").read_text()
    told = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", page.partition("## Read by other packages")[0]))
    read = set().union(*(variables(file) for room in ("mind", "mind_kernels", "build_tools") for file in sources(room)))
    read |= set(re.findall(r'getenv\("(\w+)"\)', "".join(file.read_text() for file in (ROOT / "csrc").rglob("*.cpp"))))
    read |= {"MIND_KERNELS_TEST_WITHOUT"}
    assert len(read) > 30
    assert read - told == set(), "these are missing on the page"
    assert told - read == {"OPENAI_", "PATH"}, "nothing reads these"


NO_VARIABLES = {
    "CPU",
    "CUDA",
    "GPU",
    "EXT_SUFFIX",
    "ADDRESS",
    "MINUTES",
    "NAME",
    "PLAN",
    "ON",
    "TRUE",
    "YES",
    "MIND_KERNELS_",
    "OPENAI_",
}
"""Words in capitals in the files that read variables."""


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def variables(file: Path) -> set[str]:
    """The names in capitals in a file that reads or sets environment variables."""
    text = file.read_text()
    if "os.environ" not in text and "getenv" not in text:
        return set()
    texts = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
    return {one for one in texts if isinstance(one, str) and re.fullmatch(r"[A-Z][A-Z0-9_]+", one)} - NO_VARIABLES


@cache
def messages() -> str:
    """All texts of both packages, one per line, with a mark in place of what an f-string fills in."""
    found = []
    for file in (*sources("mind"), *sources("mind_kernels")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(text.replace("\n", " ") for text in found)


def test_every_message_that_is_quoted_is_one_of_the_code():
    page = (DOCS / "reference" / "errors.md").read_text()
    rows = [row.split(" | ")[0] for row in page.splitlines() if row.startswith("| `")]
    assert len(rows) > 50
    for quoted in (message for row in rows for message in re.findall(r"`([^`]+)`", row)):
        parts = [re.escape(part.strip()) for part in quoted.split("...") if part.strip(" :;,")]
        assert parts and re.search("[^\n]*".join(parts), messages()), quoted


def test_the_exit_statuses_are_those_of_the_code():
    from mind.cli import boundary
    from mind.experiment.places import PAUSED
    from mind_kernels import __main__ as kernels

    page = (DOCS / "reference" / "exit-statuses.md").read_text()
    told = set(map(int, re.findall(r"^\| (\d+)", page, re.MULTILINE)))
    assert {0, 1, boundary.BAD_INPUT, boundary.INTERRUPTED, boundary.NOT_READ, PAUSED} <= told
    assert (kernels.INTERRUPTED, kernels.NOT_READ) == (boundary.INTERRUPTED, boundary.NOT_READ)
