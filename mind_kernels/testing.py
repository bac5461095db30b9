"""Inputs and error budgets for tests and benchmarks of the losses.

No tolerance is chosen by hand: the error of an implementation against the float64 definition may be at most twice that
of plain PyTorch in the same dtype (three times with a GPU), plus a floor for the dtype; both for the largest error and
the root mean square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# On a GPU the kernels use its own exp2, log2 and division, which err by two units in the last place; PyTorch's err by
# one at most. On an H200 the largest of 1e3 to 1e6 errors was up to 2.9 times PyTorch's, their root mean square less.
_TIMES_PEER = 3 if torch.cuda.is_available() else 2
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

    In half of the rows, the logit of the target is about `peak` above the rest: if all rows were flat, every
    probability would be about 1/V, and errors would be hard to see.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn: dict[str, Any] = {"generator": generator, "device": "cpu"}  # the same numbers for every device
    weight = torch.randn(vocabulary, size, dtype=torch.float64, **drawn)
    weight /= weight.norm(dim=1, keepdim=True)
    target = torch.randint(0, vocabulary, (rows,), **drawn)
    hidden = torch.randn(rows, size, dtype=torch.float64, **drawn)
    hidden[::2] += peak * weight[target[::2]]
    row_weight = torch.rand(rows, dtype=torch.float64, **drawn) + 0.1
    target[torch.rand(rows, dtype=torch.float32, **drawn) < ignored] = -100
    return {
        "hidden": hidden.to(device, dtype),
        "weight": weight.to(device, dtype),
        "target": target.to(device),
        "row_weight": row_weight.to(device, torch.float64 if dtype == torch.float64 else torch.float32),
    }


@dataclass(frozen=True)
class Error:
    """Largest and root-mean-square absolute difference from the float64 truth."""

    largest: float
    rms: float


def error(value: Tensor, truth: Tensor) -> Error:
    """The error of `value` against `truth` (float64).

    A non-finite difference counts as infinite, unless both are nan or the same infinity.
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

    On a machine with a GPU it is three times that of the peer.
    For a single number the floor is four times as high, since the peer's error may be zero by luck. `conditioning`
    multiplies the budget if an implementation amplifies rounding errors and the peer does not: if the logits for the
    normalizer and for the probabilities come from two products, they differ by the rounding of a logit z, which changes
    p by |z| times as much.
    """
    of_peer = error(peer, truth)
    scale = float(truth.detach().nan_to_num().abs().max()) if truth.numel() else 0.0
    smallest_step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    floor = _FLOOR[dtype] * scale * conditioning * (4 if truth.numel() == 1 else 1) + smallest_step
    return Error(_TIMES_PEER * of_peer.largest + floor, _TIMES_PEER * of_peer.rms + floor)


def assert_within_budget(
    values: Mapping[str, Tensor],
    peers: Mapping[str, Tensor],
    truths: Mapping[str, Tensor],
    dtype: torch.dtype,
    conditioning: float = 1.0,
) -> None:
    """Raises AssertionError, naming the tensor, if the error of `values` is above `error_budget`."""
    for name, truth in truths.items():
        value = values[name]
        assert value.shape == truth.shape, f"{name}: shape {tuple(value.shape)}, expected {tuple(truth.shape)}"
        found, allowed = error(value, truth), error_budget(peers[name], truth, dtype, conditioning)
        assert found.largest <= allowed.largest and found.rms <= allowed.rms, (
            f"{name}: error {found.largest:.3e} (rms {found.rms:.3e}) exceeds the budget "
            f"{allowed.largest:.3e} (rms {allowed.rms:.3e})"
        )
