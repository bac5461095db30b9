"""The page of a run: templates/report.html filled with its pictures and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup

from mind.config import flat
from mind.display import readable
from mind.errors import require
from mind.files import replacing
from mind.report.answers import Answers
from mind.report.charts import LOSS, MACHINE, Section, Series
from mind.report.latent import latent_section
from mind.report.pictures import DRAWN_POINTS, PAGE_COLORS, STYLE, Picture, Pictures
from mind.report.reading import Metrics, number_at, value_at
from mind.report.stages import stage_rows
from mind.report.tables import evaluation_table, headline_rows, origin_rows, status_rows, work_table
from mind.run_folder import RunFolder

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_CHARACTERS = 1_200
"""A longer text is cut there, with a note."""


def write_report(folder: RunFolder, method: str, sections: Sequence[Section], remarks: Sequence[str] = ()) -> Path:
    """Writes the report of a run whole or not at all, and returns its path.

    Args:
        folder: the run; what an interrupted one lacks is said in the report.
        method: the name of its method, for the title.
        sections: what the method shows; the section on the machine follows them.
        remarks: sentences on what looks wrong in the run.

    Raises:
        MindError: names the missing configuration or metrics, the file and line of malformed JSON, or says that there
            are no train lines.
    """
    config, metrics = folder.read_config(), Metrics.of(folder)
    evaluation, status = folder.read_evaluation(), folder.read_status()
    perspectives = _perspectives(config, metrics, sections)
    pictures = Pictures(metrics, perspectives)
    answers = Answers(folder)
    table = evaluation_table(evaluation, answers.right)
    work = metrics.work()
    with matplotlib.rc_context(STYLE):
        shown = [_drawn(section, pictures) for section in (*sections, MACHINE)]
    page = page_template("report.html").render(
        run=folder.path.resolve().name, method=method, model=value_at(config, "student", "model"),
        perspectives=perspectives, steps=len(metrics.steps), window=pictures.window,
        bin_size=math.ceil(len(metrics.steps) / DRAWN_POINTS), table=table,
        headlines=headline_rows(table, metrics, _loss(sections)), samples=answers.samples(), evaluation=evaluation,
        sections=shown, stages=stage_rows(folder, metrics),
        work=work_table(work, metrics.counted()) if work else [],
        latent=latent_section(folder.latent),
        page_colors=PAGE_COLORS, notes=[*metrics.notes.values(), *remarks, *_leaks(config, evaluation)],
        status=status_rows(status, without_work=work is not None), config=flat(config),
        origin=origin_rows(folder.read_starts(), folder.read_inputs()),
    )  # fmt: skip
    with replacing(folder.report) as file:
        file.write(page)
    return folder.report


def _leaks(config: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[str]:
    """A sentence for each evaluation set of which training questions give something away."""
    left_out = value_at(config, "data", "leaks") == "drop"
    fate = "which were left out of the training" if left_out else "so results on those say little about new ones"
    return [
        f"{label}: {count} of its questions share 13 words in a row with training questions or rationales, {fate}."
        for label in value_at(evaluation, "leaks") or ()
        if (count := number_at(evaluation, "leaks", label, "test"))
    ]


def write_latent_page(folder: Path) -> Path:
    """Writes latent.html beside the latent.json in `folder`, and returns its path; raises MindError without one."""
    section = latent_section(folder)
    require(section is not None, f"{folder}: there is no analysis to show: `mind latent` writes one")
    page = page_template("latent.html").render(latent=section, page_colors=PAGE_COLORS)
    with replacing(folder / "latent.html") as file:
        file.write(page)
    return folder / "latent.html"


def _perspectives(config: dict, metrics: Metrics, sections: Sequence[Section]) -> list[str]:
    """Those that the configuration names, and further ones that the metrics hold."""
    named = value_at(config, "data", "perspectives")
    named = [str(name) for name in named] if isinstance(named, list) else []
    tables = [chart.key for section in sections for chart in section.charts if chart.form != "lines"]
    return list(dict.fromkeys(named + metrics.perspectives(tables)))


def _loss(sections: Sequence[Section]) -> Series:
    """The first line of the chart of losses."""
    charts = [chart for section in sections for chart in section.charts if chart.key == LOSS.key]
    return (charts or [LOSS])[0].series[0]


def _drawn(section: Section, pictures: Pictures) -> tuple[str, list[Picture]]:
    return section.title, [pictures.draw(chart) for chart in section.charts if pictures.wants(chart)]


@cache
def page_template(name: str) -> jinja2.Template:
    """A template of this folder, which prints texts from outside so that a reader sees them and nothing obeys them."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        finalize=_printed,
    )
    return environment.get_template(name)


def _printed(value: Any) -> Any:
    """What the page prints for `value`; jinja2 escapes it afterwards."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return readable(value, SHOWN_CHARACTERS)
