"""The fused divergence in TRL's asynchronous distillation, where servers return the teachers' top tokens.

    from mind_kernels.integrations import trl_async_distillation
    trl_async_distillation.install()  # before the trainer is made

Separate from `trl.install()`, since this trainer is one of TRL's experimental ones, which may change in any release.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from mind_kernels import linear_divergence
from mind_kernels.integrations.signature import expect
from mind_kernels.integrations.trl import checking, head_of, kind_of

_SMALLEST_REST = 1e-7  # TRL's lower bound of the probability of all tokens that are not listed


def chunked_jsd_loss(
    hidden_valid: Tensor,  # (N, D)
    lm_head_weight: Tensor,  # (V, D)
    lm_head_bias: Tensor | None,  # (V,)
    logit_scale: float,
    final_logit_softcapping: float | None,
    target_ids: Tensor,  # (N, K)
    teacher_target_logps: Tensor,  # (N, K)
    valid_candidate_mask: Tensor,  # (N, K) bool
    beta: float,
    temperature: float,
    add_tail_bucket: bool,
    teacher_id_idx: Tensor | None,  # (N,)
    num_teachers: int,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Replaces TRL's _chunked_jsd_loss. Returns the sum of the divergences, differentiable; then, without a gradient,
    the same sum, the sums of the student's and of the teachers' entropies, and per teacher the number of rows and the
    sums of divergences and entropies (3 num_teachers,)."""
    head = head_of(hidden_valid, lm_head_weight, lm_head_bias, final_logit_softcapping, logit_scale, temperature)
    loss, stats = linear_divergence(
        hidden_valid,
        head,
        teacher_ids=target_ids.clamp(min=0),
        teacher_log_prob=teacher_target_logps.float(),
        teacher_mask=valid_candidate_mask,
        tail="bucket" if add_tail_bucket else "renormalize",
        **kind_of(beta),
        reduction="none",
        return_stats=True,
    )
    divergences = loss.detach()
    p = torch.where(valid_candidate_mask, teacher_target_logps.float().exp(), 0.0)
    if add_tail_bucket:
        p = torch.cat([p, (1 - p.sum(1, keepdim=True)).clamp(min=_SMALLEST_REST)], dim=1)
    else:
        p = p / p.sum(1, keepdim=True)
    entropies = torch.special.entr(p).sum(1)
    sums = divergences.new_zeros(num_teachers, 3)
    if teacher_id_idx is not None:
        sums.index_add_(0, teacher_id_idx, torch.stack([torch.ones_like(divergences), divergences, entropies], dim=1))
    return loss.sum(), divergences.sum(), stats.entropy.sum(), entropies.sum(), sums.flatten()


def install() -> None:
    """Makes TRL's AsyncDistillationTrainer use the loss of this module, from now on and in the whole process.

    Trainers created afterwards raise ValueError for a model whose logits TRL computes differently from the model
    itself.

    Raises:
        ImportError: TRL is not installed, or its function has other arguments than expected here.
    """
    from trl.experimental.async_distillation import async_distillation_trainer as trl_module

    if trl_module._chunked_jsd_loss is not chunked_jsd_loss:
        expect("trl", trl_module, "_chunked_jsd_loss", *inspect.signature(chunked_jsd_loss).parameters)
    trl_module._chunked_jsd_loss = chunked_jsd_loss
    trainer = trl_module.AsyncDistillationTrainer
    trainer.__init__ = checking(trainer)
