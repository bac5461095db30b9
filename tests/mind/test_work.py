"""Tokens by kind, against a count of all that go through a trunk; and what they cost."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from method_cases import with_wrong
from small_run import write_student
from test_trainer import build_trainer
from tiny import build_model

from mind.batches import trunk
from mind.config import MetaNetConfig
from mind.methods.kd import KdOptions
from mind.methods.mind.features import StudentEncoder
from mind.methods.qcrd import QcrdOptions
from mind.methods.taid import TaidOptions
from mind.run import sampling
from mind.run.work import flops


@pytest.fixture
def passed(monkeypatch):
    """Counts tokens by what goes through a trunk. Answers are generated one by one here, so that no row is padded."""
    counts, kinds = Counter(), [None]
    real_states, real_encode, real_generate = trunk.trunk_states, StudentEncoder.encode, sampling.generate_ids

    def states(model, inputs):
        own = "trained" if torch.is_grad_enabled() else "observed"
        kind = kinds[-1] or (own if model is counts.student else "teacher_scored")
        counts[kind] += inputs["input_ids"].numel()
        return real_states(model, inputs)

    def encode(self, texts, progress):
        kinds.append("encoded")
        vectors = real_encode(self, texts, progress)
        kinds.pop()
        return vectors

    def generate(model, *arguments, batch_size, **options):
        def count(module, inputs, keywords):
            counts["generated"] += keywords["input_ids"].numel()

        hook = model.base_model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            return real_generate(model, *arguments, batch_size=1, **options)
        finally:
            hook.remove()

    monkeypatch.setattr(trunk, "trunk_states", states)
    monkeypatch.setattr(StudentEncoder, "encode", encode)
    monkeypatch.setattr(sampling, "generate_ids", generate)
    return counts


RESAMPLED = QcrdOptions(refresh_epochs=1, max_new_tokens=5)


@pytest.mark.parametrize(
    ("name", "options", "share", "kinds"),
    [
        ("mind", None, "always", {"trained", "observed", "encoded"}),
        ("mind-table", None, "never", {"trained", "observed"}),
        ("kd", KdOptions(on_policy=0.6, max_new_tokens=5), "always", {"trained", "generated", "teacher_scored"}),
        ("taid", TaidOptions(), "never", {"trained", "teacher_scored"}),
        ("qcrd", RESAMPLED, "always", {"trained", "observed", "generated", "encoded"}),
        ("qcrd", RESAMPLED, "never", {"trained", "observed", "generated", "encoded"}),
    ],
)
def test_work_is_what_went_through_the_trunks(name, options, share, kinds, passed, tmp_path):
    if name in ("kd", "taid"):
        teacher = write_student(tmp_path / "teacher", build_model(seed=5))
        options = type(options)(**vars(options) | {"teacher": teacher})
    passed.student = model = build_model()
    metanet = MetaNetConfig(width=16, warmup_epochs=1, scores="table" if name == "mind-table" else "metanet")
    given = {"dtype": torch.float32, "model": model, "questions": with_wrong(6), "metanet": metanet, "own": options}
    trainer = build_trainer(tmp_path, method=name.removesuffix("-table"), share_prompts=share, **given)
    work = Counter()
    for row in trainer.method.before_training():
        work.update(row.get("work", {}))
    trainer.train()
    for row in trainer.state.log_history:
        work.update({key.removeprefix("work/"): value for key, value in row.items() if key.startswith("work/")})
    computed = {kind: tokens for kind, tokens in work.items() if tokens and kind not in ("padded", "packed", "shared")}
    assert computed.keys() == kinds and computed == passed


def test_what_tokens_cost():
    work = {"padded": 99, "packed": 9, "shared": 9, "trained": 10, "observed": 5, "generated": 3, "encoded": 2}
    assert flops(work, 100, 100, {}) == 6 * 100 * 10 + 2 * 100 * (5 + 3 + 2)
    # 96 that are frozen and 4 of adapters: forward and backward through all, and the gradient of the latter.
    assert flops({"trained": 10, "observed": 5}, 100, 4, {}) == 10 * (4 * 96 + 6 * 4) + 5 * 2 * 100
    scored = work | {"teacher_scored": 7}
    others = {"teacher_scored": 1000, "encoded": 50}
    assert flops(scored, 100, 100, others) == 6 * 100 * 10 + 2 * 100 * (5 + 3) + 2 * 50 * 2 + 2 * 1000 * 7
