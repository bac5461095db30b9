"""The operators of mind_kernels._cpp as the dispatcher lists them, and the calls of them that public functions make.

What is tested of every operator starts from such calls, so that a new one is tested as soon as a function uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

import mind_kernels
from mind_kernels import extension
from mind_kernels.testing import make_inputs
from tests.fuzz.arguments import DTYPES, Arena

Choose = Callable[[Sequence[Any]], Any]
"""Gives one of several values."""


def operators() -> dict[str, Any]:
    """Every operator of the library, by name."""
    extension.operators("cpp")
    space = "mind_kernels_cpp::"
    names = [name.removeprefix(space) for name in torch._C._dispatch_get_all_op_names() if name.startswith(space)]
    return {name: getattr(torch.ops.mind_kernels_cpp, name).default for name in sorted(names)}


@dataclass
class Call:
    """A call of an operator, with its arguments by the names that its schema has."""

    operator: Any
    arguments: dict[str, Any]
    arena: Arena = field(default_factory=lambda: Arena(torch.Generator()))

    @classmethod
    def of(cls, operator: Any, values: Sequence[Any]) -> Call:
        return cls(operator, dict(zip((argument.name for argument in operator._schema.arguments), values, strict=True)))

    @property
    def name(self) -> str:
        return self.operator._schema.name.partition("::")[2]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.arguments.items() if isinstance(value, Tensor)}

    @property
    def written(self) -> set[str]:
        """The names of the tensors that it writes."""
        schema = self.operator._schema.arguments
        return {a.name for a in schema if a.alias_info is not None and a.alias_info.is_write} & set(self.tensors)

    def copied(self) -> Call:
        """The same call on copies of its tensors, with margins whose bytes have to stay."""
        arena = Arena(torch.Generator())
        copies = {name: arena.like(tensor) for name, tensor in self.tensors.items()}
        return Call(self.operator, self.arguments | copies, arena)

    def __call__(self) -> Any:
        """Runs it. Raises AssertionError if it has written anywhere else than it says."""
        written = self.written
        before = {name: tensor.clone() for name, tensor in self.tensors.items() if name not in written}
        result = self.operator(*self.arguments.values())
        self.arena.check_margins()
        for name, tensor in before.items():
            assert same(tensor, self.arguments[name]), f"{self.name} changed {name}, which it only reads"
        return result

    def results(self, result: Any) -> list[Tensor]:
        """What it has written and returned."""
        returned = [result] if isinstance(result, Tensor) else list(result or ())
        return [self.arguments[name] for name in sorted(self.written)] + returned


def same(one: Tensor, other: Tensor) -> bool:
    """Bit by bit, but for what kind of nan there is."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


@contextmanager
def watched(handle: Callable[[Call], Any]) -> Iterator[None]:
    """In place of each call of an operator of the library, what `handle` does and returns."""
    original = extension.operators

    class Watched:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            operator = getattr(original("cpp"), name).default
            return lambda *values: handle(Call.of(operator, values))

    with mock.patch.object(extension, "operators", lambda name: Watched() if name == "cpp" else original(name)):
        yield


@dataclass
class PublicCall:
    """A random call of a public function: its loss, in terms of a backend and of hidden states, weight and bias."""

    loss: Callable[[str, Tensor, Tensor, Tensor | None], Tensor]
    function: str
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    exact: bool  # no sparse gradient
    gradient: bool

    def __call__(self, backend: str = "cpp", dtype: torch.dtype | None = None) -> list[Tensor]:
        """The loss, and the gradients if it has some."""
        hidden, weight, bias = (
            None if tensor is None else tensor.detach().to(dtype or tensor.dtype).requires_grad_(self.gradient)
            for tensor in (self.hidden, self.weight, self.bias)
        )
        assert hidden is not None and weight is not None
        loss = self.loss(backend, hidden, weight, bias)
        leaves = [hidden, weight] if bias is None else [hidden, weight, bias]
        return [loss.detach(), *(torch.autograd.grad(loss, leaves) if self.gradient else ())]


