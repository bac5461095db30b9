"""What a package index and a reader of the repository are told: metadata, version, citation, changelog, templates."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

import mind
import mind_kernels
from build_tools.hub import release
from build_tools.long_description import for_an_index, long_description

ROOT = Path(__file__).resolve().parent.parent
VERSION = mind_kernels.__version__
SECTIONS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
METADATA = """
import pathlib, sys
from build_tools import pep517
folder = pathlib.Path(sys.argv[1])  # setuptools changes sys.argv
made = folder / pep517.prepare_metadata_for_build_wheel(str(folder))
(folder / "METADATA").write_text((made / "METADATA").read_text())
"""


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Message:
    folder = tmp_path_factory.mktemp("metadata")
    done = subprocess.run([sys.executable, "-c", METADATA, folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Parser().parsestr((folder / "METADATA").read_text())


def test_the_version_is_one(metadata: Message) -> None:
    assert metadata["Version"] == VERSION == mind.__version__ == release()
    assert "version" not in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_what_an_index_shows(metadata: Message) -> None:
    assert metadata["Name"] == "mind-kernels" and metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0" and metadata.get_all("License-File") == ["LICENSE"]
    assert len(metadata["Summary"]) < 512 and "\n" not in metadata["Summary"]
    assert metadata.get_all("Project-URL") and all("https://" in url for url in metadata.get_all("Project-URL"))
    classifiers = metadata.get_all("Classifier")
    assert classifiers == sorted(classifiers) and len(set(classifiers)) == len(classifiers)
    assert not any(line.startswith("License ::") for line in classifiers), "an index refuses both forms of a license"


def test_the_long_description_renders_with_links_that_work(metadata: Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload()
    assert text.strip() == long_description().strip()
    page = MarkdownIt("commonmark").enable("table").render(text)
    assert page.startswith("<h1>")
    targets = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert targets and all(target.startswith(("https://", "#")) for target in targets), targets


def test_links_of_the_long_description() -> None:
    text = "see [a](docs/a.md#b), ![p](p.svg)\n[c](https://c.org) [d](#d) `[e](e)`\n```\n[f](f)\n```\n[g](g.md)"
    assert for_an_index(text, None) == "see a, \n[c](https://c.org) [d](#d) `[e](e)`\n```\n[f](f)\n```\ng"
    linked = for_an_index(text, "https://host/o/r/")
    assert "[a](https://host/o/r/blob/main/docs/a.md#b), ![p](https://host/o/r/raw/main/p.svg)" in linked
    assert "`[e](e)`" in linked and "\n[f](f)\n" in linked


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert all(citation[key] for key in ("message", "title", "authors", "abstract"))
    assert citation["version"] == VERSION and citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert paper["title"] and paper["authors"] and "2601.03717" in json.dumps(paper["identifiers"])


def changelog() -> list[str]:
    return (ROOT / "CHANGELOG.md").read_text().splitlines()


def test_the_changelog_has_its_form() -> None:
    """Keep a changelog 1.1.0: versions with dates, newest first, their entries under the six words."""
    versions = [line for line in changelog() if line.startswith("## ")]
    assert versions[0] == "## [Unreleased]"
    dated = [re.fullmatch(r"## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", line) for line in versions[1:]]
    assert all(dated), versions
    assert [found[1] for found in dated if found][0] == VERSION
    dates = [found[2] for found in dated if found]
    assert dates == sorted(dates, reverse=True)
    headings = [line.removeprefix("### ") for line in changelog() if line.startswith("### ")]
    assert set(headings) <= set(SECTIONS), headings


def test_every_entry_of_the_changelog_is_under_a_word_and_a_version() -> None:
    version, word, words = "", "", set()
    for line in changelog():
        if line.startswith("## "):
            version, word, words = line, "", set()
        elif line.startswith("### "):
            word = line
            assert word not in words, f"{version} has {word} twice"
            words.add(word)
        elif line.startswith("- "):
            assert version and word, line


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_an_issue_form_can_be_shown(name: str) -> None:
    """What GitHub demands of a form: a name, a description, a body whose fields have ids of their own and labels."""
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
    assert form["name"] and form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert fields and all(field["attributes"]["label"] for field in fields)
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids)
    assert {field["type"] for field in form["body"]} <= {"markdown", "input", "textarea", "dropdown", "checkboxes"}


@pytest.mark.parametrize("name", ["SECURITY.md", "CODE_OF_CONDUCT.md", ".github/pull_request_template.md"])
def test_a_page_of_the_repository_links_to_what_is_there(name: str) -> None:
    text = (ROOT / name).read_text()
    assert text.startswith("# ") or name.startswith(".github")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert target.startswith("https://") or ((ROOT / name).parent / target).exists(), target
