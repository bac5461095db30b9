"""The fused losses in the trainers of TRL, in place of TRL's own chunked losses.

    from mind_kernels.integrations import trl
    trl.install()  # before the trainer is made; or: with trl.fused_losses(): ...

At each step TRL's trainers look up two functions by name: one for the log-probabilities of SFT, DPO, GRPO and others,
and one for the divergence from a teacher. `install` replaces them by functions with the same arguments that call
`linear_log_prob` and `linear_divergence`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mind_kernels import DivergenceStats, Head, linear_divergence, linear_log_prob
from mind_kernels.integrations.signature import expect
from mind_kernels.integrations.trl_logits import check_logits


class FusedLogProb:
    """Replaces TRL's ChunkedLogProbFunction."""

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
        """
        head = head_of(hidden, weight, bias, final_logit_softcapping, logit_scale, temperature)
        names = {"mean_logits": "mean_logit", "log_sum_sq_probs": "log_sum_sq"}
        extra = [ours for theirs, ours in names.items() if theirs in outputs]
        rows, stats = linear_log_prob(hidden, head, targets, return_stats=True, extra_stats=extra)
        entropy = rows.entropy if "entropy" in outputs else None
        correct = stats.correct if "is_top1" in outputs else None
        return rows.log_prob, entropy, stats.log_sum_sq, stats.mean_logit, correct


class FusedDivergence:
    """Replaces TRL's ChunkedDivergenceFunction."""

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
        student = head_of(
            *(student_hidden, student_weight, student_bias),
            *(student_final_logit_softcapping, student_logit_scale, temperature),
        )
        teacher = head_of(
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
    # The teacher's parameters may require a gradient; TRL computes none for them either.
    bias = None if teacher.bias is None else teacher.bias.detach()
    return linear_divergence(
        hidden,
        student,
        teacher_hidden.detach(),
        Head(teacher.weight.detach(), bias, teacher.softcap, teacher.temperature),
        **kind_of(beta),
        reduction=reduction,
        return_stats=True,
    )


def kind_of(beta: float) -> dict[str, Any]:
    """The arguments `kind` and `beta` of `linear_divergence` for TRL's beta in [0, 1]."""
    ends = {0.0: "forward_kl", 1.0: "reverse_kl"}
    return {"kind": ends[float(beta)]} if float(beta) in ends else {"kind": "jsd", "beta": float(beta)}


def install() -> None:
    """Makes TRL's trainers use the losses of this module in the whole process, from now on; if called inside
    `fused_losses`, until its end.

    Trainers created afterwards raise ValueError for a model whose logits TRL computes differently from the model
    itself.

    Raises:
        ImportError: TRL is not installed, or its functions have other arguments than expected here.
    """
    for owner, name, fused in _places():
        setattr(owner, name, fused)


@contextmanager
def fused_losses() -> Iterator[None]:
    """A context in which TRL's trainers use the losses of this module; raises ImportError as `install` does."""
    places = _places()
    before = [getattr(owner, name) for owner, name, _ in places]
    install()
    try:
        yield
    finally:
        for (owner, name, _), original in zip(places, before, strict=True):
            setattr(owner, name, original)


def _places() -> list[tuple[Any, str, Any]]:
    """(object, attribute, replacement) for every place where TRL looks up its functions, after checking signatures."""
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
    return places + [(trainer, "__init__", checking(trainer)) for trainer in trainers]


def checking(trainer: Any) -> Any:
    """A trainer's `__init__`, followed by a check of its models."""
    init = trainer.__init__
    if hasattr(init, "_checks_logits"):
        return init

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if _has_a_loss_of_its_own(type(self), trainer):
            return
        for name in ("model", "ref_model", "teacher_model"):
            if (model := getattr(self, name, None)) is not None:
                check_logits(model)

    checked._checks_logits = True  # type: ignore[attr-defined]
    return checked


def _has_a_loss_of_its_own(kind: type, trainer: type) -> bool:
    """Whether TRL derived `kind` from `trainer` with another loss that needs the model's logits, such as GKD from SFT.

    A `compute_loss` in a user's own class does not show that, since it may call the one of `trainer`.
    """
    derived = kind.__mro__[: kind.__mro__.index(trainer)]
    return any(base.__module__.startswith("trl.") and "compute_loss" in vars(base) for base in derived)


def head_of(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, scale: float, temperature: float
) -> Head:
    """The head with z = softcap(scale x) / temperature, cast to the dtype of hidden; TRL casts it too, or to autocast's
    dtype."""
    if hasattr(weight, "ds_id"):
        raise ValueError(
            "the LM head is divided by DeepSpeed's ZeRO-3, which gathers it for TRL's own functions alone: expected "
            "stage 2 or less; or leave trl.install() out"
        )
    if _gathered_by_itself(weight):
        raise ValueError(
            "the LM head was gathered by full_tensor(), whose gradient FSDP does not sum over the processes: expected "
            "the head among the parameters that FSDP gathers for the whole model, not wrapped by itself; or, if tensor "
            "parallelism has split it, transformers' Trainer and mind_kernels.integrations.transformers.fuse"
        )
    bias = None if bias is None else bias.to(hidden.dtype)
    return Head(weight.to(hidden.dtype), bias, None if softcap is None else softcap / scale, temperature / scale)


def _gathered_by_itself(weight: Tensor) -> bool:
    """Whether the weight is the result of `full_tensor()`, possibly cast afterwards."""
    node = weight.grad_fn
    while type(node).__name__ == "ToCopyBackward0":
        node = node.next_functions[0][0]  # type: ignore[union-attr]
    return type(node).__name__ == "_ToTorchTensorBackward"
