"""The site: every link leads somewhere, it builds without a warning, and its tables and figures are what code makes."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import mind
import mind_kernels
from docs import links, tables
from docs.generated import replaced, written
from tests.docs_pages import DOCS, NOT_RUN, PAGES, RUN, blocks
from tests.guide import ROOT, block

MARKDOWN = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    + [path for room in ("mind", "mind_kernels", "bench") for path in (ROOT / room).rglob("README.md")]
)
OWN = ("index.md", "install.md", "contributing.md", "performance.md", "concepts/", "reference/api.md")
OWN += ("reference/evaluation.md", "experiments.md", "reference/comparison.md", "reference/testbed.md")
OWN += ("reference/integrations.md", "reference/operations/", "reference/source-map.md")
OWN += ("tutorials/losses-in-your-trainer.md", "tutorials/several-devices.md")
FIGURES = sorted(path.stem for path in (DOCS / "figures").glob("*.py") if path.stem != "style")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^(```|~~~).*?^\1", "", path.read_text(), flags=re.M | re.S)
    return re.sub(r"(`+)[^`\n]*\1", "", text)


@cache
def anchors(path: Path) -> set[str]:
    """What a code host calls the headings of a page."""
    found: dict[str, int] = {}
    text = re.sub(r"^(```|~~~).*?^\1", "", path.read_text(), flags=re.M | re.S)
    for heading in re.findall(r"^#+ +(.*?) *$", text, re.M):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found[name] = found.get(name, 0) + 1
    return {f"{name}-{n}" if n else name for name, count in found.items() for n in range(count)}


@pytest.mark.parametrize("page", MARKDOWN, ids=name_of)
def test_every_link_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        other = (page.parent / target).resolve() if target else page
        assert other.exists() and other.is_relative_to(ROOT), f"{name_of(page)}: {target}"
        if anchor:
            assert anchor in anchors(other), f"{name_of(page)}: {target}#{anchor}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="sphinx is not installed (mind-kernels[docs])")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-d", str(tmp_path / "trees")]
    built = subprocess.run(
        [*command, str(DOCS), str(tmp_path / "html")], capture_output=True, text=True, timeout=600, cwd=ROOT
    )
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    front = (tmp_path / "html" / "index.html").read_text()
    for page in PAGES:
        assert f'href="{page.relative_to(DOCS).with_suffix(".html")}"' in front or page.name == "index.md", page
    api = (tmp_path / "html" / "reference" / "api.html").read_text()
    assert "gradient_threshold" in api and "problematic" not in api
    operation = (tmp_path / "html" / "reference" / "operations" / "linear_log_prob.html").read_text()
    assert 'href="linear_cross_entropy.html"' in operation  # the README links to ../linear_cross_entropy/README.md


def test_the_api_page_has_every_public_name():
    text = (DOCS / "reference" / "api.md").read_text()
    listed = set(re.findall(r"^\.\. auto\w+:: (\w+)", text, re.M))
    assert set(mind_kernels.__all__) - listed == set()
    assert set(mind.__all__) - listed == {"METHODS"} and "`mind.METHODS`" in text


@pytest.mark.parametrize("operation", [name for name in mind_kernels.__all__ if name.startswith("linear_")])
def test_every_operation_has_a_page(operation):
    page = DOCS / "reference" / "operations" / f"{operation}.md"
    [included] = links.INCLUDE.findall(page.read_text())
    assert (page.parent / included).resolve() == ROOT / "mind_kernels" / operation / "README.md"


def test_links_of_an_included_file_are_those_of_the_page():
    file, page = ROOT / "mind_kernels/linear_log_prob/README.md", DOCS / "reference/operations/linear_log_prob.md"
    code = "```\n[g](../linear_top_k/README.md)\n```\n"
    rewritten = {
        "../linear_cross_entropy/README.md#backends": "linear_cross_entropy.md#backends",
        "../../bench/measure.py": "../../../bench/measure.py",
        "../../README.md#install": "../../index.md",
        "https://x.org/README.md": "https://x.org/README.md",
        "../../bench/linear_cross_entropy": "../../../bench/linear_cross_entropy/__main__.py",
        "../../CHANGELOG.md#top": "path:../../../CHANGELOG.md",
        "#gradient": "#gradient",
    }
    for before, after in rewritten.items():
        assert links.site_links(f"a [b]({before}) c\n{code}", file, page) == f"a [b]({after}) c\n{code}"
    with pytest.raises(ValueError, match="is a folder without any of README.md"):
        links.site_links("[a](../../csrc)", file, page)


@pytest.mark.parametrize("page", [page for page in PAGES if str(page.relative_to(DOCS)).startswith(OWN)], ids=name_of)
def test_every_block_is_run_by_a_test_or_says_why_not(page):
    for one in blocks(page):
        where = f"{page.name}, line {one.line}"
        if one.language == "text" or one.language.startswith("{"):
            continue
        if one.note.startswith(NOT_RUN):
            assert len(one.note) > len(NOT_RUN) + 5, f"{where}: the reason is missing"
        else:
            run = RUN.fullmatch(one.note)
            assert run and page.name in (ROOT / run[1]).read_text(), f"{where}: neither run nor marked as not run"


def test_the_example_of_the_sparse_gradient(capsys):
    names: dict = {}
    exec(block(DOCS / "concepts" / "sparse-gradient.md", "tests/test_docs.py"), names)
    kept = names["stats"].kept_entries
    assert 1 <= kept.float().mean() < 4096 / 16 and capsys.readouterr().out.endswith("entries kept per row\n")
    assert names["hidden"].grad.norm() > 0


def test_the_tables_are_those_of_the_results():
    texts = [page.read_text() for page in tables.PAGES]
    for text in texts:
        assert tables.filled(text) == text, "python -m docs.tables writes them anew"
    assert {name for text in texts for name in tables.NAME.findall(text)} == set(tables.TABLES)


def test_lines_are_written_between_their_comments_alone():
    page = "a\n<!-- x -->\nold\n<!-- end -->\n<!-- y -->\nother\n<!-- end -->\nz\n"
    assert replaced(page, "<!-- x -->", "new\nlines\n") == page.replace("old\n", "new\nlines\n")
    assert written(page, "<!-- y -->") == "other\n"
    for lacking in (page.replace("<!-- y -->", ""), page.rpartition("<!-- end -->")[0]):
        with pytest.raises(ValueError, match="expected the line <!-- y --> and, after it, <!-- end -->"):
            replaced(lacking, "<!-- y -->", "new\n")


def test_every_result_file_has_its_command():
    assert set(tables.COMMANDS) == {path.stem for path in tables.RESULTS.glob("*.jsonl")}
    for command in tables.COMMANDS.values():
        place = re.search(r"-m ([\w.]+)|(\S+\.(?:py|sh))", command)
        assert place is not None
        file = ROOT / f"{place[1].replace('.', '/')}.py" if place[1] else ROOT / place[2]
        assert file.exists() or (file.with_suffix("") / "__main__.py").exists(), command


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_what_its_code_draws(name, tmp_path):
    committed = DOCS / "figures" / f"{name}.svg"
    drawn = importlib.import_module(f"docs.figures.{name}").draw(tmp_path)
    matplotlib = importlib.import_module("matplotlib")
    texts = [re.findall(r"<text[^>]*>([^<]*)", path.read_text()) for path in (committed, drawn)]
    assert texts[0] and texts[0] == texts[1], f"python -m docs.figures.{name} draws it anew"
    if f"matplotlib=={matplotlib.__version__}\n" in (ROOT / "constraints.txt").read_text():
        assert shapes(committed) == shapes(drawn), f"python -m docs.figures.{name} draws it anew"


def shapes(path: Path) -> list[list[float]]:
    """The coordinates of all paths, rounded to what an eye sees."""
    return [
        [round(float(number)) for number in re.findall(r"-?\d+\.?\d*", d)]
        for d in re.findall(r' d="([^"]*)"', path.read_text())
    ]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_on_a_page_and_needs_no_network(name):
    pages = [page for page in PAGES if f"figures/{name}.svg)" in page.read_text()]
    assert len(pages) == 1
    text = (DOCS / "figures" / f"{name}.svg").read_text()
    assert "<image" not in text and "@import" not in text
    assert 'style="fill: #ffffff' in text or "fill: white" in text  # a ground of its own, for dark pages
    assert os.path.getsize(DOCS / "figures" / f"{name}.svg") < 100_000


def test_a_figure_of_the_mask_is_the_mask_of_the_text():
    """Token i sees token j if j <= i, and j is in the prompt or in the branch of i."""
    packing = importlib.import_module("docs.figures.packing")
    seen = packing.visible() == packing.visible()  # nan where nothing is seen
    branch = [0] * packing.PROMPT + [k + 1 for k, length in enumerate(packing.RATIONALES) for _ in range(length)]
    for i, of_i in enumerate(branch):
        for j, of_j in enumerate(branch):
            assert seen[i, j] == (j <= i and of_j in (0, of_i))
