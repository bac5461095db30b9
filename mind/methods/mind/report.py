"""What the report shows of a run of MIND."""

from __future__ import annotations

from dataclasses import replace

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


def sections(config: MindConfig) -> tuple[Section, Section]:
    """The student, with its objective's parts; MetaNet, with what it selects."""
    return Section("Student", _student(config)), Section("MetaNet and selection", _metanet(config))


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


def _metanet(config: MindConfig) -> tuple[Chart, ...]:
    return (
        Chart(
            "score",
            "Score of each perspective",
            "score",
            "The order should be that of L_real upside down: what is easy for the student is scored high.",
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
            "Size of I_dyn",
            "perspectives",
            f"At 1 only the best perspective is left, at {len(config.data.perspectives)} nothing is filtered; a size "
            "that moves shows that the choice follows the student.",
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
        Chart(
            "meta_loss",
            "Meta loss",
            "KL, nats",
            "It should fall in the warm-up and stay low after it: then the scores follow what the student can learn.",
            (Series("meta_loss", "training", BLUE),),
            warmup="warm-up, MetaNet alone",
        ),
        replace(
            LEARNING_RATE,
            title="Learning rates",
            caption="MetaNet should stay well below the student: the slower rate is its inertia against the noise of "
            "one batch.",
            series=(*LEARNING_RATE.series, Series("meta_learning_rate", "MetaNet", AMBER)),
        ),
    )
