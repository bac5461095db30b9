"""Defines the views: who reads (a student or a text encoder), and which texts.

    V1      each expert, over its own greedy answer
    V2      each expert, over the teacher's rationale of its perspective
    V3      the base student, over the teacher's rationales: what their wording gives to a student that learned nothing
    V3 own  the base student, over the experts' answers
    V4      each expert, at the end of the prompt: no text of any perspective is there, only what the weights hold
    V5      TF-IDF of words, numbers and signs in the teacher's rationales
    V5 own  the same of the experts' answers
    V6      sentence embeddings of the teacher's rationales, if an encoder is given
    V6 own  the same of the experts' answers

V1 is compared with views of the same texts (own) as well as with those of the teacher's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from mind.latent.clusters import Clusters, clusters_of
from mind.latent.collecting import Vectors
from mind.latent.config import LatentConfig
from mind.latent.probes import FOLDS, Probe, probe_by_question, probe_new_students
from mind.latent.students import FEWEST_QUESTIONS, Students
from mind.methods.mind.features import SentenceEncoder

WHAT = {
    "V1": "experts, over their own answers",
    "V2": "experts, over the teacher's rationales",
    "V3": "base student, over the teacher's rationales",
    "V3 own": "base student, over the experts' answers",
    "V4": "experts, at the end of the prompt",
    "V5": "TF-IDF of the teacher's rationales",
    "V5 own": "TF-IDF of the experts' answers",
    "V6": "sentence embeddings of the teacher's rationales",
    "V6 own": "sentence embeddings of the experts' answers",
}
OWN = ("V1", "V3 own", "V5 own", "V6 own")
"""Views of the experts' own answers."""
WITHOUT_SEEDS = ("V3", "V5", "V6")
"""Views without experts."""
TERMS = 2000
"""Number of the most frequent terms in TF-IDF."""


@dataclass(frozen=True)
class Measured:
    """The measurements of a view's vectors; None for one that is not possible, for a reason in `Analysis.missing`."""

    questions: int
    clusters: Clusters
    by_question: Probe | None
    new_student: Probe | None


def views_of(
    vectors: Vectors, students: Students, encoder: SentenceEncoder | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Vectors (E, K, N, D) by view, for the experts and for the null experts. Views of own answers only cover questions
    to which every student gave an answer with text."""
    teacher = teacher_texts(students)
    answered = answered_by_all(vectors)
    experts, null, texts = vectors.experts, vectors.null, vectors.experts.texts[:, :, answered]
    shape, own_shape = (1, len(students.perspectives), len(students.questions), -1), (*texts.shape, -1)
    views = {"V1": experts.own[:, :, answered], "V2": experts.teacher, "V3": vectors.base_teacher}
    views |= {"V3 own": vectors.base_own[:, :, answered], "V4": experts.prompt}
    views |= {"V5": _tf_idf(teacher).reshape(shape)}
    if texts.size:
        views["V5 own"] = _tf_idf(texts.ravel().tolist()).reshape(own_shape)
    if encoder is not None:
        embeddings = [encoder.encode(some, lambda _: None).numpy() for some in (teacher, texts.ravel().tolist())]
        views |= {"V6": embeddings[0].reshape(shape), "V6 own": embeddings[1].reshape(own_shape)}
    of_null = {} if null is None else {"V1": null.own[:, :, answered], "V2": null.teacher, "V4": null.prompt}
    return {name: views[name] for name in WHAT if name in views}, of_null


def answered_by_all(vectors: Vectors) -> np.ndarray:
    """(N,) bool: the questions to which each expert and null expert gave an answer with text before its suffix."""
    groups = [vectors.experts] if vectors.null is None else [vectors.experts, vectors.null]
    return np.all([np.isfinite(group.own).all((0, 1, 3)) for group in groups], 0)


def teacher_texts(students: Students) -> list[str]:
    """The teacher's rationales (K N), all of the first perspective first."""
    return [
        next(one.text for one in question.rationales if one.perspective == name)
        for name in students.perspectives
        for question in students.questions
    ]


def term_vectorizer() -> TfidfVectorizer:
    """TF-IDF of terms: a term is a word, a number or a sign, or a pair of these. It represents the surface of a text.

    All numbers are one term: which number it is says nothing about a perspective, and as rare terms they would outweigh
    the others once columns are scaled, which would make this control weaker than the wording is.
    """
    return TfidfVectorizer(
        preprocessor=lambda text: re.sub(r"\d+", "0", text.lower()),
        ngram_range=(1, 2),
        sublinear_tf=True,
        token_pattern=r"\w+|[^\w\s]",
        max_features=TERMS,
        dtype=np.float32,  # pyright: ignore[reportArgumentType]  # annotated by its default alone
    )


def _tf_idf(texts: Sequence[str]) -> np.ndarray:
    """Vectors (R, at most TERMS) of texts, each of which has at least one term."""
    return term_vectorizer().fit_transform(texts).toarray()


def measured(view: str, vectors: np.ndarray, config: LatentConfig) -> Measured | None:
    """The measurements of a view's vectors (E, K, N, D); None if there are too few questions for any."""
    seeds, _, questions, _ = vectors.shape
    if questions < FEWEST_QUESTIONS:
        return None
    by_question = probe_by_question(vectors, config) if questions >= FOLDS else None
    if view in WITHOUT_SEEDS:
        new_student = by_question  # without students, a new question is the only thing to test on
    else:
        new_student = probe_new_students(vectors, config) if questions >= FOLDS and seeds > 1 else None
    return Measured(questions, clusters_of(vectors, config), by_question, new_student)


def missing_views(
    experts: Mapping[str, np.ndarray], null: Mapping[str, np.ndarray], vectors: Vectors, config: LatentConfig
) -> list[str]:
    """What cannot be measured, and why, in sentences."""
    total = len(vectors.experts.own[0, 0])
    sentences = []
    answered = int(answered_by_all(vectors).sum())
    own = ", ".join(name for name in OWN if name in experts)
    if answered < total:
        sentences.append(
            f"{total - answered} of {total} questions are left out of {own}: some "
            "student's answer to them has no text before its answer line."
        )
    if config.encoder is None:
        sentences.append("V6 (sentence embeddings) is left out: --encoder names no sentence-transformers model.")
    few = [name for name, some in experts.items() if some.shape[2] < FEWEST_QUESTIONS]
    if few:
        sentences.append(f"{', '.join(few)}: nothing is told, with fewer than {FEWEST_QUESTIONS} questions.")
    probed = [name for name, some in experts.items() if some.shape[2] < FOLDS]
    if probed:
        sentences.append(f"{', '.join(probed)}: no probes, which need {FOLDS} questions.")
    if len(vectors.experts.own) < 2:
        sentences.append("There is no probe of new students: the experts have one seed, and it needs two.")
    if not null:
        sentences.append("There is no control by null experts: no run has data.shuffle_perspectives.")
    elif len(next(iter(null.values()))) < 2:
        sentences.append("There is no probe of new null experts: they have one seed, and it needs two.")
    return sentences
