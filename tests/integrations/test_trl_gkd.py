"""GKD from hidden states takes the steps that TRL's takes from logits."""

from __future__ import annotations

import contextlib

import pytest
from trainers import distance

pytest.importorskip("trl", reason="trl is not installed (mind-kernels[test])")

import trl_runs
from trl.experimental.gkd import GKDConfig, GKDTrainer

from mind_kernels.integrations.trl_gkd import FusedGKDTrainer

LLAMA = {"family": "llama", "hidden_size": 16, "seed": 1}


def gkd(folder, kind=GKDTrainer, student=(), teacher=(), peft_config=None, **training):
    arguments = GKDConfig(**trl_runs.options(folder, max_new_tokens=6, max_length=64, **{"lmbda": 0.0} | training))
    return kind(
        trl_runs.model(**dict(student)),
        trl_runs.model(**LLAMA | dict(teacher)).eval(),
        arguments,
        train_dataset=trl_runs.conversations(),
        eval_dataset=trl_runs.conversations(4),
        processing_class=trl_runs.tokenizer(),
        peft_config=peft_config,
    )


CAPPED = {"family": "gemma2", "final_logit_softcapping": 3.0}
CASES = {
    "jsd": {},
    "forward": {"beta": 0.0},
    "reverse": {"beta": 1.0},
    "skewed jsd": {"beta": 0.1},
    "on policy": {"lmbda": 1.0},
    "half on policy, warm": {"lmbda": 0.5, "temperature": 2.0},
    "sequences of the teacher": {"seq_kd": True},
    "no accumulation": {"gradient_accumulation_steps": 1},
    "checkpointing": {"gradient_checkpointing": True},
    "softcap of the student": {"student": CAPPED},
    "softcap of the teacher": {"teacher": CAPPED},
    "both with a softcap": {"student": CAPPED, "teacher": CAPPED | {"final_logit_softcapping": 5.0}, "beta": 1.0},
    "scales": {"student": {"family": "cohere", "logit_scale": 0.25}, "teacher": {"family": "granite"}},
    "another softcap's name": {"student": {"family": "recurrent_gemma"}},
    "bias of the teacher": {"teacher": {"family": "phi"}},
    "tied": {"student": {"tie_word_embeddings": True}},
    "experts": {"student": {"family": "mixtral", "output_router_logits": True, "router_aux_loss_coef": 0.5}},
    "LoRA": {"peft_config": {}},
    "LoRA and a copied head": {"peft_config": {"modules_to_save": ["lm_head"]}},
    "evaluation": {"eval_strategy": "steps", "eval_steps": 2},
}


def both(folder, **changes):
    if "peft_config" in changes:
        changes["peft_config"] = trl_runs.lora(**changes["peft_config"])
    no_context = contextlib.nullcontext()
    return [trl_runs.train(gkd, folder, no_context, kind=kind, **changes) for kind in (GKDTrainer, FusedGKDTrainer)]


@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_trl(tmp_path, record, case):
    expected, found = both(tmp_path, **CASES[case])
    loss, moved = distance(found.losses, expected.losses), distance(found.weights, expected.weights)
    record("trl", "2", f"gkd, {case}", loss=loss, weights=moved)
    assert loss <= 1e-6
    assert moved <= min(1e-6, 1e-2 * distance(expected.weights, expected.before))
    for own, ours in zip(expected.log, found.log, strict=True):
        assert ours == pytest.approx(own, rel=1e-4, abs=1e-5)
