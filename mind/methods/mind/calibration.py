"""Feedback-driven inertia calibration: how the student's own losses teach MetaNet (arXiv 2601.03717).

    L_meta = KL(softmax(s / tau) || softmax(-L_real / tau)),  over the present perspectives of a question

MetaNet learns only from L_meta. The inertia consists of a smaller learning rate than in its warm-up, a window of
gradient accumulation and, optionally, an exponential moving average of L_real.

Scores are in (0, 1), losses in nats. If the losses of a question's rationales differ by half a nat or more, no scores
can reach the target, and MetaNet saturates; if they differ by hundredths, any scores fit. So L_real is measured in
units of its own spread [ours], unless `metanet.spread` is None, which is the published form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mind.config import MetaNetConfig
from mind.errors import NotFiniteError
from mind.finite import require_finite
from mind.methods.mind.metanet import MetaNet

# Decay of the variance by which L_real is scaled: an average over about the last ten steps.
_SPREAD_DECAY = 0.9


def meta_loss(
    scores: Tensor,  # (Q, K)
    l_real: Tensor,  # (Q, K)
    present: Tensor,  # (Q, K) bool
    tau: float,
) -> Tensor:  # ()
    """L_meta over the `present` rationales, averaged over the questions; l_real gets no gradient."""
    mask = torch.where(present, 0.0, -torch.inf)
    losses = torch.where(present, l_real.detach(), 0).to(scores.dtype)
    log_p = torch.log_softmax(scores / tau + mask, dim=1)
    log_target = torch.log_softmax(-losses / tau + mask, dim=1)
    difference = torch.where(present, log_p - log_target, 0)
    return (log_p.exp() * difference).sum(dim=1).mean()


def moving_average(
    average: dict[str, Tensor],
    ids: Sequence[str],  # of Q questions
    l_real: Tensor,  # (Q, K)
    decay: float,
) -> Tensor:  # (Q, K)
    """Takes the latest losses into the `average` (K,) of each question and returns the averages; nan for a loss that
    was never known."""
    rows = []
    for name, latest in zip(ids, l_real, strict=True):
        before = average.get(name, latest).to(latest)
        mixed = torch.where(before.isnan(), latest, decay * before + (1 - decay) * latest)
        average[name] = torch.where(latest.isnan(), before, mixed).detach()
        rows.append(average[name])
    return torch.stack(rows)


def mean_variance(l_real: Tensor) -> float:
    """The variance of L_real (Q, K) within a question (nan entries are unknown), averaged over the questions with at
    least two known losses; nan if there is none."""
    known = ~l_real.isnan()
    count = known.sum(1, keepdim=True)
    mean = l_real.nansum(1, keepdim=True) / count
    squares = torch.where(known, l_real - mean, 0).double().square().sum(1) / count[:, 0]
    return float(squares[count[:, 0] >= 2].mean())


class LossUnit:
    """Scales L_real to the standard deviation `metanet.spread`, following the spread of recent losses; leaves nats if
    that is None."""

    def __init__(self, spread: float | None) -> None:
        self.spread = spread
        self.variance = math.nan
        """The variance of L_real within a question, over recent questions; nan before the first."""

    def follow(self, l_real: Tensor) -> None:
        """Updates the variance with the losses (Q, K) of a step."""
        latest = mean_variance(l_real)
        if math.isnan(self.variance):
            self.variance = latest
        elif not math.isnan(latest):
            self.variance += (1 - _SPREAD_DECAY) * (latest - self.variance)

    def __call__(self, l_real: Tensor) -> Tensor:
        """The scaled losses (Q, K); all 0 as long as all losses within a question were equal."""
        if self.spread is None:
            return l_real
        return l_real * (self.spread / math.sqrt(self.variance) if self.variance > 0 else 0.0)


class Calibrator:
    """MetaNet with its own optimizer, its window of accumulated gradients and the history of L_real."""

    def __init__(self, metanet: MetaNet, config: MetaNetConfig, learning_rate: float) -> None:
        self.metanet = metanet
        self.config = config
        self.learning_rate = learning_rate
        self.optimizer = torch.optim.AdamW(metanet.parameters(), lr=learning_rate, weight_decay=0.0)
        self._steps_in_window = 0
        self._average: dict[str, Tensor] = {}  # question id -> (K,) moving average of L_real
        self.unit = LossUnit(config.spread)

    def add_feedback(
        self,
        ids: Sequence[str],
        scores: Tensor,  # (Q, K)
        l_real: Tensor,  # (Q, K)
    ) -> float:
        """Adds the gradient of L_meta to the open window and returns L_meta. Called once per step of the student.

        L_meta covers the rationales whose L_real is known: computed in this step, or kept in the moving average.

        Args:
            ids: of the step's Q questions.
            scores: MetaNet's own scores, with their graph.
            l_real: the student's mean NLL per token on each rationale, nan if it was not computed.

        Raises NotFiniteError if L_meta or its gradient is nan or infinite.
        """
        smoothed = self._smoothed(ids, l_real)
        self.unit.follow(l_real)
        smoothed = self.unit(smoothed)
        loss = meta_loss(scores, smoothed, ~smoothed.isnan(), self.config.tau)
        loss.backward()
        gradients = [parameter.grad for parameter in self.metanet.parameters() if parameter.grad is not None]
        # One read for both: a single wait for the GPU.
        value, norm = torch.stack([loss.detach(), torch.nn.utils.get_total_norm(gradients)]).tolist()
        if not math.isfinite(value) or not math.isfinite(norm):
            raise NotFiniteError(f"L_meta, which calibrates MetaNet, is {value}, its gradient's norm {norm}")
        return value

    def end_step(self) -> bool:
        """Counts one optimizer step of the student; at the window's end, steps MetaNet and returns True."""
        self._steps_in_window += 1
        if self._steps_in_window < self.config.accumulation:
            return False
        self._step(self.optimizer, self._steps_in_window)
        self._steps_in_window = 0
        return True

    def warm_up(
        self,
        question: Tensor,  # (Q, F) float32
        rationales: Tensor,  # (Q, K, F) float32
        present: Tensor,  # (Q, K) bool
        l_real: Tensor,  # (Q, K) float32
        seed: int,
    ) -> list[float]:
        """Trains MetaNet alone, with a separate optimizer; returns the mean L_meta of each epoch.

        Args:
            question: features of all questions to train on, on MetaNet's device like the other tensors.
            rationales: features of their rationales; zeros if a rationale is missing.
            present: which rationales there are.
            l_real: the mean NLL per token of the student, which does not move meanwhile; read where `present`.
            seed: of the order of the questions in each epoch.

        Raises NotFiniteError if an epoch's L_meta is nan or infinite.
        """
        optimizer = torch.optim.AdamW(self.metanet.parameters(), lr=self.config.warmup_learning_rate, weight_decay=0.0)
        generator = torch.Generator().manual_seed(seed)
        self.unit.follow(torch.where(present, l_real, torch.nan))
        l_real = self.unit(l_real)
        history = []
        for _ in range(self.config.warmup_epochs):
            total = 0.0
            for index in torch.randperm(len(question), generator=generator).split(self.config.warmup_questions):
                index = index.to(question.device)
                scores = self.metanet(question[index], rationales[index], present[index])
                loss = meta_loss(scores, l_real[index], present[index], self.config.tau)
                loss.backward()
                self._step(optimizer, 1)
                total += float(loss.detach()) * len(index)
            if not math.isfinite(total):
                raise NotFiniteError(f"L_meta of MetaNet's warm-up is {total} in epoch {len(history) + 1}")
            history.append(total / len(question))
        return history

    def _smoothed(self, ids: Sequence[str], l_real: Tensor) -> Tensor:
        return l_real if self.config.ema == 0 else moving_average(self._average, ids, l_real, self.config.ema)

    def _step(self, optimizer: torch.optim.Optimizer, losses: int) -> None:
        for parameter in self.metanet.parameters():
            if parameter.grad is not None:
                parameter.grad /= losses
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: weights, optimizer, the open window and the history.

        Raises NotFiniteError if a number of it is nan or infinite.
        """
        gradients = {name: p.grad.clone() for name, p in self.metanet.named_parameters() if p.grad is not None}
        state = {
            "metanet": self.metanet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "gradients": gradients,
            "steps_in_window": self._steps_in_window,
            "average": self._average,
            "variance": self.unit.variance,
        }
        _require_finite(state)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; raises NotFiniteError if a number in it is nan or infinite."""
        _require_finite(state)
        self.metanet.load_state_dict(state["metanet"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, parameter in self.metanet.named_parameters():
            gradient = state["gradients"].get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter)
        self._steps_in_window = state["steps_in_window"]
        self._average = dict(state["average"])
        self.unit.variance = state.get("variance", math.nan)  # older versions did not need it


def _require_finite(state: Mapping[str, Any]) -> None:
    average = {name: known[~known.isnan()] for name, known in state["average"].items()}  # nan: never computed
    require_finite({**state, "average": average, "variance": 0.0}, "the calibrator's")
