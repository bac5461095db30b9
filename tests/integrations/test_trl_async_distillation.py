"""The loss of TRL's asynchronous distillation: values and gradients are those of TRL's function.

The trainer itself needs servers of vLLM, and is not run.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed (mind-kernels[test])")

from trl.experimental.async_distillation import async_distillation_trainer as of_trl
from trl_runs import model

from mind_kernels.integrations import trl_async_distillation as fused

NAMES = ("loss", "divergences", "student's entropies", "teachers' entropies", "per teacher")


def arguments(teachers=2, rows=9, listed=4, vocabulary=37, bias=True, **changes):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, added = (
        torch.randn(*shape, generator=generator).requires_grad_()
        for shape in ((rows, 8), (vocabulary, 8), (vocabulary,))
    )
    ids = torch.rand(rows, vocabulary, generator=generator).argsort(1)[:, :listed]
    teacher = torch.randn(rows, vocabulary, generator=generator).mul(2).log_softmax(-1).gather(1, ids)
    mask = torch.rand(rows, listed, generator=generator) < 0.7
    mask[:, 0] = True
    defaults = {
        "hidden_valid": hidden,
        "lm_head_weight": weight,
        "lm_head_bias": added if bias else None,
        "logit_scale": 0.5,
        "final_logit_softcapping": None,
        "target_ids": torch.where(mask, ids, -1),
        "teacher_target_logps": torch.where(mask, teacher, -torch.inf),
        "valid_candidate_mask": mask,
        "beta": 0.0,
        "temperature": 1.0,
        "add_tail_bucket": True,
        "teacher_id_idx": torch.arange(rows) % teachers if teachers > 1 else None,
        "num_teachers": teachers,
        "chunk_size": 4,
    }
    return defaults | changes


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("add_tail_bucket", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"final_logit_softcapping": 3.0, "temperature": 0.7},
        {"bias": False, "teachers": 1},
        {"rows": 1, "listed": 1},
    ],
    ids=["two teachers", "softcap", "one teacher", "one token"],
)
def test_values_and_gradients_are_those_of_trl(beta, add_tail_bucket, changes):
    changes = {"beta": beta, "add_tail_bucket": add_tail_bucket} | changes
    results = []
    for function in (of_trl._chunked_jsd_loss, fused.chunked_jsd_loss):
        given = arguments(**changes)
        values = function(**given)
        tensors = [
            given[name] for name in ("hidden_valid", "lm_head_weight", "lm_head_bias") if given[name] is not None
        ]
        results.append((values, torch.autograd.grad(values[0], tensors)))
        assert not any(value.requires_grad for value in values[1:])
    for name, found, expected in zip(NAMES, results[1][0], results[0][0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=name)
    for found, expected in zip(results[1][1], results[0][1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_installed(monkeypatch):
    trainer = of_trl.AsyncDistillationTrainer

    def before(self, model):
        self.model = model

    monkeypatch.setattr(of_trl, "_chunked_jsd_loss", of_trl._chunked_jsd_loss)
    monkeypatch.setattr(trainer, "__init__", before)
    fused.install()
    once = trainer.__init__
    fused.install()
    assert of_trl._chunked_jsd_loss is fused.chunked_jsd_loss
    assert trainer.__init__ is once is not before
    assert trainer(model()).model.training
    with pytest.raises(ValueError, match="RecurrentGemmaForCausalLM: TRL computes its logits with scale 1 and no soft"):
        trainer(model("recurrent_gemma"))


def test_another_version_of_trl_is_refused(monkeypatch):
    monkeypatch.setattr(of_trl, "_chunked_jsd_loss", lambda hidden, beta: None)
    with pytest.raises(ImportError, match=r"trl 1.*_chunked_jsd_loss takes hidden, beta: expected hidden_valid"):
        fused.install()
