"""The configuration: validation names the field and its value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

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


def test_metanet_learns_at_a_tenth_of_the_rate_of_its_warm_up():
    for rate in (3e-5, 2e-4):  # of the student
        assert MindConfig(train=TrainConfig(learning_rate=rate)).metanet_learning_rate == pytest.approx(1e-4)
    slower = MindConfig(metanet=MetaNetConfig(warmup_learning_rate=5e-4, learning_rate_ratio=0.2))
    assert slower.metanet_learning_rate == pytest.approx(1e-4)
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
        (lambda: TrainConfig(share_prompts="maybe"), r"train.share_prompts is 'maybe': expected one of auto, alwa"),
        (
            lambda: MetaNetConfig(feedback="every-0"),
            r"metanet.feedback is 'every-0': expected all, selected or every-N",
        ),
        (lambda: MetaNetConfig(feedback="none"), r"metanet.feedback is 'none'"),
        (lambda: MetaNetConfig(warmup_questions=0), r"metanet.warmup_questions is 0"),
        (lambda: TrainConfig(learning_rate=0), r"train.learning_rate is 0"),
        (lambda: TrainConfig(report_to="paper"), r"train.report_to is 'paper': expected one of tensorboard, wan"),
        (lambda: TrainConfig(epochs=0), r"train.epochs"),
        (lambda: TrainConfig(epochs=float("inf")), r"train.epochs is inf: expected a finite number"),
        (lambda: TrainConfig(warmup_ratio=2.0), r"train.warmup_ratio is 2.0: expected a share in \[0, 1\]"),
        (lambda: TrainConfig(warmup_ratio=-0.1), r"train.warmup_ratio is -0.1"),
        (lambda: TrainConfig(max_steps=-5), r"train.max_steps is -5: expected -1 or 1 to 10,000,000"),
        (lambda: TrainConfig(max_steps=0), r"train.max_steps is 0"),
        (lambda: TrainConfig(max_grad_norm=-1.0), r"train.max_grad_norm is -1.0: expected a number >= 0"),
        (lambda: TrainConfig(seed=2**32), r"train.seed is 4294967296"),
        (lambda: MetaNetConfig(tau=float("inf")), r"metanet.tau is inf: expected a finite number"),
        (lambda: MetaNetConfig(width=0), r"metanet.width is 0: expected at least 1"),
        (lambda: EvaluationConfig(batch_size=0), r"evaluation.batch_size is 0"),
        (lambda: TrainConfig(max_steps=10**9), r"train.max_steps is 1000000000: expected -1 or 1 to 10,000,000"),
        (lambda: StudentConfig(dtype="float17"), r"student.dtype is 'float17': expected one of float32, bfloat16"),
        (lambda: StudentConfig(dtype=torch.bfloat16), r"student.dtype is torch.bfloat16: expected one of float32"),
        (lambda: StudentConfig(model=b"m"), r"student.model is b'm': expected a string"),
        (lambda: DataConfig(evaluation={"x.jsonl"}), r"data.evaluation is {'x.jsonl'}: expected a list"),
        (lambda: StudentConfig(model=" "), r"student.model is ' ': expected a text that is not blank"),
        (lambda: StudentConfig(lora="no"), r"student.lora is 'no': expected true or false"),
        (lambda: StudentConfig(lora_alpha=0), r"student.lora_alpha is 0: expected at least 1"),
        (lambda: StudentConfig(lora_targets=()), r"student.lora_targets is empty"),
        (lambda: StudentConfig(lora_targets=("q_proj", 3)), r"student.lora_targets holds 3: expected a string"),
        (lambda: StudentConfig(chat_template=""), r"student.chat_template is '': expected a text"),
        (lambda: DataConfig(evaluation="test.jsonl"), r"data.evaluation is 'test.jsonl': expected a list"),
        (lambda: DataConfig(evaluation=["a.jsonl", ""]), r"data.evaluation holds '': expected a text"),
        (lambda: DataConfig(perspectives=("a", "b\n")), r"data.perspectives names 'b\\n': expected characters"),
        (lambda: DataConfig(perspectives=("a", "\ud83d")), r"data.perspectives names '\\ud83d': expected characters"),
        (lambda: TrainConfig(epochs="1"), r"train.epochs is '1': expected a number"),
        (lambda: TrainConfig(epochs=10**400), r"train.epochs is 1000.*: expected a number below 1.8e\+308"),
        (
            lambda: TrainConfig(pack_length=2**63),
            r"train.pack_length is 9223372036854775808: expected an integer of at",
        ),
        (lambda: StudentConfig(lora_alpha=10**400), r"student.lora_alpha is 10{59}: expected an integer of at most 64"),
        (lambda: MetaNetConfig(feedback="every-" + "1" * 5000), r"metanet.feedback is 'every-1{53}: expected all"),
        (lambda: MetaNetConfig(feedback="every-\u0663"), r"metanet.feedback is 'every-\u0663': expected all"),
        (lambda: TrainConfig(seed=True), r"train.seed is True: expected an integer"),
        (lambda: TrainConfig(save_steps=np.int64(3)), r"train.save_steps is np.int64\(3\): expected an integer"),
        (lambda: TrainConfig(questions_per_step=2.0), r"train.questions_per_step is 2.0: expected an integer or null"),
        (lambda: ObjectiveConfig(backend=None), r"objective.backend is None: expected a string"),
        (lambda: MindConfig(output=""), r"^output is '': expected a text that is not blank"),
        (lambda: MindConfig(student={"model": "m"}), r"^student is {'model': 'm'}: expected a StudentConfig"),
        (lambda: MindConfig(options=3), r"^options is 3: expected a MethodOptions"),
    ],
)
def test_bad_values_are_named(build, message):
    with pytest.raises(MindError, match=message):
        build()


def test_lists_become_tuples_and_paths_texts():
    config = DataConfig(train=Path("t"), evaluation=["a.jsonl", Path("b")], perspectives=["a", "b"])
    assert config.train == "t" and config.evaluation == ("a.jsonl", "b") and config.perspectives == ("a", "b")
    assert TrainConfig(epochs=2).epochs == 2 and TrainConfig(learning_rate=np.float64(0.5)).learning_rate == 0.5


def test_feedback_is_an_interval_of_steps():
    assert [MetaNetConfig(feedback=name).feedback_interval for name in ("all", "selected", "every-1", "every-12")] == [
        1,
        0,
        1,
        12,
    ]