def alone() -> dist.ProcessGroup | None:
    """The group of this process, which has no other."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return dist.group.WORLD


DIVERGENCES = (
    {"kind": "forward_kl"},
    {"kind": "reverse_kl"},
    {"kind": "jsd", "beta": 0.3},
    {"kind": "skew_reverse_kl"},
    {"kind": "taid", "interpolation": 0.4},
)


def public_call(choose: Choose, seed: int) -> PublicCall:
    # Of 17 rows and size 260, logits in memory come from the product of csrc/cpu/project.h.
    rows, size, vocabulary = choose((1, 17, 600, 900)), choose((1, 8, 33, 70, 260)), choose((7, 101, 2000))
    dtype, peak = choose(DTYPES), choose((0.0, 6.0))
    inputs = make_inputs(rows, size, vocabulary, dtype=dtype, seed=seed, peak=peak)
    hidden, weight, target, row_weight = inputs.values()
    hidden *= choose((1, 8))  # a few entries have almost all of the probability: the sparse gradient is taken
    generator = torch.Generator().manual_seed(seed)
    bias = torch.randn(vocabulary, generator=generator).to(dtype)
    ids = torch.where(target[:, None] < 0, target[:, None], (target[:, None] + torch.arange(3)) % vocabulary)
    options = {"softcap": choose((None, None, 30.0)), "temperature": choose((1.0, 0.7))}
    threshold = choose((None, 2.0**-4, 2.0**-8))
    smoothing, z_loss = choose((0.0, 0.1)), choose((0.0, 1e-3))
    is_split = choose((False, True))  # among processes, of which there is one
    of_batch = threshold is None and not is_split and not (smoothing and options["softcap"])
    batch_error = choose((None, 1e-2)) if of_batch else None

    def split(backend: str) -> dict[str, Any]:
        return {"process_group": alone()} if is_split and backend == "cpp" else {}

    def cross_entropy(backend: str, h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return mind_kernels.linear_cross_entropy(
            h,
            w,
            target,
            row_weight=row_weight.to(torch.promote_types(h.dtype, torch.float32)),
            reduction="sum",
            label_smoothing=smoothing,
            z_loss=z_loss,
            gradient_threshold=threshold,
            gradient_error=batch_error if backend == "cpp" else None,
            bias=b,
            backend=backend,
            **options,
            **split(backend),
        )

    with_lse = choose((False, True))

    def of_log_probs(found: Any) -> Tensor:
        loss = found.log_prob.sum() + 0.1 * found.entropy.sum()
        return loss + 0.1 * found.lse.sum() if with_lse else loss

    def log_prob(backend: str, h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        found = mind_kernels.linear_log_prob(
            h, w, target, gradient_threshold=threshold, bias=b, backend=backend, **options, **split(backend)
        )
        return of_log_probs(found)

    of_rows = {"temperature": torch.rand(rows, generator=generator) + 0.5} if choose((False, True)) else {}

    def listed(backend: str, h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        found = mind_kernels.linear_log_prob(h, w, ids, bias=b, backend=backend, **(options | of_rows))
        return of_log_probs(found)

    count, mixture = choose((2, 3, 8)), choose((False, True))
    groups = (torch.arange(min(rows, 20) * count) % rows).view(-1, count)
    shape = groups.shape if mixture else (*groups.shape, count)
    group_weight = {"mixture_weight" if mixture else "pair_weight": torch.ones(shape)}
    of_pairs = "jsd" if mixture else choose(("jsd", "jeffreys"))
    mask = torch.arange(groups.numel()).view_as(groups) % 5 != 4 if choose((False, True)) else None

    def divergences(backend: str, h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        given = {name: value.to(torch.promote_types(h.dtype, torch.float32)) for name, value in group_weight.items()}
        return mind_kernels.linear_pairwise_jsd(
            h[groups], w, kind=of_pairs, mask=mask, **given, bias=b, backend=backend, **options
        )

    kind = choose(DIVERGENCES)
    teacher_hidden, teacher_weight, *_ = make_inputs(rows, 20, vocabulary, dtype=dtype, seed=seed + 1).values()
    teacher: dict[str, Any] = {"teacher_hidden": teacher_hidden, "teacher_weight": teacher_weight}
    teacher |= {"teacher_softcap": choose((None, 20.0)), "teacher_temperature": choose((None, 1.3))}
    if choose((False, True)):
        listed_ids = torch.rand(rows, vocabulary, generator=generator).topk(4).indices
        log_prob_of_ids = torch.randn(rows, 4, generator=generator).log_softmax(1) - 0.1
        teacher = {"teacher_ids": listed_ids, "teacher_log_prob": log_prob_of_ids}

    def divergence(backend: str, h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return mind_kernels.linear_divergence(
            h,
            w,
            **teacher,
            **kind,
            row_weight=row_weight.to(torch.promote_types(h.dtype, torch.float32)),
            reduction="sum",
            bias=b,
            backend=backend,
            **options,
        )

    losses = {
        "linear_cross_entropy": cross_entropy,
        "linear_log_prob": log_prob,
        "linear_log_prob of several ids": listed,
        "linear_pairwise_jsd": divergences,
        "linear_divergence": divergence,
    }
    function = choose(list(losses))
    sparse = {"linear_cross_entropy": threshold or batch_error, "linear_log_prob": threshold}
    given = bias if choose((False, True)) else None
    return PublicCall(
        losses[function], function, hidden, weight, given, not sparse.get(function), choose((True, True, False))
    )
