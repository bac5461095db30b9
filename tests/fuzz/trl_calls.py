"""Random calls of the functions that TRL's trainers are given, in place of TRL's own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mind_kernels.integrations import trl as fused_functions
from tests.fuzz.choices import Choices
from tests.fuzz.layouts import laid_out, values
from tests.fuzz.public import Tensors
from tests.fuzz.replaced import Case

Function = Callable[..., Any]
TIE = 16  # roundings of the largest logit of a row, within which another one may be as large


@dataclass
class TrlCall:
    """Arguments of one of these functions."""

    name: str
    leaves: Tensors
    """hidden, weight and, unless there is none, bias."""
    needs: list[str]
    """Those of the leaves that require a gradient."""
    teacher: list[Tensor | None]
    """The same of the teacher, if there is one."""
    constants: dict[str, Any]
    upstream: Tensor
    """(2, N): gradients of the first two results."""
    autocast: bool

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes."""
        return torch.bfloat16 if self.autocast else self.leaves["hidden"].dtype

    def case(self, ours: Function, theirs: Function, definition: Function) -> Case:
        def replaced(wide: torch.dtype | None, off: int) -> Tensors:
            return self._run(theirs if wide is None else definition, wide, off)

        said = "\n".join(f"  {name}: {value}" for name, value in self.constants.items())
        shapes = {name: (value.dtype, tuple(value.shape)) for name, value in self.leaves.items()}
        said = f"{self.name}: {shapes}, gradients of {self.needs}, autocast {self.autocast}\n{said}"
        return Case(self._run(ours, None, 0), replaced, self.dtype, self._sizes(), said)

    def _run(self, function: Function, wide: torch.dtype | None, off: int) -> Tensors:
        noise, eps = torch.Generator().manual_seed(off), torch.finfo(self.dtype).eps

        def given(value: Tensor | None) -> Any:
            if value is not None and off:
                value = value * (1 + eps * torch.randn(value.shape, generator=noise)).to(value.dtype)
            return None if value is None else value.detach().to(wide or value.dtype)

        leaves = {name: given(value).requires_grad_(name in self.needs) for name, value in self.leaves.items()}
        head = leaves["hidden"], leaves["weight"], leaves.get("bias")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast and wide is None):
            every = function(*head, *map(given, self.teacher), *self.constants.values())
        names = self.name, "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"
        found = {name: value for name, value in zip(names, every, strict=False) if value is not None}
        pairs = zip(every, self.upstream, strict=False)
        sums = [(value * up).sum() for value, up in pairs if value is not None and value.requires_grad]
        if sums and self.needs:
            gradients = torch.autograd.grad(sums, [leaves[name] for name in self.needs])
            found |= {f"d_{name}": value for name, value in zip(self.needs, gradients, strict=True)}
        return {
            name: value.detach() if value.is_floating_point() else value & self._has_clear_winner
            for name, value in found.items()
        }

    @functools.cached_property
    def _has_clear_winner(self) -> Tensor:
        """(N,): whether the largest logit of a row is ahead of all others by more than roundings."""
        head = {name: value.detach().double() for name, value in self.leaves.items()}
        settings = {name: self.constants[name] for name in ("softcap", "scale", "temperature")}
        z = logits_of(head["hidden"], head["weight"], head.get("bias"), **settings)
        if z.shape[-1] < 2:
            return torch.ones(len(z), dtype=torch.bool)
        first, second = z.topk(2).values.unbind(-1)
        return first - second > TIE * torch.finfo(self.dtype).eps * first.abs()

    def _sizes(self) -> dict[str, float]:
        """See `Case.sizes`: of logits whose terms do not cancel."""
        names = [("", [*self.leaves.values()])] + ([("teacher_", self.teacher)] if self.teacher else [])
        terms = 1 + math.log(len(self.leaves["weight"]))
        slope = self.constants["scale"] / self.constants["temperature"]
        for owner, (hidden, weight, *bias) in names:
            sums = hidden.double().abs() @ weight.double().abs().T  # type: ignore[union-attr]
            sums = sums + sum(one.double().abs() for one in bias if one is not None)
            slope_here = self.constants[f"{owner}scale"] / self.constants["temperature"]
            terms += slope_here * float(sums.max()) if sums.numel() else 0.0
        factor = max([1.0, *(float(one.abs().max()) for one in self.leaves.values() if one.numel())])
        return {"": terms, "d_": float(self.upstream.abs().sum()) * terms * slope * factor}


