"""TRL's trainers with the fused losses take the steps that they take with their own."""

from __future__ import annotations

import contextlib

import pytest
import torch
from trainers import distance

pytest.importorskip("trl", reason="trl is not installed (mind-kernels[test])")

import trl_runs
from transformers import LlamaForCausalLM
from trl import (
    DistillationConfig,
    DistillationTrainer,
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.gmpo import GMPOTrainer
from trl_runs import conversations, dataset, lora, model, options, tokenizer

from mind_kernels.integrations import trl as fused


def sft(folder, of=(), rows=None, adapters=None, kind=SFTTrainer, **training):
    return kind(
        model(**dict(of)),
        SFTConfig(**options(folder, **training)),
        train_dataset=rows or dataset(prompt=4, completion=9),
        eval_dataset=dataset(4, prompt=4, completion=9),
        processing_class=tokenizer(),
        peft_config=None if adapters is None else lora(**adapters),
    )


def dpo(folder, of=(), adapters=None, reference=(), **training):
    return DPOTrainer(
        model(**dict(of)),
        ref_model=None if reference is None else model(**dict(of) | {"seed": 1} | dict(reference)),
        args=DPOConfig(**options(folder, **training)),
        train_dataset=dataset(prompt=4, chosen=9, rejected=7),
        processing_class=tokenizer(),
        peft_config=None if adapters is None else lora(**adapters),
    )


def kto(folder, **training):
    rows = dataset(prompt=4, completion=9).add_column("label", [i % 3 > 0 for i in range(24)])
    arguments = KTOConfig(**options(folder, **training))
    return KTOTrainer(
        model(), ref_model=model(seed=1), args=arguments, train_dataset=rows, processing_class=tokenizer()
    )


def reward(completions, **_):
    return [float(len(completion) % 7) for completion in completions]


def saved(folder, **changes):
    """A model that TRL loads again as its reference."""
    model(**changes).save_pretrained(folder / "model")
    return LlamaForCausalLM.from_pretrained(folder / "model").train()


def grpo(folder, of=(), adapters=None, reference=False, kind=GRPOTrainer, **training):
    return kind(
        saved(folder) if reference else model(**dict(of)),
        reward,
        GRPOConfig(**options(folder, num_generations=2, max_completion_length=6, **training)),
        train_dataset=dataset(prompt=4),
        processing_class=tokenizer(),
        peft_config=None if adapters is None else lora(**adapters),
    )


def rloo(folder, **training):
    arguments = RLOOConfig(**options(folder, num_generations=2, max_completion_length=6, **training))
    return RLOOTrainer(saved(folder), reward, arguments, train_dataset=dataset(prompt=4), processing_class=tokenizer())


def distillation(folder, of=(), teacher=(), adapters=None, **training):
    return DistillationTrainer(
        model=model(**dict(of)),
        teacher_model=model(**{"family": "mistral", "hidden_size": 16, "seed": 1} | dict(teacher)),
        args=DistillationConfig(**options(folder, max_completion_length=6, **training)),
        train_dataset=dataset(prompt=4),
        processing_class=tokenizer(),
        peft_config=None if adapters is None else lora(**adapters),
    )


CAPPED = {"family": "gemma2", "final_logit_softcapping": 3.0}
SCALED = {"family": "cohere", "logit_scale": 0.5}
EXPERTS = {"family": "mixtral", "output_router_logits": True}
CASES = {
    "sft": (sft, {}),
    "sft, all tokens": (sft, {"completion_only_loss": False}),
    "sft, answers of conversations": (sft, {"rows": conversations(), "assistant_only_loss": True}),
    "sft, text": (sft, {"rows": dataset(text=14)}),
    "sft, softcap": (sft, {"of": CAPPED}),
    "sft, scale": (sft, {"of": SCALED}),
    "sft, divisor": (sft, {"of": {"family": "granite", "logits_scaling": 4.0}}),
    "sft, multiplier": (sft, {"of": {"family": "falcon_h1", "lm_head_multiplier": 0.25}}),
    "sft, bias": (sft, {"of": {"family": "phi", "pad_token_id": 0}}),
    "sft, tied": (sft, {"of": {"tie_word_embeddings": True}}),
    "sft, experts": (sft, {"of": EXPERTS, "router_aux_loss_coef": 0.5}),
    "sft, packing": (sft, {"packing": True, "max_length": 32}),
    "sft, wrapped": (sft, {"packing": True, "packing_strategy": "wrapped", "max_length": 16}),
    "sft, without padding": (sft, {"padding_free": True, "max_length": None}),
    "sft, dft": (sft, {"loss_type": "dft"}),
    "sft, smoothed": (sft, {"label_smoothing_factor": 0.1}),  # TRL's own loss; entropy and accuracy are ours
    "sft, one piece": (sft, {"gradient_accumulation_steps": 1}),
    "sft, checkpointing": (sft, {"gradient_checkpointing": True}),
    "sft, evaluation": (sft, {"eval_strategy": "steps", "eval_steps": 2}),
    "sft, LoRA": (sft, {"adapters": {}}),
    "sft, LoRA and a copied head": (sft, {"adapters": {"modules_to_save": ["lm_head"]}}),
    "dpo": (dpo, {}),
    "dpo, weighted": (dpo, {"use_weighting": True}),
    "dpo, losses": (dpo, {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}),
    "dpo, ipo": (dpo, {"loss_type": ["ipo"], "of": CAPPED, "use_weighting": True}),
    "dpo, smoothed": (dpo, {"label_smoothing": 0.1, "loss_type": ["robust"]}),
    "dpo, reference before": (dpo, {"precompute_ref_log_probs": True}),
    "dpo, without padding": (dpo, {"padding_free": True}),
    "dpo, LoRA": (dpo, {"adapters": {}, "reference": None}),
    "kto": (kto, {}),
    "kto, apo": (kto, {"loss_type": "apo_zero_unpaired"}),
    "grpo": (grpo, {}),
    "grpo, temperature": (grpo, {"temperature": 0.7}),
    "grpo, reference": (grpo, {"reference": True, "beta": 0.1}),
    "grpo, dr_grpo": (grpo, {"loss_type": "dr_grpo"}),
    "grpo, bnpo": (grpo, {"loss_type": "bnpo"}),
    "grpo, sequences": (grpo, {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
    "grpo, uncertain tokens": (grpo, {"top_entropy_quantile": 0.5}),
    "grpo, entropy": (grpo, {"entropy_coef": 0.1}),
    "grpo, twice": (grpo, {"num_iterations": 2, "of": SCALED}),
    "grpo, head in float32": (grpo, {"cast_lm_head_to_fp32": True}),
    "grpo, LoRA": (grpo, {"adapters": {}, "beta": 0.1}),
    "gmpo": (grpo, {"kind": GMPOTrainer}),
    "rloo": (rloo, {"beta": 0.1}),
    "distillation": (distillation, {}),
    "distillation, forward": (distillation, {"beta": 0.0}),
    "distillation, between": (distillation, {"beta": 0.5, "temperature": 2.0}),
    "distillation, softcap": (distillation, {"teacher": CAPPED}),
    "distillation, scale": (
        distillation,
        {"of": SCALED, "teacher": {"family": "granite", "logits_scaling": 2.0}, "beta": 0.3},
    ),
    "distillation, autocast": (distillation, {"bf16": True, "max_steps": 1, "gradient_accumulation_steps": 1}),
    "distillation, LoRA": (distillation, {"adapters": {}}),
}
# One more value of an option that another case has.
AT_NIGHT = {
    "sft, all tokens",
    "sft, text",
    "sft, divisor",
    "sft, multiplier",
    "sft, tied",
    "sft, wrapped",
    "sft, one piece",
    "sft, checkpointing",
    "dpo, weighted",
    "dpo, smoothed",
    "dpo, reference before",
    "kto, apo",
    "grpo, temperature",
    "grpo, dr_grpo",
    "grpo, bnpo",
    "grpo, sequences",
    "gmpo",
    "grpo, LoRA",
}


# TRL's own warning, for the caller of a trainer's __init__, which is the one that checks the models.
@pytest.mark.filterwarnings("default:.label_smoothing_factor. is deprecated in .SFTTrainer.:FutureWarning")
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.nightly] * (case in AT_NIGHT)) for case in CASES]
)
def test_steps_are_those_of_trl(tmp_path, case, record):
    make_trainer, changes = CASES[case]
    expected = trl_runs.train(make_trainer, tmp_path, contextlib.nullcontext(), **changes)
    found = trl_runs.train_fused(make_trainer, tmp_path, **changes)
    error, size = (float(losses.abs().max()) for losses in (found.losses - expected.losses, expected.losses))
    record("trl", "2", case, loss=error / size, weights=distance(found.weights, expected.weights))
    # A divergence is a difference of log-probabilities of size log(100), and is rounded as these, however small it is.
    assert error <= 1e-6 * (max(size, 1.0) if make_trainer is distillation else size)
    assert distance(found.weights, expected.weights) <= min(1e-6, 1e-2 * distance(expected.weights, expected.before))
    for own, ours in zip(expected.log, found.log, strict=True):
        assert ours == pytest.approx(own, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("training", [{"bf16": True}, {"of": {"dtype": torch.bfloat16}}], ids=["autocast", "bfloat16"])
@pytest.mark.parametrize("make_trainer", [sft, dpo])
def test_half_precision_errs_no_more_than_trl(tmp_path, make_trainer, training):
    """Both against float32: TRL rounds the logits to bfloat16. Eight losses are few: either errs less by chance."""
    exact = trl_runs.train(make_trainer, tmp_path, contextlib.nullcontext()).losses
    stock = trl_runs.train(make_trainer, tmp_path, contextlib.nullcontext(), **training).losses
    found = trl_runs.train(make_trainer, tmp_path, fused.fused_losses(), **training).losses
    most = 0.5 if torch.__version__ < (2, 12) else 0.1  # of DPO in bfloat16 by PyTorch 2.11: 0.47
    assert 1e-5 < distance(stock, exact) < most
    assert distance(found, exact) <= 1.25 * distance(stock, exact)
