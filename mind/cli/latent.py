"""`mind latent`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from mind.cli.terminal import note, print_table, say
from mind.latent.config import LatentConfig, check_packages

if TYPE_CHECKING:
    from mind.latent.probes import Probe


@dataclass(frozen=True)
class Latent(LatentConfig):
    """Say what the hidden states of single-perspective students hold: the perspective, its wording, or the student.

    Experts are runs of `mind train --method single --data.only NAME`, one for each perspective and --train.seed, two
    seeds or more; null experts have --data.shuffle-perspectives N beside that. Started again with the same --output,
    only what is missing is computed; latent.npz keeps the vectors.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]


def latent(options: Latent) -> None:
    check_packages()
    note("loading PyTorch and transformers")
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


def _accuracy(probe: Probe | None) -> str:
    """As in "38.9 % (22.3 to 55.6)"."""
    from mind.report.tables import NOTHING

    if probe is None:
        return NOTHING
    low, high = probe.accuracy.low or 0, probe.accuracy.high or 0
    return f"{100 * probe.accuracy.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
