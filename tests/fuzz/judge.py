"""Whether the results of a call are right: compared with the definition in float64, within an error budget.

The budget is that of mind_kernels.testing: twice the error of eager PyTorch in the same dtype, plus the dtype's floor.
A single eager result may be right by luck, so one that is over the budget is judged again by the unluckiest of several:
the definition in the dtype itself with its sums in other orders, and in the accumulation dtype with every input off by
one rounding of that dtype, which shows how much the result amplifies such errors.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from mind_kernels import sparse_gradient
from mind_kernels.row_chunks import accumulation_dtype
from mind_kernels.testing import error, error_budget
from tests.fuzz.calls import same
from tests.fuzz.public import PublicCall, Tensors

PEERS = 8  # of each kind
WEIGHTS = ("row_weight", "pair_weight", "mixture_weight")
THRESHOLDS = {"gradient_threshold", "gradient_error"}


class Truth:
    """The definition of one call in float64, and what eager PyTorch makes of it."""

    def __init__(self, call: PublicCall) -> None:
        self.call = call
        self.values = call.wide()("reference")

    @functools.cached_property
    def peer(self) -> Tensors:
        call = self.call
        contiguous = {name: value.contiguous() for name, value in call.leaves.items()}
        return call.replaced(contiguous, call.constants)("reference")

    @functools.cached_property
    def peers(self) -> list[Tensors]:
        # In its own memory layout, too: PyTorch's products of float16 overflow in some only.
        return [self.peer, self.call("reference"), *self._in_other_orders(), *self._off_by_a_rounding()]

    def _in_other_orders(self) -> Iterator[Tensors]:
        """With the entries of hidden states and heads in another order, the student's and the teacher's."""
        call, generator = self.call, torch.Generator().manual_seed(0)
        for _ in range(PEERS):
            orders: dict[int, Tensor] = {}

            def permuted(name: str, tensor: Tensor, orders: dict[int, Tensor] = orders) -> Tensor:
                if name.removeprefix("teacher_") not in ("hidden", "weight"):
                    return tensor
                size = tensor.shape[-1] + (10**6 if name.startswith("teacher_") else 0)
                order = orders.setdefault(size, torch.randperm(tensor.shape[-1], generator=generator))
                return tensor[..., order]

            leaves = {name: permuted(name, value) for name, value in call.leaves.items()}
            found = call.replaced(leaves, {n: permuted(n, v) for n, v in call.constants.items()})("reference")
            if call.leaves["hidden"].shape[-1] in orders:
                back = orders[call.leaves["hidden"].shape[-1]].argsort()
                found |= {name: found[name][..., back] for name in ("d_hidden", "d_weight") if name in found}
            yield found

    def _off_by_a_rounding(self) -> Iterator[Tensors]:
        dtype, generator = accumulation_dtype(self.call.dtype), torch.Generator().manual_seed(0)
        wide = self.call.wide(dtype)
        for _ in range(PEERS):

            def off(name: str, tensor: Tensor) -> Tensor:
                if name.removeprefix("teacher_") not in ("hidden", "weight", "bias"):
                    return tensor
                noise = torch.randn(tensor.shape, generator=generator, dtype=dtype)
                return tensor * (1 + torch.finfo(dtype).eps * noise)

            leaves = {name: off(name, value) for name, value in wide.leaves.items()}
            yield wide.replaced(leaves, {n: off(n, v) for n, v in wide.constants.items()})("reference")

    @functools.cached_property
    def size(self) -> dict[str, float]:
        """The largest number that the sums of a result have for terms, by the result's name; "" is a statistic's.

        Results that are small because their terms cancel may err by a rounding of these.
        """
        call = self.call.wide()
        hidden, weight = (_finite(call.leaves[name]) for name in ("hidden", "weight"))
        statistic = _logits(call.leaves | call.options | call.constants)
        if "teacher_hidden" in call.constants:
            named = {name.removeprefix("teacher_"): value for name, value in (call.constants | call.options).items()}
            teacher = {
                name: value for name, value in named.items() if f"teacher_{name}" in call.constants | call.options
            }
            statistic += _logits({"temperature": call.options.get("temperature", 1.0)} | teacher)
        statistic += 1 + math.log(
            len(weight)
        )  # a log-probability has this size, and a sum of 1, though logits are small
        temperature = _smallest((call.options | call.constants).get("temperature", 1.0))
        weights = [v for n, v in call.constants.items() if n in WEIGHTS]
        total = sum(float(_finite(value).abs().sum()) for value in weights) if weights else max(1, len(hidden))
        if call.options.get("reduction") == "mean" and "row_weight" in call.constants:
            total /= max(1e-300, abs(float(_finite(call.constants["row_weight"]).sum())))
        logit = total * 4 * max(1.0, call.upstream) * statistic / temperature
        if softcap := call.options.get("softcap"):  # its slope may follow from a log-probability
            logit *= 1 + statistic * temperature / softcap
        return {
            "": statistic,
            "loss": statistic * total,
            "stats.consistency": statistic * total,
            "stats.cross_entropy": statistic * total,
            "d_bias": logit,
            "d_hidden": logit * _largest(weight),
            "d_weight": logit * _largest(hidden),
        }

    @functools.cached_property
    def _infinite_divergence(self) -> bool:
        """Whether a weight is infinite, and what it weights may be 0 or a rounding of either sign beside it."""
        weights = [value for name, value in self.call.constants.items() if name in WEIGHTS]
        return self.call.function == "linear_divergence" and any(bool(value.isinf().any()) for value in weights)

    @functools.cached_property
    def _underflows(self) -> Tensor:
        """(N,) bool: rows whose divergence is infinite by a probability below float32's smallest normal number, which
        may be 0; of another operation, empty."""
        call = self.call.wide()
        if call.function != "linear_divergence" or self.call.dtype == torch.float64:
            return torch.zeros(0, dtype=torch.bool)
        stats = call.replaced(call.leaves, call.constants, return_stats=True)("reference")
        tiny = (stats["stats.entropy"] > 0) & (stats["stats.entropy"] < 128 * torch.finfo(torch.float32).tiny)
        return tiny & (stats["stats.divergence"] == torch.inf)

    @functools.cached_property
    def _eps(self) -> float:
        """That of the coarsest dtype of the hidden states and heads: the teacher's may have less than the student's."""
        tensors = (self.call.leaves | self.call.constants).items()
        heads = [value for name, value in tensors if name.removeprefix("teacher_") in ("hidden", "weight")]
        return max(torch.finfo(value.dtype).eps for value in heads)

    @functools.cached_property
    def all_finite(self) -> bool:
        """Whether every input is a number, and every row has a gradient; -inf in a bias excludes a token, and in a list
        it is padding."""
        if self.call.upstream == 0 or self.call.seed % 2 or self.call.left_out:
            return False
        tensors = [v for v in (self.call.leaves | self.call.constants).values() if v.is_floating_point()]
        return not any(bool((value.isnan() | (value == torch.inf)).any()) for value in tensors) and all(
            bool((value > -torch.inf).all()) for name, value in self.call.leaves.items() if name != "bias"
        )

    @functools.cached_property
    def _peer_overflows(self) -> bool:
        """Whether the loss or a statistic is a number, but not in PyTorch's dtype: nothing is known of the gradient."""
        values = [(value, self.peer[name]) for name, value in self.values.items() if not name.startswith("d_")]
        numbers = [(value, peer) for value, peer in values if value.is_floating_point()]
        return any(bool((value.isfinite() & ~peer.isfinite()).any()) for value, peer in numbers)

    @functools.cached_property
    def exact(self) -> Truth:
        """That of the same call with the exact gradient."""
        options = {name: value for name, value in self.call.options.items() if name not in THRESHOLDS}
        return Truth(dataclasses.replace(self.call, options=options))

    def fault(self, name: str, found: Tensor, *, quick: bool = False) -> str:
        """What is wrong with this result; empty if nothing is. `quick`: by a single peer, which may be lucky."""
        truth = self.values[name]
        if found.shape != truth.shape:
            return f"{name} has shape {tuple(found.shape)}: expected {tuple(truth.shape)}"
        if same(found, truth.to(found.dtype)):
            return ""
        if name == "loss" and self._infinite_divergence:
            truth = torch.where(found.isfinite() | truth.isfinite(), truth, found.double())
        if bool((rows := self._underflows).any()):
            truth = torch.where(rows if truth.shape == rows.shape else ~truth.isfinite(), found.double(), truth)
        if name in ("d_weight", "d_bias") and "teacher_ids" in self.call.constants:
            # Of an infinite divergence: only the tokens that the teacher lists need show it.
            truth = truth.masked_fill((found == 0) & truth.isnan(), 0)
        dtype = self.call.dtype if name.startswith("d_") else accumulation_dtype(self.call.dtype)
        floor = 4 * self._eps * self.size.get(name, self.size[""])
        if name.startswith("d_") and (self._peer_overflows or floor > torch.finfo(found.dtype).max):
            truth = torch.where(found.isfinite(), truth, found.double())  # it may overflow too
        how = dtype, floor, self.all_finite
        fault = result_fault(name, found, truth, [self.peer[name]], *how)
        if quick or not fault:
            return fault
        return result_fault(name, found, truth, [peer[name] for peer in self.peers], *how)

    def gradient_faults(self, found: Tensors) -> list[str]:
        """Of gradients that may be sparse: those of the definition, or exact if that is faster or more accurate.

        The definition knows no upstream gradients, by which the rows of a background are weighted.
        """
        if self.call.upstream != 1 and (
            self.call.function == "linear_log_prob" or self.call.options.get("reduction") == "none"
        ):
            return []
        gradients = {name: value for name, value in found.items() if name.startswith("d_")}
        for quick in (True, False):
            every = []
            for truth in (self, self.exact):
                every.append(
                    [fault for name, value in gradients.items() if (fault := truth.fault(name, value, quick=quick))]
                )
                if not every[-1]:
                    return []
        return [] if self._is_near_threshold() else every[0]

    def _is_near_threshold(self) -> bool:
        """Whether roundings decide which entries the definition keeps, or any entry at all: the sum of a log-sum-exp of
        more than 10^7 and the logarithm of the threshold is the former in float32."""
        call = self.call.wide()
        rounding = 16 * torch.finfo(self.call.dtype).eps * self.size[""]
        if any(rounding > -math.log(call.options[name]) for name in THRESHOLDS & call.options.keys()):
            return True
        off = 1 + min(0.5, rounding)
        found = []
        for factor in (off, 1 / off):
            changed = {name: call.options[name] * factor for name in THRESHOLDS & call.options.keys()}
            found.append(call.replaced(call.leaves, call.constants, **changed)("reference"))
        return not all(same(found[0][name], found[1][name]) for name in found[0] if name.startswith("d_"))

    def token_log_prob(self, ids: Tensor) -> Tensor:
        """Of linear_top_k, the log-probabilities of these tokens."""
        call = self.call.wide()
        every = call.replaced(call.leaves, {}, k=call.leaves["weight"].shape[0])("reference")
        by_token = torch.empty_like(every["log_prob"]).scatter_(-1, every["ids"], every["log_prob"])
        return by_token.gather(-1, ids)


