"""Writes the report of a run, including the sections of its method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mind.errors import MindError
from mind.methods import load_run_config, method_class, method_title
from mind.report.page import write_report
from mind.report.reading import Metrics
from mind.run_folder import RunFolder


def write_run_report(folder: RunFolder) -> Path:
    """Writes the report of a run, even an interrupted one, and returns its path.

    Raises MindError for a folder without configuration or metrics, and for malformed files in it.
    """
    config = load_run_config(folder.config)
    if folder.stages and not folder.metrics.exists():
        stage = folder.stages[-1].path
        raise MindError(f"{folder.path}: its last stage has not begun: `mind report {stage}` reports on one before it")
    return write_report(
        folder, method_title(config.method), method_class(config.method).sections(config), run_remarks(folder)
    )


def run_remarks(folder: RunFolder) -> Sequence[str]:
    """Remarks of the run's method on what looks wrong in its metrics."""
    config = load_run_config(folder.config)
    return method_class(config.method).remarks(config, Metrics(folder.metrics))
