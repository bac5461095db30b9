"""What the report shows of a run of MIND, and what it remarks on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mind.config import MindConfig
from mind.report.charts import (
    ACCURACY,
    AMBER,
    BLUE,
    DROPPED_MASS,
    L_REAL,
    LEARNING_RATE,
    LOSS,
    Chart,
    Section,
    Series,
)

if TYPE_CHECKING:
    from mind.report.reading import Metrics

FEWEST_LINES = 8
"""Of metrics.jsonl, for a remark on how a run went."""
OF_METANET = ("metanet", "shuffled")
"""Values of `metanet.scores` with which MetaNet scores."""
LEAST_RISE = 1e-3
"""Of L_meta, in nats, for a remark: near 0 a batch's noise is a large share of it and says nothing."""


def sections(config: MindConfig) -> tuple[Section, Section]:
    """The student, with its objective's parts; the scores and what they select, with MetaNet if they are its own."""
    scores = (*_selection(config), *(METANET if config.metanet.scores in OF_METANET else (LEARNING_RATE,)))
    return Section("Student", _student(config)), Section("Scores and selection", scores)


def remarks(config: MindConfig, metrics: Metrics) -> list[str]:
    """What MetaNet or the selection by its scores did not do."""
    return list(_remarks(config, metrics)) if config.metanet.scores in OF_METANET else []


def _remarks(config: MindConfig, metrics: Metrics) -> Iterator[str]:
    saturated = _known(metrics.series("saturated"))[-FEWEST_LINES:]
    if len(saturated) and saturated.mean() > 0.5:
        yield (
            f"{saturated.mean():.0%} of MetaNet's latest scores are below 0.01 or above 0.99, where they hardly learn: "
            f"the losses differ by more than scores can; {_smaller(config)}"
        )
    for phase, when in (("warmup", "in the warm-up"), ("train", "in training")):
        losses = _known(metrics.series("meta_loss", phase))
        if len(losses) >= FEWEST_LINES:
            quarter = len(losses) // 4
            first, last = losses[:quarter].mean(), losses[-quarter:].mean()
            if last > max(1.1 * first, first + LEAST_RISE):
                yield f"L_meta rose {when}, from {first:.3g} to {last:.3g}: MetaNet does not follow the student"
    names = list(config.data.perspectives)
    shares = dict(zip(names, map(_known, metrics.by_perspective("selected_share", names)), strict=True))
    if len(metrics.steps) >= FEWEST_LINES and all(np.ptp(share) == 0 for share in shares.values() if len(share)):
        yield f"the selection never changed: {_same_selection({n: float(s[0]) for n, s in shares.items() if len(s)})}"


def _smaller(config: MindConfig) -> str:
    """What makes the losses differ by less."""
    spread = config.metanet.spread
    return "metanet.spread 0.25 scales them" if spread is None else f"a metanet.spread below {spread:g} scales them"


def _same_selection(shares: Mapping[str, float]) -> str:
    """What was selected throughout, by the share of the questions for which each perspective was."""
    selected = [name for name, share in shares.items() if share > 0]
    if all(share == 1 for share in shares.values()):
        return (
            "every rationale was selected, so nothing was filtered; objective.beta nearer to 1, with metanet.anchor "
            "max, or a larger metanet.spread makes it narrower"
        )
    if len(selected) == 1 and shares[selected[0]] == 1:
        return f"{selected[0]} alone was selected, whatever the question; a smaller objective.beta makes it wider"
    return "each perspective was selected for the same share of the questions throughout"


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _student(config: MindConfig) -> tuple[Chart, ...]:
    weight = config.objective.consistency_weight
    consistency = Series("consistency", f"λ × consistency, λ = {weight:g} (lower panel)", AMBER, weight)
    return (
        replace(
            LOSS,
            caption="Total and SFT should fall together; a wide gap means that the consistency term rules the "
            "objective.",
            series=(*LOSS.series, Series("sft_loss", "SFT", BLUE, dashes=(2.5, 2))),
            lower=Chart("consistency", "", "λ L_cons", "", (consistency,)),
        ),
        ACCURACY,
        replace(
            L_REAL,
            caption="The lowest line is the perspective that the student finds easiest; all should fall, also those "
            "rarely selected.",
        ),
        Chart(
            "jsd",
            "Divergence between perspectives",
            "mean JSD, nats",
            "A falling mean JSD means that the answers agree more, whichever perspective led to them.",
        ),
        DROPPED_MASS,
    )


def _selection(config: MindConfig) -> tuple[Chart, ...]:
    return (
        Chart(
            "score",
            "MetaNet's score of each perspective",
            "score",
            "What the student finds easy (a low L_real) should be scored high.",
            form="perspectives",
        ),
        Chart(
            "alpha",
            "Weight of each perspective",
            "mean α",
            "One line near 1 means that MetaNet has collapsed onto one perspective; equal lines, that it does not "
            "choose.",
            form="perspectives",
        ),
        Chart(
            "selected",
            "Selected perspectives per question (I_dyn)",
            "perspectives",
            f"At 1 only the best perspective is left, at {len(config.data.perspectives)} nothing is filtered; a size "
            "that moves shows that the choice follows the student.",
            from_zero=True,
        ),
        Chart(
            "alpha_entropy",
            "Entropy of the weights",
            "nats",
            f"At {math.log(len(config.data.perspectives)):.2f} all {len(config.data.perspectives)} rationales have the "
            "same weight, at 0 a single one has all of it.",
            from_zero=True,
        ),
        Chart(
            "selected_share",
            "Share of questions where a perspective is selected",
            "",
            "Rows that stay dark are always studied; a row that turns pale is one that the student has stopped "
            "getting.",
            form="shares",
        ),
    )


METANET = (
    Chart(
        "meta_loss",
        "Loss of MetaNet (L_meta)",
        "KL, nats",
        "It should fall in the warm-up and stay low after it: then the scores follow what the student can learn.",
        (Series("meta_loss", "training", BLUE),),
        warmup="warm-up, MetaNet alone",
    ),
    replace(
        LEARNING_RATE,
        title="Learning rates",
        caption="MetaNet's is a share of the rate of its warm-up: learning more slowly is its inertia against the "
        "noise of one batch.",
        series=(*LEARNING_RATE.series, Series("meta_learning_rate", "MetaNet", AMBER)),
    ),
)
"""What is shown of MetaNet itself."""
