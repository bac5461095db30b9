"""Runs a latent analysis from its options to its page, in order:

runs and questions -> vectors of every student -> views -> clusters and probes -> what may be said -> files
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mind_kernels
from mind.errors import require
from mind.files import check_apart, check_new_folder, lock
from mind.latent.claim import Claim, claim_of
from mind.latent.collecting import Collector, Vectors
from mind.latent.config import LatentConfig
from mind.latent.coverage import Coverage, coverage_view, coverages, sampled_texts, uniform_coverage
from mind.latent.maps import Map, maps_of
from mind.latent.probes import FOLDS
from mind.latent.store import Store
from mind.latent.students import WANTED_QUESTIONS, Group, Students, read_students
from mind.latent.views import WHAT, Measured, measured, missing_views, views_of
from mind.methods.mind.features import SentenceEncoder
from mind.progress import Progress
from mind.provenance import command, file_digest, now, versions
from mind.report.latent import LATENT
from mind.report.page import write_latent_page
from mind.typed_json import save_json

FILES = (LATENT, "latent.npz", "latent.html", "vectors")
"""The files that an analysis writes."""


@dataclass(frozen=True)
class View:
    """The measurements of one view; None for those that are not possible."""

    what: str
    experts: Measured | None
    null: Measured | None


@dataclass(frozen=True)
class Analysis:
    """The content of latent.json."""

    date: str
    command: str
    versions: dict[str, str]
    student: str
    questions: dict[str, Any]
    """"file", "count" and "sha256"."""
    perspectives: list[str]
    runs: dict[str, Any]
    """"experts" and "null" (None without any): {"seeds", "folders"}, folders by seed and perspective."""
    options: LatentConfig
    views: dict[str, View]
    claim: Claim
    missing: list[str]
    """What cannot be measured, and why, in sentences."""
    coverage: list[Coverage]
    coverage_view: str | None
    """The view whose vectors determine the perspectives of samples, "V5" or "V6"; None if nothing was sampled."""
    uniform_coverage: float | None
    """The coverage of samples whose perspectives are all equally likely; None if nothing was sampled."""
    maps: list[Map]


def analyze(config: LatentConfig) -> Analysis:
    """Analyzes the runs and writes latent.json, latent.npz and latent.html into `config.output`.

    All input is checked before the folder is changed. Vectors that an earlier call left there are used again if they
    come from the same runs and questions with the same length of answers.

    Raises MindError as `read_students`, for an encoder that cannot be found, for texts that are too long for the
    student, and for a folder that holds something else or in which another process works.
    """
    output = Path(config.output)
    _check_output(output, config)
    students = read_students(config)
    encoder = None if config.encoder is None else SentenceEncoder(config.encoder, "--encoder")
    store = Store(output)
    collector = Collector(students, config, store)
    output.mkdir(parents=True, exist_ok=True)
    folder = os.open(output, os.O_RDONLY)
    try:
        lock(folder, f"{output}: another process analyzes there now; name another --output")
        vectors = collector.collect()
        samples = sampled_texts(students, config, collector) if config.coverage else {}
        store.finish(collector.identities)
        analysis = analysis_of(students, vectors, samples, config, encoder)
        save_json(analysis, output / LATENT)
        write_latent_page(output)
    finally:
        os.close(folder)
    return analysis


def analysis_of(
    students: Students,
    vectors: Vectors,
    samples: Mapping[str, Any],
    config: LatentConfig,
    encoder: SentenceEncoder | None,
) -> Analysis:
    """Computes the statistics of the collected vectors and `samples`, student -> texts (N, M), which may be empty."""
    experts, null = views_of(vectors, students, encoder)
    tables = [(name, some, group) for group, views in enumerate((experts, null)) for name, some in views.items()]
    found: list[dict[str, Measured | None]] = [{}, {}]
    with Progress("clusters and probes", len(tables), "view") as bar:
        for name, some, group in tables:
            found[group][name] = measured(name, some, config)
            bar.update(1)
    known = [{name: one for name, one in some.items() if one is not None} for some in found]
    count = len(students.questions)
    covered = coverages(dict(samples), students, config, encoder) if count >= FOLDS else []
    return Analysis(
        date=now(),
        command=command(),
        versions={"mind-kernels": mind_kernels.__version__}
        | versions(("torch", "transformers", "scikit-learn", "numpy")),
        student=students.base.model,
        questions={"file": config.questions, "count": count, "sha256": file_digest(config.questions)},
        perspectives=list(students.perspectives),
        runs={"experts": _folders(students.experts), "null": students.null and _folders(students.null)},
        options=config,
        views={name: View(WHAT[name], found[0].get(name), found[1].get(name)) for name in WHAT if name in experts},
        claim=claim_of(*known),
        missing=[*missing_views(experts, null, vectors, config), *_missing(config, samples, covered, count)],
        coverage=covered,
        coverage_view=coverage_view(encoder) if covered else None,
        uniform_coverage=uniform_coverage(len(students.perspectives), config.samples, config.seed) if covered else None,
        maps=maps_of(experts, null, config),
    )


def _missing(config: LatentConfig, samples: Mapping[str, Any], covered: list[Coverage], count: int) -> list[str]:
    sentences = []
    if not config.coverage:
        sentences.append("How many perspectives a student's samples have is not told: --coverage names no run.")
    elif count < FOLDS:
        sentences.append(f"How many perspectives a student's samples have is not told: that needs {FOLDS} questions.")
    elif silent := [name for name in samples if name not in {one.student for one in covered}]:
        sentences.append(f"{', '.join(silent)}: no sample has a text before its answer line, so no coverage is told.")
    if count < WANTED_QUESTIONS:
        sentences.append(f"There are {count} questions: of fewer than {WANTED_QUESTIONS} little can be told.")
    return sentences


def _folders(group: Group) -> dict[str, Any]:
    return {
        "seeds": list(group.seeds),
        "folders": [[str(run.folder.path) for run in runs] for runs in group.runs],
    }


def _check_output(output: Path, config: LatentConfig) -> None:
    """Raises MindError for a folder that cannot be written to, or that holds anything other than an analysis."""
    check_new_folder(output)
    for name in FILES:
        check_apart(output / name, (config.questions, *config.runs, *config.coverage))
    there = [path.name for path in output.iterdir()] if output.is_dir() else []
    others = [name for name in there if name not in FILES and not name.endswith(".partial")]
    require(not others, f"{output}: holds {others[:1]}, which is of no analysis: name another --output")
