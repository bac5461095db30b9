"""The fused losses in the trainers of TRL, whose own ones project hidden states by the LM head in chunks.

    from mind_kernels.integrations import trl
    trl.install()  # before the trainer is made; or: with trl.fused_losses(): ...

At each step TRL's trainers look up two functions by name: the log-probabilities of SFT, DPO, GRPO and others, and the
divergence from a teacher. Both are replaced by functions of the same arguments on `linear_log_prob` and
`linear_divergence`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mind_kernels import Head, linear_divergence, linear_log_prob


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
        """
        head = _head(hidden, weight, bias, final_logit_softcapping, logit_scale, temperature)
        names = {"mean_logits": "mean_logit", "log_sum_sq_probs": "log_sum_sq"}
        extra = [ours for theirs, ours in names.items() if theirs in outputs]
        rows, stats = linear_log_prob(hidden, head, targets, return_stats=True, extra_stats=extra)
        entropy = rows.entropy if "entropy" in outputs else None
        correct = stats.correct if "is_top1" in outputs else None
        return rows.log_prob, entropy, stats.log_sum_sq, stats.mean_logit, correct


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
        head = _head(
            student_hidden,
            student_weight,
            student_bias,
            student_final_logit_softcapping,
            student_logit_scale,
            temperature,
        )
        # The teacher's parameters may want a gradient, which TRL leaves out as well.
        known, bias = teacher_hidden.detach(), None if teacher_bias is None else teacher_bias.detach()
        teacher = _head(
            known, teacher_weight.detach(), bias, teacher_final_logit_softcapping, teacher_logit_scale, temperature
        )
        kind = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(float(beta), "jsd")
        loss, stats = linear_divergence(
            student_hidden,
            head,
            known,
            teacher,
            kind=kind,
            beta=beta if kind == "jsd" else None,
            reduction="none",
            return_stats=True,
        )
        return loss, stats.entropy


def install() -> None:
    """Makes all of TRL's trainers compute their losses here, from now on and in the whole process.

    Raises:
        ImportError: TRL is not installed, or its functions take other arguments than those known here.
    """
    for module, name, fused in _places():
        setattr(module, name, fused)


@contextmanager
def fused_losses() -> Iterator[None]:
    """Inside, TRL's trainers compute their losses here; raises ImportError as `install` does."""
    places = _places()
    before = [getattr(module, name) for module, name, _ in places]
    install()
    try:
        yield
    finally:
        for (module, name, _), original in zip(places, before, strict=True):
            setattr(module, name, original)


def _places() -> list[tuple[Any, str, type]]:
    """Where TRL looks its functions up, and what takes their place; checked."""
    import trl
    from trl.trainer import distillation_trainer, utils

    places = [
        (utils, "_ChunkedLogProbFunction", FusedLogProb),
        (distillation_trainer, "ChunkedDivergenceFunction", FusedDivergence),
    ]
    for module, name, fused in places:
        original = getattr(module, name, None)
        known = [*inspect.signature(fused.apply).parameters]
        taken = [] if original is None else [*inspect.signature(getattr(original, "forward", fused.apply)).parameters]
        if original is not fused and taken[1:] != known:  # after the context
            raise ImportError(
                f"TRL {trl.__version__}: {module.__name__}.{name} takes {', '.join(taken[1:]) or 'nothing'}: expected "
                f"{', '.join(known)}"
            )
    return places


def _head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, scale: float, temperature: float
) -> Head:
    """The head for which z = softcap(scale x) / temperature, in the dtype of hidden: TRL casts it as well."""
    bias = None if bias is None else bias.to(hidden.dtype)
    return Head(weight.to(hidden.dtype), bias, None if softcap is None else softcap / scale, temperature / scale)
