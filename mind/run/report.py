"""The report of a run, with what its method shows."""

from __future__ import annotations

from pathlib import Path

from mind.methods import load_run_config, method_class
from mind.report.page import write_report
from mind.run_folder import RunFolder


def write_run_report(folder: RunFolder) -> Path:
    """Writes the report of a run, also of one that was interrupted, and returns its path.

    Raises MindError for a folder without configuration or metrics, and for files of it that are malformed.
    """
    config = load_run_config(folder.config)
    method = method_class(config.method)
    return write_report(folder, method.title, method.sections(config))
