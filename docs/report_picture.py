"""Writes docs/images/report.png: the top of a run's report, as a browser shows it.

    python docs/report_picture.py runs/demo/report.html

needs the package playwright and a Chromium on PATH. The picture in the repository is of a run of the testbed
(bench/testbed/README.md), whose student of 0.9 M parameters learns in minutes:

    mind data word-problems --output train.jsonl --levels one-step two-step --reach 2 --count 497 \
        --families gain boxes shares lead times packs twice change pool both bus rest seats already \
        --validation 60 --test 100 --lapses.by family --lapses.sound 6 --lapses.wrong 2
    head -160 train.jsonl > short.jsonl && head -30 train.validation.jsonl > val.jsonl
    mind train --output runs/demo --method mind --student.model bench/testbed/student --student.max-length 512 \
        --data.train short.jsonl --data.heldout val.jsonl --data.evaluation train.id.jsonl \
        --objective.normalize token --train.tokens-per-step 1024 --train.learning-rate 1e-3 --train.max-steps 100 \
        --evaluation.questions 100 --evaluation.batch-size 100 --evaluation.max-new-tokens 100
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

PICTURE = Path(__file__).parent / "images" / "report.png"
WIDTH = 1100


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("report", type=Path, help="report.html of a run")
    report = parser.parse_args().report
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        parser.error("chromium is not on PATH")
    if not report.is_file():
        parser.error(f"{report}: no such file")
    from PIL import Image
    from playwright.sync_api import sync_playwright  # not a requirement of the package

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.goto(report.resolve().as_uri())
        # The headlines, and below them the first pictures: what lies between is tables and text.
        page.add_style_tag(content="section:not(:has(figure)) { display: none }")
        end = page.locator("figure").nth(3).bounding_box()
        height = end["y"] + end["height"] + 24
        page.screenshot(path=PICTURE, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
        browser.close()
    Image.open(PICTURE).convert("RGB").quantize(256, kmeans=3).save(
        PICTURE, optimize=True
    )  # half the size, the same hues
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
