"""What tests and benchmarks of a loss share: inputs, and the error budget against float64.

A tolerance is never picked by hand: an implementation may err against the float64 definition at most twice as much as
plain PyTorch does in the same dtype, plus a floor for the dtype, in the largest error and in the root mean square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Rounding a result to its dtype is always allowed: two unit roundoffs, relative to the tensor's largest entry. In
# float64 the truth itself is rounded, so the floor there is that of a sum of a thousand terms.
_FLOOR = {torch.float64: 2.0**-43, torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def make_inputs(
    rows: int,
    size: int,
    vocabulary: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
    peak: float = 6.0,
    ignored: float = 0.1,
) -> dict[str, Tensor]:
    """hidden (rows, size), weight (vocabulary, size), target (rows,) with a share of -100, and row_weight (rows,).

    The softmax of a row is peaked at the target in half of the rows, with a logit of about `peak` above the rest: on
    flat rows every probability is about 1/V and errors hide.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocabulary, size, generator=generator, dtype=torch.float64)
    weight /= weight.norm(dim=1, keepdim=True)
    target = torch.randint(0, vocabulary, (rows,), generator=generator)
    hidden = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    hidden[::2] += peak * weight[target[::2]]
    row_weight = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1
    target[torch.rand(rows, generator=generator) < ignored] = -100
    return {
        "hidden": hidden.to(device, dtype),
        "weight": weight.to(device, dtype),
        "target": target.to(device),
        "row_weight": row_weight.to(device, torch.float64 if dtype == torch.float64 else torch.float32),
    }


@dataclass(frozen=True)
class Error:
    """Distance from the float64 truth: largest and root-mean-square absolute difference."""

    largest: float
    rms: float


def error(value: Tensor, truth: Tensor) -> Error:
    """The error of `value` against `truth` (float64).

    A non-finite difference counts as infinite, save where both are nan or the same infinity.
    """
    value, truth = value.detach().double(), truth.detach().double()
    same = (value == truth) | (value.isnan() & truth.isnan())
    difference = torch.where(same, 0, value - truth).abs()
    if difference.numel() == 0:
        return Error(0.0, 0.0)
    if not bool(difference.isfinite().all()):
        return Error(float("inf"), float("inf"))
    return Error(float(difference.max()), float(difference.square().mean().sqrt()))


def error_budget(peer: Tensor, truth: Tensor, dtype: torch.dtype, conditioning: float = 1.0) -> Error:
    """The error that is allowed: twice that of `peer` (plain PyTorch in `dtype`), plus the floor of `dtype`.

    The floor of a single number is four times as high: the peer's error is one draw there, and may be nil by luck.
    `conditioning` multiplies it where rounding is amplified in a way that the peer is spared: logits computed in two
    products, for the normalizer and for the probabilities, differ by the rounding of a logit z, which changes p by |z|
    times as much.
    """
    of_peer = error(peer, truth)
    scale = float(truth.detach().nan_to_num().abs().max()) if truth.numel() else 0.0
    smallest_step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    floor = _FLOOR[dtype] * scale * conditioning * (4 if truth.numel() == 1 else 1) + smallest_step
    return Error(2 * of_peer.largest + floor, 2 * of_peer.rms + floor)


def assert_within_budget(
    values: Mapping[str, Tensor],
    peers: Mapping[str, Tensor],
    truths: Mapping[str, Tensor],
    dtype: torch.dtype,
    conditioning: float = 1.0,
) -> None:
    """Raises AssertionError, naming the tensor, where `values` err more than `error_budget` allows."""
    for name, truth in truths.items():
        value = values[name]
        assert value.shape == truth.shape, f"{name}: shape {tuple(value.shape)}, expected {tuple(truth.shape)}"
        found, allowed = error(value, truth), error_budget(peers[name], truth, dtype, conditioning)
        assert found.largest <= allowed.largest and found.rms <= allowed.rms, (
            f"{name}: error {found.largest:.3e} (rms {found.rms:.3e}) exceeds the budget "
            f"{allowed.largest:.3e} (rms {allowed.rms:.3e})"
        )
