"""The pages and the pictures of the benchmarks in Chromium: no message, no request, no sideways scrolling, and names.

Skipped without the package playwright or without a Chromium (`apt-get install chromium`); test_pages.py reads the same
pages without either.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from sample_pages import write_pages

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: chromium is not on PATH"),
]

KINDS = ("run", "dataset", "comparison", "latent")
SIZES, SCHEMES = (360, 1280), ("light", "dark")
RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"
CONTRAST = """
() => {
    const light = text => {
        const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3)
            .map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = element => {
        for (; element; element = element.parentElement) {
            const color = getComputedStyle(element).backgroundColor;
            if (!/, 0\\)$/.test(color)) return color;
        }
        return "rgb(255, 255, 255)";
    };
    return [...document.querySelectorAll("h1, h2, h3, p, td, th, li, span, b, summary, figcaption, dt, dd")]
        .filter(element => element.offsetParent && element.textContent.trim())
        .map(element => {
            const pair = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => a - b);
            return [(pair[1] + 0.05) / (pair[0] + 0.05), element.tagName + ": " + element.textContent.slice(0, 40)];
        })
        .filter(([ratio]) => ratio < 4.5);
}
"""
FOCUSED = """
() => [...document.querySelectorAll("*")].indexOf(document.activeElement)
"""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_pages(tmp_path_factory.mktemp("pages"))


def opened(browser, path: Path, width: int = 1280, scheme: str = "light"):
    """The page, what it wrote to the console, and what it asked for beside itself."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    heard = SimpleNamespace(messages=[], requests=[])
    page.on("console", lambda message: heard.messages.append(message.text))
    page.on("pageerror", lambda error: heard.messages.append(str(error)))
    page.on("request", lambda request: heard.requests.append(request.url))
    page.goto(path.as_uri())
    assert heard.messages == [] and heard.requests == [path.as_uri()], heard
    return page


@pytest.mark.parametrize("kind", KINDS)
def test_it_fits_every_screen_and_can_be_read_in_light_and_dark(browser, pages, kind) -> None:
    for width in SIZES:
        for scheme in SCHEMES:
            page = opened(browser, pages[kind], width, scheme)
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.evaluate(CONTRAST) == [], (width, scheme)
            light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"
            assert light == (scheme == "light")
            page.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_keyboard_reaches_every_control_from_top_to_bottom(browser, pages, kind) -> None:
    page = opened(browser, pages[kind])
    controls = page.evaluate(
        "() => { const all = [...document.querySelectorAll('*')];"
        " return [...document.querySelectorAll('summary, a[href]')].filter(e => e.checkVisibility())"
        ".map(e => all.indexOf(e)); }"
    )
    reached = []
    for _ in range(3 * len(controls) + 20):
        page.keyboard.press("Tab")
        place = page.evaluate(FOCUSED)
        if place in reached or page.evaluate("document.activeElement === document.body"):
            break
        reached.append(place)
    assert reached == sorted(reached) and set(controls) <= set(reached)
    if controls:
        page.locator("summary").first.focus()
        before = page.locator("details").first.evaluate("one => one.open")
        page.keyboard.press("Enter")
        assert page.locator("details").first.evaluate("one => one.open") != before
    page.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_screen_reader_hears_the_title_of_every_picture(browser, pages, kind) -> None:
    page = opened(browser, pages[kind])
    titles = page.locator("figure:has(.canvas) > h3").all_inner_texts()
    assert titles
    for title in titles:
        assert page.get_by_role("img", name=title, exact=True).count() == 1, title
    assert page.get_by_role("img").count() == len(titles), "a picture without a name"
    page.close()


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.svg")), ids=lambda path: path.stem)
def test_a_picture_of_the_benchmarks_is_drawn(browser, path) -> None:
    page = opened(browser, path, 360)
    box = page.evaluate("(() => { const b = document.documentElement.getBBox(); return [b.width, b.height]; })()")
    assert min(box) > 100
    page.close()
