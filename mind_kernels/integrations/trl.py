"""The fused losses in the trainers of TRL, whose own ones project hidden states by the LM head in chunks.

    from mind_kernels.integrations import trl
    trl.install()  # before the trainer is made; or: with trl.fused_losses(): ...

At each step TRL's trainers look up two functions by name: the log-probabilities of SFT, DPO, GRPO and others, and the
divergence from a teacher. Both are replaced by functions of the same arguments on `linear_log_prob` and
`linear_divergence`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mind_kernels import DivergenceStats, Head, linear_cross_entropy, linear_divergence, linear_log_prob
from mind_kernels.integrations.signature import expect
from mind_kernels.integrations.trl_logits import check_logits


class FusedLogProb:
    """Takes the place of TRL's ChunkedLogProbFunction."""

    @staticmethod
    def apply(
        hidden: Tensor,  # (N, D)
        weight: Tensor,  # (V, D)
        bias: Tensor | None,  # (V,)
        targets: Tensor,  # (N,)
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: Sequence[str] = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1"),
    ) -> tuple[Tensor | None, ...]:
        """Log-probability, entropy, log sum_v p_v^2, mean logit and whether the target is the likeliest token, (N,)
        each; None for one that `outputs` does not name. The first two are differentiable.

        The mean logit under a softcap and log sum_v p_v^2 take a pass over the logits each.
        """
        head = _head(hidden, weight, bias, final_logit_softcapping, logit_scale, temperature)
        rows, stats = linear_log_prob(hidden, head, targets, return_stats=True)
        mean = squares = None
        with torch.no_grad():
            if "mean_logits" in outputs:  # a loss with full label smoothing is lse - mean z
                smooth = linear_cross_entropy(hidden, head, targets, label_smoothing=1.0, reduction="none")
                mean = stats.lse - smooth
            if "log_sum_sq_probs" in outputs:  # log sum exp 2z - 2 log sum exp z
                doubled = Head(head.weight, head.bias, head.softcap, head.temperature / 2)
                _, twice = linear_log_prob(hidden, doubled, targets, return_stats=True)
                squares = twice.lse - 2 * stats.lse
        entropy = rows.entropy if "entropy" in outputs else None
        return rows.log_prob, entropy, squares, mean, stats.correct if "is_top1" in outputs else None


class FusedDivergence:
    """Takes the place of TRL's ChunkedDivergenceFunction."""

    @staticmethod
    def apply(
        student_hidden: Tensor,  # (N, D)
        student_weight: Tensor,  # (V, D)
        student_bias: Tensor | None,  # (V,)
        teacher_hidden: Tensor,  # (N, D')
        teacher_weight: Tensor,  # (V, D')
        teacher_bias: Tensor | None,  # (V,)
        beta: float,
        temperature: float = 1.0,
        student_logit_scale: float = 1.0,
        student_final_logit_softcapping: float | None = None,
        teacher_logit_scale: float = 1.0,
        teacher_final_logit_softcapping: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The divergence, differentiable, and the student's entropy, (N,) each: forward KL for beta 0, reverse KL for
        1, else the generalized Jensen-Shannon divergence."""
        student = _head(
            *(student_hidden, student_weight, student_bias),
            *(student_final_logit_softcapping, student_logit_scale, temperature),
        )
        teacher = _head(
            *(teacher_hidden, teacher_weight, teacher_bias),
            *(teacher_final_logit_softcapping, teacher_logit_scale, temperature),
        )
        loss, stats = divergence(student_hidden, student, teacher_hidden, teacher, beta, "none")
        return loss, stats.entropy


def divergence(
    hidden: Tensor,  # (N, D)
    student: Head,
    teacher_hidden: Tensor,  # (N, D')
    teacher: Head,
    beta: float,
    reduction: str,
) -> tuple[Tensor, DivergenceStats]:
    """TRL's divergence for a `beta` in [0, 1], differentiable in the student alone, and its statistics per row."""
    known, constant = _at_temperature(student.temperature, teacher_hidden.detach(), teacher)
    kind = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(float(beta), "jsd")
    return linear_divergence(
        hidden,
        student,
        known,
        constant,
        kind=kind,
        beta=beta if kind == "jsd" else None,
        reduction=reduction,
        return_stats=True,
    )


def _at_temperature(temperature: float, hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
    """Hidden states and a head of this temperature that give the same logits, without a gradient: one temperature
    serves both sides of a divergence, and models scale their logits differently."""
    weight, bias, factor = head.weight.detach(), head.bias, temperature / head.temperature
    if factor == 1.0:
        return hidden, Head(weight, None if bias is None else bias.detach(), head.softcap, temperature)
    softcap = None if head.softcap is None else head.softcap * factor
    return hidden * factor, Head(weight, None if bias is None else bias.detach() * factor, softcap, temperature)


def install() -> None:
    """Makes TRL's trainers compute their losses here, from now on and in the whole process.

    A trainer that is made afterwards raises ValueError for a model whose logits TRL computes otherwise than the model.

    Raises:
        ImportError: TRL is not installed, or its functions take other arguments than those known here.
    """
    for owner, name, fused in _places():
        setattr(owner, name, fused)


@contextmanager
def fused_losses() -> Iterator[None]:
    """Inside, TRL's trainers compute their losses here; raises ImportError as `install` does."""
    places = _places()
    before = [getattr(owner, name) for owner, name, _ in places]
    install()
    try:
        yield
    finally:
        for (owner, name, _), original in zip(places, before, strict=True):
            setattr(owner, name, original)


def _places() -> list[tuple[Any, str, Any]]:
    """Where TRL looks its functions up, and what takes their place; checked."""
    from trl.trainer import (
        distillation_trainer,
        dpo_trainer,
        grpo_trainer,
        kto_trainer,
        rloo_trainer,
        sft_trainer,
        utils,
    )

    places: list[tuple[Any, str, Any]] = [
        (utils, "_ChunkedLogProbFunction", FusedLogProb),
        (distillation_trainer, "ChunkedDivergenceFunction", FusedDivergence),
    ]
    for module, name, fused in places:
        if getattr(module, name, None) is not fused:
            expect("trl", module, f"{name}.forward", "ctx", *inspect.signature(fused.apply).parameters)
    expect("trl", utils, "add_fused_lm_head", "model", "temperature", "cast_lm_head_to_fp32", "outputs")
    trainers = [
        *(sft_trainer.SFTTrainer, dpo_trainer.DPOTrainer, kto_trainer.KTOTrainer, grpo_trainer.GRPOTrainer),
        *(rloo_trainer.RLOOTrainer, distillation_trainer.DistillationTrainer),
    ]
    return places + [(trainer, "__init__", _checking(trainer.__init__)) for trainer in trainers]


def _checking(init: Any) -> Any:
    """A trainer's `__init__` that checks the models afterwards."""
    if hasattr(init, "_checks_logits"):
        return init

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        for model in (self.model, getattr(self, "teacher_model", None)):
            if model is not None:
                check_logits(model)

    checked._checks_logits = True  # type: ignore[attr-defined]
    return checked


def _head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, scale: float, temperature: float
) -> Head:
    """The head for which z = softcap(scale x) / temperature, in the dtype of hidden: TRL casts it as well."""
    if hasattr(weight, "ds_id"):
        raise ValueError(
            "the LM head is divided by DeepSpeed's ZeRO-3, which gathers it for TRL's own functions alone: expected "
            "stage 2 or less; or leave trl.install() out"
        )
    bias = None if bias is None else bias.to(hidden.dtype)
    return Head(weight.to(hidden.dtype), bias, None if softcap is None else softcap / scale, temperature / scale)
