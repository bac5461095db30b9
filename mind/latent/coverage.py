"""Measures how many perspectives a student's samples cover; a student that has collapsed into one path covers one.

A probe learns the perspectives from the teacher's rationales, by V6 or else by V5, and assigns the nearest one to each
sample; it does not learn from rationales of the sample's own question. The coverage of a question is exp(H) / K, with H
the entropy of the assigned perspectives: 1 / K for a single perspective, 1 for all K equally often.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from mind.config import StudentConfig
from mind.latent.collecting import Collector
from mind.latent.config import LatentConfig
from mind.latent.preprocessing import components_apart
from mind.latent.probes import FOLDS
from mind.latent.states import Reader
from mind.latent.students import Students
from mind.latent.views import teacher_texts, term_vectorizer
from mind.methods.mind.features import SentenceEncoder
from mind.progress import Progress


@dataclass(frozen=True)
class Coverage:
    """The coverage of one student."""

    student: str
    """Its run folder, or "base"."""
    method: str
    coverage: float
    low: float
    high: float
    """The bounds of the 95 % interval, by a bootstrap over questions."""
    shares: list[float]
    """The shares of the K perspectives, over all samples."""
    empty: int
    """Number of samples without text before their answer line, which are left out."""


def sampled_texts(students: Students, config: LatentConfig, collector: Collector) -> dict[str, np.ndarray]:
    """`config.samples` answers (N, M) of the base student and of each run of `coverage`, without their suffixes. A
    sample depends only on the seed, its question and its number."""
    runs = {"base": students.base} | {str(run.folder.path): run.student for run in students.others}
    sources = {"base": students.experts.runs[0][0].weights}
    sources |= {str(run.folder.path): run.identity for run in students.others}
    each, found = len(students.questions) * config.samples, {}
    with Progress("samples", len(runs) * each, "answer") as bar:
        for number, (name, student) in enumerate(runs.items()):
            source = f"{sources[name]} {config.samples} {config.seed}"
            compute = functools.partial(_sample, student, students, config, collector.prompts, bar, number * each)
            found[name] = collector.kept(f"samples-{number}", source, compute)["texts"]
            bar.reach((number + 1) * each)
    return found


def coverage_view(encoder: SentenceEncoder | None) -> str:
    """The view whose vectors the probe uses."""
    return "V5" if encoder is None else "V6"


def coverages(
    texts: dict[str, np.ndarray], students: Students, config: LatentConfig, encoder: SentenceEncoder | None
) -> list[Coverage]:
    """The coverage of each student's samples (N, M), without empty ones; needs at least FOLDS questions."""
    methods = {"base": "not trained"} | {str(run.folder.path): run.config.method for run in students.others}
    found = [_coverage(name, methods[name], some, students, config, encoder) for name, some in texts.items()]
    return [one for one in found if one is not None]


def uniform_coverage(perspectives: int, samples: int, seed: int) -> float:
    """The mean coverage of samples whose perspectives are all equally likely: below 1, since there are only a few
    samples."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(samples, np.full(perspectives, 1 / perspectives), size=2000)
    return float(_covered(counts).mean())


def _sample(
    student: StudentConfig,
    students: Students,
    config: LatentConfig,
    prompts: Sequence[Sequence[int]],
    bar: Progress,
    done: int,
) -> dict[str, np.ndarray]:
    reader = Reader(student, config)
    repeated = [prompt for prompt in prompts for _ in range(config.samples)]
    answers = reader.answers(repeated, lambda count: bar.reach(done + count), _draws(students, config))
    return {"texts": np.array([reader.text(ids) for ids in answers]).reshape(-1, config.samples)}


def _draws(students: Students, config: LatentConfig) -> torch.Tensor:  # (N M, max_new_tokens) float64 in [0, 1)
    rows = []
    for question in students.questions:
        for number in range(config.samples):
            name = f"{config.seed} sample {number} {question.id}"
            generator = torch.Generator().manual_seed(crc32(name.encode("utf-8", "surrogatepass")))
            rows.append(torch.rand(config.max_new_tokens, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


def _coverage(
    name: str,
    method: str,
    texts: np.ndarray,
    students: Students,
    config: LatentConfig,
    encoder: SentenceEncoder | None,
) -> Coverage | None:
    perspectives = len(students.perspectives)
    nearest = nearest_perspectives(texts, students, config, encoder)
    counts = np.array([np.bincount(row[row >= 0], minlength=perspectives) for row in nearest])
    each = _covered(counts[counts.sum(1) > 0])
    if not len(each):
        return None
    draws = each[np.random.default_rng(config.seed).integers(len(each), size=(config.draws, len(each)))].mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    shares, empty = counts.sum(0) / counts.sum(), int((nearest < 0).sum())
    return Coverage(name, method, float(each.mean()), float(low), float(high), shares.tolist(), empty)


def nearest_perspectives(
    texts: np.ndarray, students: Students, config: LatentConfig, encoder: SentenceEncoder | None
) -> np.ndarray:
    """The index of the perspective (N, M) that the probe assigns to each of the texts (N, M); -1 for an empty one."""
    rationales = teacher_texts(students)
    questions, names = len(texts), np.repeat(np.arange(len(students.perspectives)), len(texts))
    place = np.argwhere(np.char.str_len(np.char.strip(texts)) > 0)
    said = [str(texts[n, m]) for n, m in place]
    nearest = np.full(texts.shape, -1)
    if not said:
        return nearest
    if encoder is None:
        vectorizer: Any = term_vectorizer()
        taught, found = vectorizer.fit_transform(rationales).toarray(), vectorizer.transform(said).toarray()
    else:
        taught, found = (encoder.encode(some, lambda _: None).numpy() for some in (rationales, said))
    table = taught.reshape(-1, questions, taught.shape[1])
    taught, found = (table - table.mean(0)).reshape(taught.shape), found - table.mean(0)[place[:, 0]]
    question = np.tile(np.arange(questions), len(students.perspectives))
    for fold in range(FOLDS):
        train, test = question % FOLDS != fold, place[:, 0] % FOLDS == fold
        if test.any():
            points = components_apart(taught[train], found[test], config.components, config.seed)
            probe = LogisticRegression(max_iter=2000).fit(points[0], names[train])
            nearest[tuple(place[test].T)] = probe.predict(points[1])
    return nearest


def _covered(counts: np.ndarray) -> np.ndarray:
    """exp(H) / K (R,) from counts by perspective (R, K); no row may be all 0."""
    shares = counts / counts.sum(1, keepdims=True)
    entropy = -np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1)), 0).sum(1)
    return np.exp(entropy) / counts.shape[1]
