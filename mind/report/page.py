"""The page: templates/report.html filled with the pictures and tables of a run."""

import math
from pathlib import Path

import jinja2
import matplotlib

from mind.config import flat
from mind.files import replacing
from mind.report.pictures import DRAWN_POINTS, PAGE_COLOURS, STYLE, Pictures
from mind.report.reading import Metrics, number_at, read_object, value_at
from mind.report.tables import evaluation_table, headline_rows, work_table

TEMPLATES = Path(__file__).parent / "templates"


def write_report(run: Path) -> Path:
    """Write run/report.html whole or not at all, and return its path.

    Raises MindError that names a missing config.json or metrics.jsonl, the file and line of malformed JSON, or that
    there are no train lines. What an interrupted run lacks is said in the report.
    """
    run = Path(run)
    config, metrics = read_object(run / "config.json"), Metrics(run / "metrics.jsonl")
    evaluation, status = (read_object(f) if f.exists() else {} for f in (run / "evaluation.json", run / "status.json"))
    named = value_at(config, "data", "perspectives")
    named = [str(name) for name in named] if isinstance(named, list) else []
    perspectives = list(dict.fromkeys(named + metrics.perspectives()))
    table = evaluation_table(evaluation)
    work = metrics.work()
    pictures = Pictures(metrics, perspectives, number_at(config, "objective", "consistency_weight") or 0.0)
    with matplotlib.rc_context(STYLE):
        drawn = pictures.draw()
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.get_template("report.html").render(
        run=run.resolve().name, model=value_at(config, "student", "model"), perspectives=perspectives,
        steps=len(metrics.steps), window=pictures.window, bin_size=math.ceil(len(metrics.steps) / DRAWN_POINTS),
        headlines=headline_rows(table, metrics), table=table, evaluation=evaluation, pictures=drawn,
        work=work_table(work) if work else [], page_colours=PAGE_COLOURS, notes=list(metrics.notes.values()),
        status=flat(status), config=flat(config),
    )  # fmt: skip
    report = run / "report.html"
    with replacing(report) as file:
        file.write(page)
    return report
