"""Inputs and plain definitions for the tests of row and group kernels, whatever they are written in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowValues, RowWeights
from mind_kernels.linear_pairwise_jsd.reference import divergences, group_loss
from mind_kernels.testing import error

THRESHOLD = 2.0**-8


Results = dict[str, torch.Tensor]


def once(definition: Callable[..., tuple[Results, Results]]) -> Callable[..., tuple[Results, Results]]:
    """The definition, computed once for the same arguments: all implementations of a kernel are compared with it."""
    known: dict[tuple[object, ...], tuple[Results, Results]] = {}

    def contents(argument):
        if not isinstance(argument, torch.Tensor):
            return argument
        numbers = argument.detach().cpu().contiguous().view(-1).view(torch.uint8)
        return argument.dtype, argument.shape, argument.device, numbers.numpy().tobytes()

    @functools.wraps(definition)
    def call(*arguments):
        key = tuple(map(contents, arguments))
        if key not in known:
            known[key] = definition(*arguments)
        truth, peer = ({name: value.clone() for name, value in results.items()} for results in known[key])
        return truth, peer

    return call


def unluckiest(eager: Callable[[torch.Tensor], Results], vocabulary: int, truth: Results) -> Results:
    """Eager PyTorch's results with the largest errors, of several orders of the vocabulary.

    The error of few numbers is a matter of luck, and so would be the budget that follows from it. `eager` is told the
    order (V,) in which to sum.
    """
    generator = torch.Generator().manual_seed(vocabulary)
    every = torch.arange(vocabulary)
    orders = [every, every.flip(0), *(torch.randperm(vocabulary, generator=generator) for _ in range(2))]
    found = [eager(order) for order in orders]

    def worst(name: str) -> torch.Tensor:
        return max((results[name] for results in found), key=lambda value: error(value, truth[name]).largest)

    return {name: worst(name) for name in truth}


@dataclass(frozen=True)
class Options:
    softcap: float | None = None
    temperature: float = 1.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    entropy: bool = False

    def __str__(self) -> str:
        """Those that are not the default."""
        given = {name: value for name, value in vars(self).items() if value != getattr(Options, name)}
        return ",".join(f"{name}={value}" for name, value in given.items()) or "plain"

    def spec(self, head: torch.Tensor | int, threshold=THRESHOLD) -> RowSpec:
        """The loss of rows; `head` is the weight, or the vocabulary for kernels that have the logits."""
        weight = torch.empty(head, 0) if isinstance(head, int) else head
        return RowSpec(Head(weight, None, self.softcap, self.temperature), self.label_smoothing, self.z_loss, threshold)

    def weights(self, scale, entropy_scale) -> RowWeights:
        return RowWeights(scale, entropy_scale if self.entropy else None)

    def condition(self, logits):
        z = logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
        return z / self.temperature


PLAIN = Options()
EVERYTHING = Options(softcap=5.0, temperature=0.7, label_smoothing=0.1, z_loss=1e-3, entropy=True)
OPTIONS = [
    PLAIN,
    Options(softcap=30.0),
    Options(temperature=1.3, label_smoothing=0.1),
    Options(z_loss=1e-2),
    Options(entropy=True),
    EVERYTHING,
]


def make_rows(rows, vocabulary, dtype, peak=6.0, device="cpu"):
    """Logits peaked in half of the rows, targets (the last one is the last entry), and weights of any sign."""
    generator = torch.Generator().manual_seed(rows * vocabulary)
    logits = 2 * torch.randn(rows, vocabulary, generator=generator)
    target = torch.randint(0, vocabulary, (rows,), generator=generator)
    target[-1] = vocabulary - 1
    logits[::2, target[::2]] += peak
    weights = torch.randn(2, rows, generator=generator)
    return logits.to(device, dtype), target.to(device), *weights.to(device).unbind()


def statistics(z, target, spec):
    """The values of rows by their definition in the dtype of the logits z (n, V); `spec` has the loss's options."""
    log_p = torch.log_softmax(z, -1)
    lse = torch.logsumexp(z, -1)
    nll = -log_p.gather(1, target[:, None]).squeeze(1)
    smoothing = spec.label_smoothing
    loss = (1 - smoothing) * nll - smoothing * log_p.mean(-1) + spec.z_loss * lse.square()
    values = {"loss": loss, "nll": nll, "lse": lse, "entropy": -(log_p.exp() * log_p).sum(-1)}
    missing = set(RowValues._fields) - set(values) - {"correct"}
    assert not missing, f"no definition of {missing}"
    return values


def eager_rows(logits, target, scale, entropy_scale, options):
    """Values and gradient by autograd, in float64 for float64 logits and float32 for all others."""
    leaf = logits.detach().clone().requires_grad_()
    z = options.condition(leaf.double() if leaf.dtype == torch.float64 else leaf.float())
    values = statistics(z, target, options)
    objective = scale.to(z.dtype) * values["loss"]
    if options.entropy:
        objective = objective + entropy_scale.to(z.dtype) * values["entropy"]
    objective.sum().backward()
    return {name: value.detach() for name, value in values.items()} | {"gradient": leaf.grad}


@once
def truth_and_peer_of_rows(logits, target, scale, entropy_scale, options):
    """`eager_rows` in float64, and with its errors in the dtype of the logits."""
    truth = eager_rows(logits.double(), target, scale, entropy_scale, options)

    def eager(order):
        order = order.to(logits.device)
        place = order.argsort()
        found = eager_rows(logits[:, order], place[target], scale, entropy_scale, options)
        return found | {"gradient": found["gradient"][:, place]}

    return truth, unluckiest(eager, logits.shape[1], truth)


