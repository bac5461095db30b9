"""The fused cross-entropy in torchtitan, used as the loss of a Trainer.Config.

    from mind_kernels.integrations.torchtitan import FusedLinearCrossEntropy
    config.loss = FusedLinearCrossEntropy.Config()

It is torchtitan's ChunkedLossWrapper with one chunk, whose LM head computes the loss in its own forward pass. So the
trainer and the wrapper still handle pipeline stages, the gathering of a sharded weight and the reduction of its
gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchtitan.components.loss import (  # pyright: ignore[reportMissingImports]
    IGNORE_INDEX,
    BaseLoss,
    ChunkedLossWrapper,
)
from torchtitan.distributed.spmd_types import current_spmd_mesh  # pyright: ignore[reportMissingImports]
from torchtitan.distributed.utils import get_spmd_backend  # pyright: ignore[reportMissingImports]

from mind_kernels import linear_cross_entropy
from mind_kernels.dtensors import is_dtensor
from mind_kernels.integrations.head import head_tensors
from mind_kernels.integrations.signature import expect
from mind_kernels.integrations.tensor_parallel import part_of

expect("torchtitan", ChunkedLossWrapper, "__init__", "self", "config", "compile_config")
expect("torchtitan", ChunkedLossWrapper, "set_lm_head", "self", "lm_head")
expect("torchtitan", ChunkedLossWrapper, "__call__", "self", "pred", "labels", "global_valid_tokens", "loss_inputs")
expect("torchtitan", ChunkedLossWrapper.Config, "__init__", "self", "num_chunks", "loss_fn")
expect("torchtitan", BaseLoss, "__call__", "self", "pred", "labels", "global_valid_tokens", "kwargs")


class _LossOfTheHead(BaseLoss):
    """The loss function that the wrapper applies to the output of the LM head: divides it, a sum of losses, by the
    tokens."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        pass

    def __init__(self, config: Any, *, compile_config: Any = None) -> None:
        self.fn = lambda loss, labels: loss


class FusedLinearCrossEntropy(ChunkedLossWrapper):
    """The cross-entropy of labeled tokens over the number of all processes' tokens, without the logits.

    With tensor parallelism and `parallelism.spmd_backend` "spmd_types" or "partial_dtensor", each process computes with
    its part of the vocabulary.

    Raises ValueError in the first step if the LM head is not a plain linear layer, or is split by the backend
    "full_dtensor"; also while a CUDA graph is captured, since the loss waits for the GPU once to leave out the ignored
    tokens.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        label_smoothing: float = 0.0
        z_loss: float = 0.0
        gradient_threshold: float | None = None
        backend: str = "auto"
        """See `linear_cross_entropy`."""

    def __init__(self, config: Any, *, compile_config: Any = None) -> None:
        wrapped = ChunkedLossWrapper.Config(num_chunks=1, loss_fn=_LossOfTheHead.Config())
        super().__init__(wrapped, compile_config=compile_config)
        self._options = {
            "label_smoothing": config.label_smoothing,
            "z_loss": config.z_loss,
            "gradient_threshold": config.gradient_threshold,
            "backend": config.backend,
        }

    def __call__(
        self, pred: Tensor, labels: Tensor, global_valid_tokens: Tensor | None = None, **loss_inputs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, scalar, and no metrics.

        Args:
            pred: (B, T, D) hidden states, which the model returns with `_skip_lm_head`.
            labels: (B, T) int64: the token that each position predicts, or -100.
            global_valid_tokens: scalar: the sum over the tokens is divided by it. None: it is not divided.
            loss_inputs: not used.
        """
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise ValueError("the loss cannot be part of a CUDA graph: set training.disable_cuda_graphs")
        with self._computing(self.lm_head, labels):
            return super().__call__(pred, labels, global_valid_tokens)

    @contextmanager
    def _computing(self, head: Any, labels: Tensor) -> Iterator[None]:
        """A context in which the head's forward pass computes the loss; hooks around it, such as FSDP's, run as
        usual."""
        if type(head).forward is not nn.Linear.forward:
            raise ValueError(
                f"the LM head's class {type(head).__name__} has a forward pass of its own: expected a Linear"
            )

        def forward(hidden: Tensor) -> Tensor:
            group = _group_of_parts(head)
            weight, bias = (head.weight, head.bias) if group else head_tensors(head)
            return linear_cross_entropy(
                hidden,
                weight,
                labels,
                bias=bias,
                process_group=group,
                ignore_index=IGNORE_INDEX,
                reduction="sum",
                **self._options,
            )

        before = vars(head).get("forward")  # torchtitan's own, if the head was parallelized
        if get_spmd_backend() == "full_dtensor":
            raise ValueError(
                'parallelism.spmd_backend is "full_dtensor", in which all processes share each tensor: expected '
                '"spmd_types" or "partial_dtensor"'
            )
        head.forward = forward
        try:
            yield
        finally:
            del head.forward
            if before is not None:
                head.forward = before


def _group_of_parts(head: Any) -> Any:
    """The process group of an LM head of which each process holds a part as a plain tensor, as with the backend
    "spmd_types"; None for other heads. The hidden states are the same in all processes, and torchtitan sums the parts
    of their gradient."""
    mesh = current_spmd_mesh()
    if is_dtensor(head.weight) or len(head.weight) == head.out_features or mesh is None:
        return None
    return part_of(mesh.get_group("tp"))
