"""The configuration: validation names the field and its value."""

from __future__ import annotations

import pytest

from mind.config import (
    DataConfig,
    EvaluationConfig,
    MetaNetConfig,
    MindConfig,
    ObjectiveConfig,
    StudentConfig,
    TrainConfig,
)
from mind.errors import MindError


def test_metanet_learns_at_a_tenth_of_the_students_rate():
    assert MindConfig(train=TrainConfig(learning_rate=2e-4)).metanet_learning_rate == pytest.approx(2e-5)
    assert MindConfig(metanet=MetaNetConfig(learning_rate=0.5)).metanet_learning_rate == 0.5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ObjectiveConfig(beta=0.0), r"objective.beta is 0.0: expected a number in \(0, 1\]"),
        (lambda: ObjectiveConfig(beta=1.5), r"objective.beta is 1.5"),
        (lambda: ObjectiveConfig(tau_student=-1), r"objective.tau_student is -1"),
        (lambda: ObjectiveConfig(consistency_weight=-1), r"objective.consistency_weight"),
        (lambda: ObjectiveConfig(gradient_threshold=1.0), r"objective.gradient_threshold is 1.0"),
        (lambda: DataConfig(perspectives=("one",)), r"K = 1 perspectives: MIND needs 2 <= K <= 32"),
        (lambda: DataConfig(perspectives=("a", "a")), r"data.perspectives names a twice"),
        (lambda: DataConfig(heldout_fraction=1.0), r"data.heldout_fraction is 1.0"),
        (lambda: DataConfig(max_questions=1), r"data.max_questions"),
        (lambda: DataConfig(generated_heldout=0), r"data.generated_heldout is 0"),
        (lambda: MetaNetConfig(width=10), r"metanet.width 10 is not a multiple of metanet.synergy_heads 4"),
        (lambda: MetaNetConfig(accumulation=0), r"metanet.accumulation is 0"),
        (lambda: MetaNetConfig(ema=1.0), r"metanet.ema is 1.0"),
        (lambda: MetaNetConfig(learning_rate=0.0), r"metanet.learning_rate is 0.0"),
        (lambda: StudentConfig(max_length=1), r"student.max_length is 1"),
        (lambda: StudentConfig(lora_rank=0), r"student.lora_rank is 0"),
        (lambda: TrainConfig(questions_per_step=0), r"train.questions_per_step is 0"),
        (lambda: TrainConfig(tokens_per_step=0), r"train.tokens_per_step is 0"),
        (lambda: TrainConfig(share_prompts="maybe"), r"train.share_prompts is 'maybe': expected auto, always or never"),
        (
            lambda: MetaNetConfig(feedback="every-0"),
            r"metanet.feedback is 'every-0': expected all, selected or every-N",
        ),
        (lambda: MetaNetConfig(feedback="none"), r"metanet.feedback is 'none'"),
        (lambda: MetaNetConfig(warmup_questions=0), r"metanet.warmup_questions is 0"),
        (lambda: TrainConfig(learning_rate=0), r"train.learning_rate is 0"),
        (lambda: TrainConfig(report_to="paper"), r"train.report_to is 'paper': expected tensorboard, wandb or none"),
        (lambda: TrainConfig(epochs=0), r"train.epochs"),
        (lambda: TrainConfig(epochs=float("inf")), r"train.epochs is inf: expected a finite number"),
        (lambda: TrainConfig(warmup_ratio=2.0), r"train.warmup_ratio is 2.0: expected a share in \[0, 1\]"),
        (lambda: TrainConfig(warmup_ratio=-0.1), r"train.warmup_ratio is -0.1"),
        (lambda: TrainConfig(max_steps=-5), r"train.max_steps is -5: expected -1 or at least 1"),
        (lambda: TrainConfig(max_steps=0), r"train.max_steps is 0"),
        (lambda: TrainConfig(max_grad_norm=-1.0), r"train.max_grad_norm is -1.0: expected a number >= 0"),
        (lambda: TrainConfig(seed=2**32), r"train.seed is 4294967296"),
        (lambda: MetaNetConfig(tau=float("inf")), r"metanet.tau is inf: expected a finite number"),
        (lambda: MetaNetConfig(width=0), r"metanet.width is 0: expected at least 1"),
        (lambda: EvaluationConfig(batch_size=0), r"evaluation.batch_size is 0"),
    ],
)
def test_bad_values_are_named(build, message):
    with pytest.raises(MindError, match=message):
        build()


def test_feedback_is_an_interval_of_steps():
    assert [MetaNetConfig(feedback=name).feedback_interval for name in ("all", "selected", "every-1", "every-12")] == [
        1,
        0,
        1,
        12,
    ]
