"""A network that tells right rationales from wrong ones by the vectors of question and rationale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mind.errors import NotFiniteError

_WIDTH = 128
_PAIRS_PER_STEP = 32
"""Of question and rationale, in a step of its optimizer."""


class _Network(nn.Module):
    """The logit of a pair; both vectors have their own scale taken out first, since a few coordinates of mean-pooled
    hidden states are hundreds of times larger than the rest."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.layers = nn.Sequential(nn.Linear(2 * features, _WIDTH), nn.GELU(), nn.Linear(_WIDTH, 1))

    def forward(self, question: Tensor, rationale: Tensor) -> Tensor:
        """(..., F) twice -> (...)."""
        return self.layers(torch.cat([self.norm(question), self.norm(rationale)], -1)).squeeze(-1)


class Discriminator:
    """The network with its optimizer."""

    def __init__(self, features: int, learning_rate: float, seed: int) -> None:
        """`features` is F, the width of a vector; `seed` that of the first weights."""
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
        """The probability q that each rationale is a right one."""
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
        """Trains by the binary cross-entropy on N pairs in an order that `generator` draws; returns the mean over the
        last epoch, in nats.

        Raises NotFiniteError if that of an epoch is nan or infinite.
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
        """What `load_state_dict` takes."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
