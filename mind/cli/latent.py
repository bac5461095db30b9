"""`mind latent`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mind.cli.folders import check_kind
from mind.cli.terminal import note_loading, print_table, say
from mind.display import number_of
from mind.latent.config import LatentConfig, check_packages

if TYPE_CHECKING:
    from mind.latent.probes import Probe


@dataclass(frozen=True)
class Latent(LatentConfig):
    """Test whether hidden states of single-perspective students hold the perspective, only its wording, or the student.

    Experts are runs of `mind train --method single --data.only NAME`, one per perspective and --train.seed, with at
    least two seeds; null experts also have --data.shuffle-perspectives N. Started again with the same --output, the
    command computes only what is missing; latent.npz keeps the vectors.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]


def latent(options: Latent) -> None:
    check_packages()
    for run in (*options.runs, *options.coverage):
        check_kind(run, "a run")
    note_loading("PyTorch", "transformers")
    from mind.latent.analyze import analyze
    from mind.report.tables import NOTHING

    analysis = analyze(options)
    rows = []
    for name, view in analysis.views.items():
        cells = {"view": f"{name}: {view.what}"}
        for title, group in (("experts", view.experts), ("null experts", view.null)):
            cells[f"new student: {title}"] = _accuracy(group and group.new_student)
        for title, group in (("experts", view.experts), ("null experts", view.null)):
            cells[f"by question: {title}"] = _accuracy(group and group.by_question)
        cells["NMI"] = NOTHING if view.experts is None else f"{view.experts.clusters.nmi.value:.2f}"
        rows.append(cells)
    print_table("can the perspective be recognized?", rows)
    for sentence in analysis.missing:
        say(sentence)
    say(f"result: {analysis.claim.sentence}")
    say(f"page: {options.output}/latent.html")


def kept_vectors(options: Latent) -> str:
    """How many results of students are stored, in words; empty without any."""
    from mind.latent.store import Store

    count = Store(Path(options.output)).count()
    are = "is" if count == 1 else "are"
    return f"{number_of(count, 'result')} of students {are} stored and not computed again" if count else ""


def _accuracy(probe: Probe | None) -> str:
    """An accuracy with its interval, such as "38.9 % (22.3 to 55.6)"."""
    from mind.report.tables import NOTHING

    if probe is None:
        return NOTHING
    low, high = probe.accuracy.low or 0, probe.accuracy.high or 0
    return f"{100 * probe.accuracy.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
