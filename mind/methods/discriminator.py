"""A small network that tells right rationales from wrong ones, given the vectors of question and rationale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mind.errors import NotFiniteError

_WIDTH = 128
_PAIRS_PER_STEP = 32
"""Number of (question, rationale) pairs per step of its optimizer."""


class _Network(nn.Module):
    """Computes the logit of a pair. Both vectors are normalized first, since a few coordinates of mean-pooled hidden
    states are hundreds of times larger than the others."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.layers = nn.Sequential(nn.Linear(2 * features, _WIDTH), nn.GELU(), nn.Linear(_WIDTH, 1))

    def forward(self, question: Tensor, rationale: Tensor) -> Tensor:
        """Logits (...) from two tensors (..., F)."""
        return self.layers(torch.cat([self.norm(question), self.norm(rationale)], -1)).squeeze(-1)


class Discriminator:
    """The network together with its optimizer."""

    def __init__(self, features: int, learning_rate: float, seed: int) -> None:
        """`features` is F, the width of a vector; `seed` is the seed of the initial weights."""
        torch.manual_seed(seed)  # the same whether the run is new or resumed
        self.network = _Network(features)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=learning_rate, weight_decay=0.0)

    @property
    def _device(self) -> torch.device:
        return self.network.norm.weight.device

    @torch.no_grad()
    def quality(
        self,
        question: Tensor,  # (Q, F)
        rationales: Tensor,  # (Q, S, F)
    ) -> Tensor:  # (Q, S) float64 on the CPU
        """The probability q that each rationale is right."""
        question, rationales = question.to(self._device), rationales.to(self._device)
        return self.network(question[:, None].expand_as(rationales), rationales).double().sigmoid().cpu()

    def learn(
        self,
        question: Tensor,  # (N, F)
        rationale: Tensor,  # (N, F)
        right: Tensor,  # (N,) bool
        epochs: int,
        generator: torch.Generator,
    ) -> float:
        """Trains by the binary cross-entropy on N pairs, in an order drawn from `generator`; returns the mean over the
        last epoch, in nats.

        Raises NotFiniteError if the mean of an epoch is nan or infinite.
        """
        mean = math.nan
        for _ in range(epochs):
            total = 0.0
            for index in torch.randperm(len(right), generator=generator).split(_PAIRS_PER_STEP):
                inputs = (vectors[index].to(self._device) for vectors in (question, rationale))
                with torch.enable_grad(), torch.autocast(self._device.type, enabled=False):
                    logits, target = self.network(*inputs), right[index].to(self._device).float()
                    loss = nn.functional.binary_cross_entropy_with_logits(logits, target)
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                total += float(loss.detach()) * len(index)
            mean = total / len(right)
            if not math.isfinite(mean):
                raise NotFiniteError(f"the discriminator's binary cross-entropy is {mean}")
        return mean

    def state_dict(self) -> dict[str, Any]:
        """The state for `load_state_dict`."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