def result_fault(
    name: str, found: Tensor, truth: Tensor, peers: list[Tensor], dtype: torch.dtype, floor: float, all_finite: bool
) -> str:
    """What is wrong with a result, of which `peers` are what PyTorch makes, the unluckiest of which counts."""
    if not found.is_floating_point():
        certain = torch.stack([value == truth for value in peers]).all(0)
        wrong = certain & (found != truth)
        return f"{name} is {found[wrong][0]}: expected {truth[wrong][0]}" if bool(wrong.any()) else ""
    # If the dtype overflows, or makes another thing of nan and infinity, PyTorch tells nothing of the error.
    like = [_alike(value, truth) | (value.isfinite() & truth.isfinite()) for value in peers]
    certain = torch.stack(like).all(0)
    numbers = certain & (truth.abs() <= torch.finfo(found.dtype).max)
    odd = certain & ~truth.isfinite() & ~_alike(found, truth)
    if name.startswith("d_"):  # what a product gives, nan or infinity, depends on the order of its factors
        odd &= found.isfinite() & all_finite
    if bool(odd.any()):
        return f"{name} is {found[odd][0]}: expected {truth[odd][0]}"
    if not bool(numbers.any()):
        return ""
    mine, right = error(found[numbers], truth[numbers]), truth[numbers]
    budgets = [error_budget(value[numbers], right, dtype) for value in peers]
    largest, rms = max(one.largest for one in budgets), max(one.rms for one in budgets)
    largest, rms = largest + floor, rms + floor
    if mine.largest <= largest and mine.rms <= rms:
        return ""
    return f"{name}: error {mine.largest:.3e} (rms {mine.rms:.3e}), expected at most {largest:.3e} (rms {rms:.3e})"


