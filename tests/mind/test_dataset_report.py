"""The page of a data set: its numbers, and that no text of a model or a stranger becomes anything but text."""

from __future__ import annotations

import dataclasses
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup

from mind.curation import report
from mind.curation.report import SHOWN_PER_REASON, SHOWN_QUESTIONS, ReportInput, write_dataset_report
from mind.display import readable
from mind.records import Key, Question, Rationale, Response, Verdict
from mind.report.data_tables import DataTable
from mind.report.page import SHOWN_CHARACTERS

HOSTILE = [
    "<script>alert(1)</script>", "</pre></div></body>", "<img src=x onerror=alert(1)>", '" onmouseover="alert(1)',
    "' style='x", "javascript:alert(1)", "{{7*7}}{% raw %}", "{{ self }}", "<!-- ", "]]>", "&lt;b&gt;&amp;&#60;",
    "</style><style>*{}", "</title><b>", "\x00\x07\x1b[31m\x9b", "\u202eevil\u202c\u2066\u200f", "\ud800a\udfff",
    "a\r\nb\tc", "<" * 10_000_000, "Ω 🍎 " * 3, "\ufffe\U0001f468\u200d\U0001f469",
]  # fmt: skip


class Page(HTMLParser):
    """The elements of a page with their attributes, and its texts."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, list]] = []
        self.texts: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.elements.append((tag, attributes))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data:.80}")


LABELS = ("A", "B")
"""What the labels of the example's choices begin with."""
COST = "1,234.50 "
"""What the example's cost begins with."""


def example(text: str) -> ReportInput:
    """A small data set, each of whose texts is `text`."""
    question = Question(text, text, text, {label + text: text for label in LABELS}, (Rationale(text, text),) * 2)
    key = Key(text, text, 0)
    response = Response(key, text, text, text, text, 10, None, 1, 0.5, text)
    verdict = Verdict(key, "wrong", text, text, text)
    counts = {"read": 4, "right": 3, "kept": 2, "checked": 2, "adherent": 1}
    summary = {
        "read": 4,
        "kept": 2,
        "dropped": {text: 2},
        "questions": {"kept": 1, text: 1},
        "perspectives": {text: counts},
        "teachers": {text: {"read": 4, "right": 3, "kept": 2, "characters": 1234.5, "tokens": None}},
    }
    return ReportInput(
        title=text,
        summary=summary,
        kept_lengths=[10, 12],
        dropped_lengths=[9, 10_000_000],
        pass_rates=[0.5, 1.0],
        tokens={"prompt": 1_000, "completion": 200, "uncounted_responses": 1},
        cost={"amount": 1234.5, "currency": text},
        kept=[question],
        dropped={text: [(question, response, verdict), (None, response, verdict)]},
    )


