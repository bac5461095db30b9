"""TRL's trainers with the fused losses take the steps that they take with their own."""

from __future__ import annotations

import contextlib
import inspect

import pytest
import torch
from trainers import VOCABULARY, distance, make, weights

pytest.importorskip("trl", reason="trl is not installed (mind-kernels[test])")

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import (
    DistillationConfig,
    DistillationTrainer,
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.trainer import distillation_trainer, utils

from mind_kernels.integrations import trl as fused


def words(count: int, generator: torch.Generator) -> str:
    return " ".join(f"t{int(i)}" for i in torch.randint(4, VOCABULARY, (count,), generator=generator))


def dataset(**lengths: int) -> Dataset:
    """24 rows of random words; all but the prompt begin with a space."""
    generator = torch.Generator().manual_seed(0)
    return Dataset.from_list(
        [
            {name: " " * (name != "prompt") + words(count, generator) for name, count in lengths.items()}
            for _ in range(24)
        ]
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """A word of the vocabulary is a token."""
    made = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t3"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = {"pad_token": "t0", "bos_token": "t1", "eos_token": "t2", "unk_token": "t3"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **ends)


def options(folder, **changes):
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "logging_steps": 1,
        "learning_rate": 0.1,
        "optim": "sgd",
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    return defaults | changes


def sft(folder, family="llama", changes=(), **training):
    model = make(family, **dict(changes))
    rows = dataset(prompt=4, completion=9)
    arguments = SFTConfig(**options(folder, **training))
    return SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer())


def dpo(folder, **training):
    rows = dataset(prompt=4, chosen=9, rejected=7)
    arguments = DPOConfig(**options(folder, **training))
    return DPOTrainer(make(), ref_model=make(), args=arguments, train_dataset=rows, processing_class=tokenizer())


def grpo(folder, **training):
    def reward(completions, **_):
        return [float(len(completion) % 7) for completion in completions]

    arguments = GRPOConfig(**options(folder, num_generations=2, max_completion_length=6, **training))
    return GRPOTrainer(make(), reward, arguments, train_dataset=dataset(prompt=4), processing_class=tokenizer())


def distillation(folder, teacher="mistral", changes=(), **training):
    torch.manual_seed(1)
    other = make(teacher, hidden_size=16, **dict(changes))
    arguments = DistillationConfig(**options(folder, max_completion_length=6, **training))
    return DistillationTrainer(
        model=make(), teacher_model=other, args=arguments, train_dataset=dataset(prompt=4), processing_class=tokenizer()
    )


CASES = {
    "sft": (sft, {}),
    "sft, softcap": (sft, {"family": "gemma2", "changes": {"final_logit_softcapping": 3.0}}),
    "sft, scale": (sft, {"family": "cohere", "changes": {"logit_scale": 0.25}}),
    "sft, bias": (sft, {"family": "phi"}),
    "sft, packing": (sft, {"packing": True, "max_length": 32}),
    "dpo": (dpo, {}),
    "dpo, weighted": (dpo, {"use_weighting": True}),
    "grpo": (grpo, {}),
    "grpo, temperature": (grpo, {"temperature": 0.7}),
    "distillation": (distillation, {}),
    "distillation, forward": (distillation, {"beta": 0.0}),
    "distillation, reverse": (distillation, {"beta": 1.0}),
    "distillation, softcap": (distillation, {"teacher": "gemma2", "changes": {"final_logit_softcapping": 3.0}}),
    "distillation, scale": (distillation, {"teacher": "cohere", "changes": {"logit_scale": 0.25}}),
}
OF_TRL = {"entropy", "mean_token_accuracy", "logits/chosen", "rewards/margins"}


def train(make_trainer, folder, context, **options):
    """The log and the weights after four steps."""
    with context:
        torch.manual_seed(0)
        trainer = make_trainer(folder, **options)
        trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry], weights(trainer.model)


@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_trl(tmp_path, case, monkeypatch):
    make_trainer, options = CASES[case]
    stock, expected = train(make_trainer, tmp_path, contextlib.nullcontext(), **options)
    calls = []
    for name in ("FusedLogProb", "FusedDivergence"):
        function = getattr(fused, name)
        monkeypatch.setattr(function, "apply", counted(function.apply, calls))
    found, trained = train(make_trainer, tmp_path, fused.fused_losses(), **options)
    assert len(calls) >= 8, "TRL did not call the fused loss"
    assert distance(trained, expected) <= 1e-6
    for own, ours in zip(stock, found, strict=True):
        assert ours["loss"] == pytest.approx(own["loss"], rel=1e-5, abs=1e-6)
        assert ours.keys() == own.keys()
        for name in own.keys() & OF_TRL:
            assert ours[name] == pytest.approx(own[name], rel=1e-4, abs=1e-5)


def counted(function, calls):
    def apply(*args):
        calls.append(args)
        return function(*args)

    apply.__signature__ = inspect.signature(function)
    return staticmethod(apply)


def test_installed_and_only_inside_the_context(monkeypatch):
    original, of_teacher = utils._ChunkedLogProbFunction, distillation_trainer.ChunkedDivergenceFunction
    with fused.fused_losses():
        assert utils._ChunkedLogProbFunction is fused.FusedLogProb
        with fused.fused_losses():
            pass
        assert utils._ChunkedLogProbFunction is fused.FusedLogProb
    assert utils._ChunkedLogProbFunction is original
    # What install changes is undone after the test.
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", original)
    monkeypatch.setattr(distillation_trainer, "ChunkedDivergenceFunction", of_teacher)
    fused.install()
    fused.install()
    assert utils._ChunkedLogProbFunction is fused.FusedLogProb


def test_another_version_of_trl_is_refused(monkeypatch):
    class Other(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden, weight, extra):
            return hidden

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Other)
    with pytest.raises(
        ImportError, match=r"trl 1\.\d+.*_ChunkedLogProbFunction.forward takes ctx, hidden, weight, extra: expected"
    ):
        fused.install()
    monkeypatch.delattr(utils, "_ChunkedLogProbFunction")
    with pytest.raises(ImportError, match="_ChunkedLogProbFunction.forward does not exist"), fused.fused_losses():
        pass