def _logits(head: dict[str, Any]) -> float:
    """The size of the largest logit that these hidden states and this head may have."""
    found = _largest(_finite(head["hidden"]).flatten(0, -2).abs() @ _finite(head["weight"]).abs().T) + 1
    found += _largest(_finite(head["bias"])) if head.get("bias") is not None else 0
    return max(found, head.get("softcap") or 0) / _smallest(head.get("temperature", 1.0))  # of an excluded token


def _smallest(temperature: float | Tensor) -> float:
    if not isinstance(temperature, Tensor):
        return temperature
    return float(temperature.min()) if temperature.numel() else 1.0


def _finite(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num(0, 0, 0)


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _alike(one: Tensor, other: Tensor) -> Tensor:
    return (one == other) | (one.isnan() & other.isnan())


def _faults(truth: Truth, found: Tensors) -> Iterator[str]:
    is_sparse = bool(THRESHOLDS & truth.call.options.keys())
    if truth.values.keys() != found.keys():
        yield f"results {sorted(found)}: expected {sorted(truth.values)}"
        return
    if truth.call.function == "linear_top_k":
        ids = found.pop("ids")
        if ids.numel() and not bool((ids.sort(-1).values.diff(dim=-1) > 0).all()):
            yield "ids: a token comes twice"
        if fault := truth.fault("log_prob", truth.token_log_prob(ids).to(found["log_prob"].dtype)):
            yield f"ids, by their {fault}"
    for name, value in found.items():
        of_threshold = name.startswith("d_") or name.rpartition(".")[2] in ("kept_entries", "dropped_mass")
        if not (is_sparse and of_threshold) and (fault := truth.fault(name, value)):
            yield fault
    if is_sparse:
        yield from truth.gradient_faults(found)


def check(call: PublicCall, backends: Sequence[str], count: Callable[[str], None] = lambda _: None) -> None:
    """Raises AssertionError if the result of one of the backends is not within its budget, or if an input has changed.

    `count` gets the name of each backend that was called.
    """
    truth = Truth(call)
    tensors = call.leaves | call.constants
    before = {name: value.clone() for name, value in tensors.items()}
    for backend in backends:
        with _limits(call.always_sparse):
            found = call(backend)
        count(backend)
        if faults := list(_faults(truth, found)):
            raise AssertionError(f"backend {backend}: {'; '.join(faults)}\n{call.described()}")
        for name, value in tensors.items():
            assert same(value, before[name]), f"backend {backend} changed {name}\n{call.described()}"


def _limits(always_sparse: bool) -> AbstractContextManager[Any]:
    """Small vocabularies are denser than any limit of the sparse gradient."""
    if not always_sparse:
        return nullcontext()
    limits = {"_DENSITY_LIMIT": {"cpu": 1.0, "cuda": 1.0}, "_BATCH_DENSITY_LIMIT": 1.0, "_MASS_LIMIT": 1.0}
    return mock.patch.multiple(sparse_gradient, **limits)