def trl_call(name: str, choices: Choices) -> Case:
    """A call with all that TRL's trainers may give."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    from trl.kernels.chunked_logprob import OPTIONAL_OUTPUTS, ChunkedLogProbFunction

    rows, width, vocabulary = choices.number(7), 1 + choices.number(8), 1 + choices.number(40)
    dtype = choices.among((torch.float32, torch.bfloat16))
    generator, scale = choices.generator(), choices.among((1.0, 0.01, 8.0))

    def tensor(*shape: int) -> Tensor:
        return laid_out(choices, values(choices, generator, *shape, dtype=dtype, scale=scale))

    leaves = {"hidden": tensor(rows, width), "weight": tensor(vocabulary, width)}
    if choices.rarely():  # as of a model in bfloat16 whose head is kept in float32
        leaves["weight"] = leaves["weight"].float()
    if choices.rarely():
        leaves["bias"] = tensor(vocabulary)

    def settings(owner: str = "") -> dict[str, Any]:
        softcap = choices.among((None, 3.0, 0.1, 50.0))
        return {f"{owner}scale": choices.among((1.0, 0.125, 4.0)), f"{owner}softcap": softcap}

    upstream = torch.randn(2, rows, generator=generator) * choices.among((1.0, 0.0, 1e3))
    temperature = {"temperature": choices.among((1.0, 0.7, 3.0))}
    teacher: list[Tensor | None] = []
    if name == "log_prob":
        target = laid_out(choices, torch.randint(vocabulary, (rows,), generator=generator))
        outputs = tuple(one for one in OPTIONAL_OUTPUTS if not choices.rarely())
        of_head = settings()
        of_head = {"chunk_size": 1 + choices.number(40), "softcap": of_head["softcap"], "scale": of_head["scale"]}
        constants = {"target": target} | temperature | of_head | {"outputs": outputs}
        functions = fused_functions.FusedLogProb.apply, ChunkedLogProbFunction.apply, log_prob
    else:
        wide = 1 + choices.number(8)
        teacher = [tensor(rows, wide), tensor(vocabulary, wide), tensor(vocabulary) if choices.rarely() else None]
        constants = (
            {"beta": choices.among((0.0, 1.0, 0.5, 0.05, 0.999))} | temperature | settings() | settings("teacher_")
        )
        functions = fused_functions.FusedDivergence.apply, ChunkedDivergenceFunction.apply, divergence
    needs = [one for one in leaves if not choices.rarely()]
    autocast = dtype == torch.float32 and choices.rarely()
    return TrlCall(name, leaves, needs, teacher, constants, upstream, autocast).case(*functions)


def logits_of(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, scale: float, temperature: float
) -> Tensor:
    x = scale * torch.nn.functional.linear(hidden, weight, bias)
    return (x if softcap is None else softcap * (x / softcap).tanh()) / temperature


def log_prob(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    temperature: float,
    chunk_size: int,
    softcap: float | None,
    scale: float,
    outputs: tuple[str, ...],
) -> tuple[Tensor | None, ...]:
    """The definition of the first function."""
    z = logits_of(hidden, weight, bias, softcap, scale, temperature)
    log_p = z.log_softmax(-1)
    optional = {
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "log_sum_sq_probs": (2 * log_p).logsumexp(-1).detach(),
        "mean_logits": z.mean(-1).detach(),
        "is_top1": z.argmax(-1) == target,
    }
    return log_p.gather(1, target[:, None])[:, 0], *(v if name in outputs else None for name, v in optional.items())


def divergence(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    beta: float,
    temperature: float,
    scale: float,
    softcap: float | None,
    teacher_scale: float,
    teacher_softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """The definition of the second one."""
    log_p = logits_of(hidden, weight, bias, softcap, scale, temperature).log_softmax(-1)
    of_teacher = logits_of(teacher_hidden, teacher_weight, teacher_bias, teacher_softcap, teacher_scale, temperature)
    log_q = of_teacher.log_softmax(-1)
    log_m = ((1 - beta) * log_p.exp() + beta * log_q.exp()).log()
    of_p, of_q = ((log.exp() * (log - log_m)).sum(-1) for log in (log_p, log_q))
    entropy = -(log_p.exp() * log_p).sum(-1).detach()
    ends = {0.0: (log_q, log_p), 1.0: (log_p, log_q)}
    if beta in ends:
        one, other = ends[beta]
        return (one.exp() * (one - other)).sum(-1), entropy
    return beta * of_q + (1 - beta) * of_p, entropy