def written(data: ReportInput, folder: Path) -> str:
    path = write_dataset_report(data, folder / "report.html")
    assert path == folder / "report.html"
    assert [file.name for file in folder.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without the histograms, which show numbers alone and take most of the time."""
    monkeypatch.setattr(
        report, "_histogram", lambda *data, **options: report.Histogram(Markup("<svg></svg>"), DataTable([]))
    )


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_text_stays_a_text(tmp_path, undrawn, text):
    """The elements and attributes are those of a harmless page, and every text comes back, cut and made readable."""
    harmless = Page(written(example("harmless"), tmp_path))
    began = time.process_time()
    source = written(example(text), tmp_path)
    assert time.process_time() - began < 5
    assert len(source) < 400_000
    page = Page(source)
    assert page.elements == harmless.elements
    shown, expected = readable(text, SHOWN_CHARACTERS), "\n".join(harmless.texts)
    times = expected.count("harmless")
    if len(text) > SHOWN_CHARACTERS:
        times -= sum(expected.count(f"{before}harmless") for before in LABELS + (COST,))  # which are cut elsewhere
    printed = "\n".join(page.texts)
    assert printed.count(shown) >= times > 0
    assert not set(printed) & {"\x00", "\x07", "\x1b", "\x9b", "\u202e", "\u2066", "\u200f", "\r"}


def test_nothing_on_the_page_runs_or_loads(tmp_path):
    elements = Page(written(example("x"), tmp_path)).elements
    attributes = [attribute for _, given in elements for attribute in given]
    assert not {tag for tag, _ in elements} & {"script", "iframe", "link", "object", "embed", "form", "img", "base"}
    assert not [name for name, _ in attributes if name.startswith("on") or name == "src"]
    assert all(value.startswith("#") for name, value in attributes if name.endswith("href"))
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert [("http-equiv", "Content-Security-Policy"), ("content", policy)] in [given for _, given in elements]
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_headlines_and_tables(tmp_path):
    page = written(example("x"), tmp_path)
    assert re.findall(r"<li><span>(.*?)</span><b>(.*?)</b><span>(.*?)</span></li>", page) == [
        ("questions kept", "1", "of 2"),
        ("rationales kept", "2", "of 4 (50.0 %)"),
        ("right answers", "75.0 %", "pass rate of a question 75.0 %"),
        ("tokens", "1,200", "1,000 of prompts, 200 of answers"),
        ("cost", f"{COST}x", "without 1 replies whose tokens are not known"),
    ]
    row = r'<th scope="row">(.*?)</th><td>(\d+)</td><td>(.*?)</td><td class="bar"><i style="width: (.*?)%;'
    assert re.findall(row, page) == [
        ("kept", "2", "50.0 %", "50.0"),
        ("x", "2", "50.0 %", "50.0"),
        ("kept", "1", "50.0 %", "50.0"),
        ("x", "1", "50.0 %", "50.0"),
    ]
    assert '<th scope="row">x</th><td>4</td><td>75.0 %</td><td>2</td><td>50.0 %</td>' in page
    assert len(re.findall("<svg viewBox", page)) == 2
    assert "Not drawn" not in page


def test_only_reasons_and_fates_that_occur_have_a_row(tmp_path, undrawn):
    data = example("x")
    summary = {**data.summary, "dropped": {"x": 2, "leaked answer": 0}, "questions": {"kept": 2, "too few": 0}}
    page = written(dataclasses.replace(data, summary=summary), tmp_path)
    assert re.findall(r'<th scope="row">([^<]*)</th><td>\d+</td><td>[^<]*</td><td class="bar">', page) == [
        "kept",
        "x",
        "kept",
    ]


def test_the_bins_of_a_histogram_have_edges():
    """Ten bins, of which two next to one another hold the same number: they are seen to be two."""
    drawn = report._histogram("k", {"n": (report.BLUE, [5, 15, 16])}, np.linspace(0, 100, 11), "x", "y")
    assert drawn.svg.count(f"stroke: {report.BLUE}") == 10
    assert drawn.table.columns == ["x", "n"] and drawn.table.rows == [["0 to 10", "1"], ["10 to 20", "2"]]


def test_what_is_not_there_is_said(tmp_path):
    summary = {
        "read": 0,
        "kept": 0,
        "dropped": {},
        "questions": {},
        "perspectives": {"planning": dict.fromkeys(("read", "right", "kept", "checked", "adherent"), 0)},
        "teachers": {"m": dict.fromkeys(("read", "right", "kept"), 0) | dict.fromkeys(("characters", "tokens"))},
    }
    data = ReportInput(
        "none", summary, [], [], [], {"prompt": 0, "completion": 0, "uncounted_responses": 0}, None, [], {}
    )
    page = written(data, tmp_path)
    assert page.count("Not drawn: there is nothing to count.") == 2
    assert page.count("No example was given.") == 2
    assert "<b>not known</b>" in page
    assert '<th scope="row">planning</th><td>0</td><td>–</td><td>0</td><td>–</td>' in page


def test_one_long_text_does_not_squeeze_a_histogram(tmp_path):
    """The axis ends near the other lengths, and one side may be empty."""
    data = dataclasses.replace(example("x"), kept_lengths=[*range(100, 400)], dropped_lengths=[])
    usual = written(data, tmp_path)
    longest = written(dataclasses.replace(data, dropped_lengths=[10_000_000]), tmp_path)
    assert ">300<" in usual
    assert ">300<" in longest
    assert "000000" not in longest


def test_so_many_examples_are_shown(tmp_path, undrawn):
    data = example("x")
    data = dataclasses.replace(data, kept=data.kept * 100, dropped={"x": list(data.dropped["x"]) * 100})
    page = written(data, tmp_path)
    assert page.count("<summary>x</summary>") == SHOWN_QUESTIONS
    assert page.count("sample 0</p>") == SHOWN_PER_REASON


def test_a_reason_called_kept_is_counted_apart(tmp_path, undrawn):
    data = example("x")
    data = dataclasses.replace(data, summary=data.summary | {"dropped": {"kept": 7}}, dropped={})
    page = written(data, tmp_path)
    assert re.findall(r'<th scope="row">kept</th><td>(\d+)', page) == ["2", "7", "1"]
