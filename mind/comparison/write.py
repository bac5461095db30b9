"""Writes the files of a comparison into the experiment's folder: comparison.json, comparison.md and comparison.html."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from mind.comparison.bootstrap import DRAWS
from mind.comparison.compare import Comparison, compared
from mind.comparison.markdown import comparison_markdown, origin
from mind.comparison.pictures import pictures
from mind.comparison.reading import read_results
from mind.comparison.tables import accuracy_table, answer_table, cost_table, seed_table
from mind.comparison.wording import NOT_THE_PAPERS, notes, sentences
from mind.errors import MissingError
from mind.files import check_new_folder, replacing
from mind.report.page import page_template
from mind.report.pictures import PAGE_COLORS

NAME = "comparison"


def write_comparison(
    folder: Path,
    reference: str | None = None,
    baselines: Sequence[str] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Compares the methods of the experiment in a folder, and writes the results; the arguments are those of
    `compared`.

    The same results give the same bytes. Raises MindError as `read_results` and `compared`, before anything is written,
    and if SciPy is missing.
    """
    if importlib.util.find_spec("scipy") is None:
        raise MissingError("mind compare needs the package scipy: pip install 'mind-kernels[compare]'")
    results = read_results(folder)
    check_new_folder(folder)
    comparison = compared(results, reference, baselines, draws=draws, seed=seed)
    said = {"sentences": sentences(comparison), "notes": notes(comparison)}
    texts = {
        "json": json.dumps({**said, **dataclasses.asdict(comparison)}, indent=2, allow_nan=False) + "\n",
        "md": comparison_markdown(comparison),
        "html": page_template("comparison.html").render(
            comparison=comparison,
            **said,
            not_the_papers=NOT_THE_PAPERS,
            tables=[
                accuracy_table(comparison), cost_table(comparison), answer_table(comparison), seed_table(comparison),
            ],
            pictures=pictures(comparison, results),
            page_colors=PAGE_COLORS,
            origin=origin(comparison),
        ),
    }  # fmt: skip
    for ending, text in texts.items():
        with replacing(folder / f"{NAME}.{ending}") as file:
            file.write(text)
    return comparison
