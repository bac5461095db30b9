"""What the operations share in autograd: gradients computed in the forward pass, scaled in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def under_autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in autocast's dtype where autocast is on for their device, as torch.nn.functional.linear has them."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def needs_gradient(*tensors: Tensor | None) -> list[bool]:
    """Which of the tensors (None: absent) take a gradient in the current grad mode."""
    recording = torch.is_grad_enabled()
    return [recording and t is not None and t.requires_grad for t in tensors]


def empty_gradients(inputs: tuple[Tensor | None, ...], needs: list[bool]) -> list[Tensor]:
    """What a fake kernel returns for the gradients of `inputs`: an empty tensor where one is not needed."""
    like = inputs[0]
    return [like.new_empty(t.shape if needed else (0,)) for t, needed in zip(inputs, needs, strict=True)]


def forbid_higher_order() -> None:
    """Raises RuntimeError inside a backward pass that is itself recorded (create_graph=True)."""
    if torch.is_grad_enabled():
        raise RuntimeError("higher-order gradients are not supported by this backend: use backend='reference'")


def save_gradients(ctx: Any, loss: Tensor, others: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> None:
    """Keeps the gradients of a scalar `loss` for `scaled_gradients`; all other outputs take no gradient."""
    ctx.mark_non_differentiable(*others, *gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*gradients)


def scaled_gradients(ctx: Any, upstream: Tensor | None) -> list[Tensor | None]:
    """The saved gradients times the upstream gradient of the loss; None for those that were not needed.

    In place, which spares a second dW, unless the graph is retained for another backward pass or is being traced
    (tensor subclasses: the compiler reuses the buffer by itself).
    """
    forbid_higher_order()
    keep = torch._C._autograd._get_current_graph_task_keep_graph()
    out: list[Tensor | None] = []
    for gradient, needed in zip(ctx.saved_tensors, ctx.needs, strict=True):
        if not needed or upstream is None:
            out.append(None)
        else:
            scale = upstream.to(gradient.dtype)
            out.append(gradient * scale if keep or type(gradient) is not Tensor else gradient.mul_(scale))
    return out
