"""What every page promises, read without a browser: HTML that nests, names for pictures, tables, and no network."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sample_pages import write_pages

KINDS = ("run", "dataset", "comparison", "latent")
VOID = {"meta", "br", "img", "input", "link", "hr"}
each_kind = pytest.mark.parametrize("kind", KINDS)


class Nesting(HTMLParser):
    """Fails on an end tag without its start; keeps the elements, and the text by element id."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict]] = []
        self.elements: list[tuple[str, dict, list[str]]] = []  # tag, attributes, the tags that it is in
        self.texts: dict[str, str] = {}
        self.feed(source)
        self.close()
        assert not self.open, [tag for tag, _ in self.open]

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.elements.append((tag, dict(attributes), [name for name, _ in self.open]))
        assert len(dict(attributes)) == len(attributes), f"{tag} has an attribute twice: {attributes}"
        if tag not in VOID:
            self.open.append((tag, dict(attributes)))

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.elements.append((tag, dict(attributes), [name for name, _ in self.open]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1][0] == tag, f"</{tag}> ends {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for _, attributes in self.open:
            if "id" in attributes:
                self.texts[attributes["id"]] = self.texts.get(attributes["id"], "") + data


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made: dict[str, Path] = write_pages(tmp_path_factory.mktemp("pages"))
    return {kind: path.read_text(encoding="utf-8") for kind, path in made.items()}


@each_kind
def test_elements_nest_and_ids_are_unique(sources: dict[str, str], kind: str) -> None:
    page = Nesting(sources[kind])
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert sources[kind].startswith("<!doctype html>") and '<html lang="en">' in sources[kind]
    assert re.search("<title>[^<]+</title>", sources[kind]) and 'name="viewport"' in sources[kind]


@each_kind
def test_headings_skip_no_level(sources: dict[str, str], kind: str) -> None:
    levels = [int(tag[1]) for tag, _, _ in Nesting(sources[kind]).elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False)), levels


@each_kind
def test_every_picture_has_a_name_and_a_description(sources: dict[str, str], kind: str) -> None:
    page, pictures = Nesting(sources[kind]), 0
    for tag, attributes, _ in page.elements:
        if tag == "svg" and attributes.get("aria-hidden") != "true":
            pictures += 1
            assert attributes["role"] == "img"
            for reference in ("aria-labelledby", "aria-describedby"):
                assert page.texts[attributes[reference]].strip(), attributes
    assert pictures == {"run": 14, "dataset": 2, "comparison": 6, "latent": 2}[kind]


@each_kind
def test_every_picture_has_its_numbers_in_a_table_or_says_where_they_are(sources: dict[str, str], kind: str) -> None:
    figures = re.findall("<figure.*?</figure>", sources[kind], re.DOTALL)
    assert figures
    for figure in figures:
        caption = re.search("<figcaption[^>]*>(.*?)</figcaption>", figure, re.DOTALL)
        assert caption
        rows = re.findall('<tr><th scope="row">', figure)
        assert rows or re.search("table|latent.json", caption[1]), caption[1]
        assert len(rows) <= 32


@each_kind
def test_every_head_of_a_table_says_what_it_heads(sources: dict[str, str], kind: str) -> None:
    heads = [attributes for tag, attributes, _ in Nesting(sources[kind]).elements if tag == "th"]
    assert heads and all(head.get("scope") in ("row", "col") for head in heads)


@each_kind
def test_nothing_is_fetched(sources: dict[str, str], kind: str) -> None:
    for tag, attributes, _ in Nesting(sources[kind]).elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|https?://", sources[kind])
    assert set(re.findall(r"url\(([^)]*)\)", sources[kind])) <= {
        f"#{i}" for i in re.findall(' id="([^"]*)"', sources[kind])
    }


def test_the_table_of_a_picture_has_its_numbers(sources: dict[str, str]) -> None:
    figure = re.search('<figure id="meta_loss">.*?</figure>', sources["run"], re.DOTALL)
    assert figure
    assert re.findall('<th scope="col">([^<]*)</th>', figure[0]) == ["step", "warm-up, MetaNet alone", "training"]
    assert '<tr><th scope="row">warm-up epoch 2</th><td>0.245</td><td>–</td></tr>' in figure[0]
    names = re.findall('<th scope="row">([^<]*)</th>', figure[0])
    assert names[8:] == [f"{step} to {step + 3}" for step in range(1, 41, 4)]
