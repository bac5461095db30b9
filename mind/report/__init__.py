"""A run folder as one self-contained page: `write_report(run)` writes `run/report.html`.

The page needs no network and no script: the pictures are inline SVG whose text and rules take the page's colours, so
that one file serves light and dark. Read are config.json and metrics.jsonl, and, where present, evaluation.json and
status.json. Every text that comes from a run is escaped: by jinja2 in the page, by matplotlib in a picture.
"""

from mind.report.page import write_report
from mind.report.pictures import perspective_inks
from mind.report.reading import Metrics, binned, running_mean
from mind.report.tables import evaluation_table

__all__ = ["Metrics", "binned", "evaluation_table", "perspective_inks", "running_mean", "write_report"]