class Terms(NamedTuple):
    """Of each logit z (n, V): probability, gradient without a uniform part, slope, and their product."""

    p: torch.Tensor
    dz: torch.Tensor
    slope: torch.Tensor
    gradient: torch.Tensor


def from_lse(logits, target, scale, entropy_scale, options, order=None) -> Terms:
    """The terms by the formulas, as plain PyTorch computes them from lse in the dtype of the logits.

    `order` (V,) is that in which the vocabulary is summed.
    """
    if order is not None:
        order = order.to(logits.device)
        place = order.argsort()
        terms = from_lse(logits[:, order], place[target], scale, entropy_scale, options)
        return Terms(*(term[:, place] for term in terms))
    z = options.condition(logits)
    lse = torch.logsumexp(z, 1, keepdim=True)
    log_p = z - lse
    p = log_p.exp()
    scale, entropy_scale = scale.to(z.dtype)[:, None], entropy_scale.to(z.dtype)[:, None]
    dz = p * scale * (1 + 2 * options.z_loss * lse)
    if options.entropy:
        dz = dz - entropy_scale * p * (log_p - (p * log_p).sum(1, keepdim=True))
    dz = dz - scale * (1 - options.label_smoothing) * torch.zeros_like(z).scatter_(1, target[:, None], 1.0)
    slope = torch.ones_like(z) / options.temperature
    if options.softcap is not None:
        slope = slope * (1 - (z * options.temperature / options.softcap).square())
    return Terms(p, dz, slope, dz * slope)


def kept_entries(logits, target, options):
    """Mask of the entries above the threshold and of the targets, and of those too close to the threshold to tell."""
    others = torch.softmax(options.condition(logits.double()), 1).scatter_(1, target[:, None], 0)
    ratio = others / (THRESHOLD * others.sum(1, keepdim=True))
    return (ratio > 1).scatter(1, target[:, None], True), (ratio - 1).abs() < 1e-5


def make_groups(kind, groups, count, vocabulary, *, scale=1.0, spread=1.0, absent=0.2, device="cpu"):
    """Logits, weights (of pairs: of any sign; of rows: some of them zero) and mask. `spread` 0 makes rows equal."""
    generator = torch.Generator().manual_seed(count)
    common = torch.randn(groups, 1, vocabulary, generator=generator)
    logits = scale * (common + spread * torch.randn(groups, count, vocabulary, generator=generator))
    weight = torch.randn(groups, count, count, generator=generator)
    if kind == "mixture":
        weight = weight[:, 0].clamp(min=0).contiguous()
        weight[:, 1] = 0.7
    mask = torch.rand(groups, count, generator=generator) >= absent
    mask[:, :2] = True
    return logits.to(device), weight.to(device), mask.to(device)


def eager_groups(logits, weight, mask):
    """Values and gradient by autograd, in the dtype of the logits."""
    leaf = logits.detach().clone().requires_grad_()
    values = divergences(leaf, weight, mask)
    group_loss(values, weight).backward()
    return {"values": values.detach(), "gradient": leaf.grad}


@once
def truth_and_peer_of_groups(logits, weight, mask):
    """`eager_groups` in float64, and with its errors in the dtype of the logits."""
    truth = eager_groups(logits.double(), weight, mask)

    def eager(order):
        order = order.to(logits.device)
        found = eager_groups(logits[..., order], weight, mask)
        return found | {"gradient": found["gradient"][..., order.argsort()]}

    return truth, unluckiest(eager, logits.shape[-1], truth)


def not_cancelling(logits, weight):
    """Values and gradient in float64, by forms in which nearly equal rows do not cancel."""
    log_p = torch.log_softmax(logits.double(), -1)
    p, count = log_p.exp(), logits.shape[1]
    derivative = torch.zeros_like(p)
    if weight.dim() == 2:
        share = (weight / weight.sum(1, keepdim=True)).double()[..., None]
        d = log_p - log_p[:, 1:2]  # row 1 has weight
        ratio = d - torch.log1p((share * torch.expm1(d)).sum(1, keepdim=True))
        values = (p * (ratio + torch.expm1(-ratio))).sum(-1)
        derivative = weight.double()[..., None] * ratio
    else:
        values = p.new_zeros(len(p), count, count)
        for i in range(count):
            for j in range(i + 1, count):
                t = log_p[:, j] - log_p[:, i]
                log_cosh = torch.log1p(2 * torch.sinh(t / 4).square())
                entry = (p[:, i] + p[:, j]) / 2 * (t / 2 * torch.tanh(t / 2) - log_cosh)
                values[:, i, j] = values[:, j, i] = entry.sum(-1)
                half = weight[:, i, j, None].double() / 2
                derivative[:, i] -= half * (t / 2 + log_cosh)
                derivative[:, j] += half * (t / 2 - log_cosh)
    return values, p * (derivative - (p * derivative).sum(-1, keepdim=True))


def inputs_of(rows, size, vocabulary, dtype=torch.float32, bias=False):
    """Hidden states near the target's row of the head, and a bias that rules a third of the vocabulary out."""
    generator = torch.Generator().manual_seed(rows * size + vocabulary)
    weight = torch.randn(vocabulary, size, generator=generator)
    target = torch.randint(0, vocabulary, (rows,), generator=generator)
    target[0], target[-1] = 0, vocabulary - 1
    hidden = torch.randn(rows, size, generator=generator) + weight[target] * 4 / size**0.5
    added = torch.randn(vocabulary, generator=generator)
    added[1::3] = -torch.inf
    added[target] = 0.5
    return hidden.to(dtype), weight.to(dtype), added.to(dtype) if bias else None, target
