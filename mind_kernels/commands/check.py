"""`python -m mind_kernels check`: every backend of this machine against the definition in float64, in a minute.

On small and odd shapes, in each dtype: the loss and the gradients of hidden states, weight and bias. A backend may err
as mind_kernels/testing.py says, about twice as much as plain PyTorch in the same dtype. The exit status is 1 if one
errs more, or fails. linear_top_k, which has no gradient, is not among the losses.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mind_kernels import (
    Head,
    linear_cross_entropy,
    linear_divergence,
    linear_log_prob,
    linear_mind_loss,
    linear_pairwise_jsd,
)
from mind_kernels.backend import BACKENDS, interpreted
from mind_kernels.testing import error, error_budget, make_inputs

SHAPES = ((6, 8, 31), (33, 40, 1009), (3, 16, 4112))  # rows, hidden size, vocabulary
CONDITIONS = ((None, 1.0), (4.0, 0.7))  # softcap, temperature
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
GROUP = 3  # rows per group; every number of rows is a multiple of it
CONDITIONING = 8.0  # about the largest log-sum-exp of these logits: see testing.error_budget

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A loss of hidden states and a head."""

    operation: str
    """As backends know it."""
    loss: Callable[[Tensor, Head, Inputs, str], Tensor]
    """Of hidden (N, D), the head, constants and the name of a backend."""


def _cross_entropy(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Tensor:
    options = {"row_weight": c["row_weight"], "label_smoothing": 0.1, "z_loss": 1e-3}
    return linear_cross_entropy(hidden, head, c["target"], **options, backend=backend)


def _log_prob(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Tensor:
    found = linear_log_prob(hidden, head, c["target"], backend=backend)
    return (c["row_weight"] * (0.1 * found.entropy - found.log_prob)).sum()


def _listed(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Tensor:
    """Of two ids per row, at a temperature per row."""
    ids = torch.stack([c["target"], c["target"].clamp(min=0) // 2], 1)
    options = {"temperature": head.temperature * (0.5 + c["row_weight"]), "bias": head.bias, "softcap": head.softcap}
    found = linear_log_prob(hidden, head.weight, ids, **options, backend=backend)
    return (c["row_weight"] * (0.01 * found.lse.square() - found.log_prob.sum(1))).sum()


def _divergence(kind: str) -> Callable[[Tensor, Head, Inputs, str], Tensor]:
    def loss(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Tensor:
        teacher = Head(c["teacher_weight"], temperature=head.temperature)
        return linear_divergence(hidden, head, c["teacher_hidden"], teacher, kind=kind, backend=backend)

    return loss


def _pairs(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Tensor:
    return linear_pairwise_jsd(hidden.unflatten(0, (-1, GROUP)), head, c["pair_weight"], backend=backend)


def _mixture(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Tensor:
    weight = c["row_weight"].unflatten(0, (-1, GROUP))
    return linear_pairwise_jsd(hidden.unflatten(0, (-1, GROUP)), head, mixture_weight=weight, backend=backend)


def _joint(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Tensor:
    rows = torch.arange(GROUP, device=hidden.device)[None]
    return linear_mind_loss(hidden, head, c["target"], c["row_weight"], rows, c["pair_weight"][:1], backend=backend)


CASES = {
    "cross-entropy": Case("linear_cross_entropy", _cross_entropy),
    "log-probability": Case("linear_cross_entropy", _log_prob),
    "ids and lse": Case("linear_cross_entropy", _listed),
    "forward KL": Case("linear_divergence", _divergence("forward_kl")),
    "reverse KL": Case("linear_divergence", _divergence("reverse_kl")),
    "JSD of a teacher": Case("linear_divergence", _divergence("jsd")),
    "JSD of pairs": Case("linear_pairwise_jsd", _pairs),
    "JSD of a mixture": Case("linear_pairwise_jsd", _mixture),
    "MIND's loss": Case("linear_mind_loss", _joint),
}


def inputs_of(rows: int, size: int, vocabulary: int, dtype: torch.dtype, device: str) -> Inputs:
    """Random tensors in `dtype`, weights in float32 at least, the same numbers whatever the dtype."""
    made = make_inputs(rows, size, vocabulary, dtype=dtype, device=device)
    teacher = make_inputs(rows, size + 3, vocabulary, dtype=dtype, device=device, seed=1)
    generator = torch.Generator().manual_seed(2)
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64)
    pairs = torch.rand(rows // GROUP, GROUP, GROUP, generator=generator, dtype=torch.float64)
    return {
        **made,
        "bias": bias.to(device, dtype),
        "pair_weight": pairs.to(device, made["row_weight"].dtype),
        "teacher_hidden": teacher["hidden"],
        "teacher_weight": teacher["weight"],
    }


def results(case: Case, inputs: Inputs, softcap: float | None, temperature: float, backend: str) -> list[Tensor]:
    """The loss, and the gradients of hidden states, weight and bias."""
    leaves = [inputs[name].detach().clone().requires_grad_() for name in ("hidden", "weight", "bias")]
    loss = case.loss(leaves[0], Head(leaves[1], leaves[2], softcap, temperature), inputs, backend)
    return [loss, *torch.autograd.grad(loss, leaves)]


def worst(case: Case, backend: str, dtype: torch.dtype, device: str) -> float:
    """The largest error of a backend in a dtype, as a share of what is allowed."""
    shares = [0.0]
    for shape in SHAPES:
        given = inputs_of(*shape, dtype, device)
        exact = {name: value.double() if value.is_floating_point() else value for name, value in given.items()}
        for condition in CONDITIONS:
            truth = results(case, exact, *condition, "reference")
            peer = results(case, given, *condition, "reference")
            found = results(case, given, *condition, backend)
            for one, of_peer, right in zip(found, peer, truth, strict=True):
                allowed, mine = error_budget(of_peer, right, dtype, conditioning=CONDITIONING), error(one, right)
                shares += [mine.largest / allowed.largest, mine.rms / allowed.rms]
    return max(shares)


def rows_of(device: str) -> Iterator[tuple[str, str, list[str]]]:
    """Case, backend and a cell per dtype: the share, a fault, or why it was not run."""
    for name, case in CASES.items():
        for backend, row in BACKENDS.items():
            here = row.availability().available and row.takes(torch.device(device).type)
            if here and case.operation in row.kernels:
                yield name, backend, [_cell(case, backend, dtype, device) for dtype in DTYPES]


def _cell(case: Case, backend: str, dtype: torch.dtype, device: str) -> str:
    if dtype == torch.float64 and not BACKENDS[backend].float64:
        return "-"
    on_cpu = torch.device(device).type == "cpu"
    if dtype == torch.bfloat16 and on_cpu and BACKENDS[backend].interpreter and interpreted():
        return "-"  # Triton's interpreter multiplies no bfloat16 matrices
    try:
        share = worst(case, backend, dtype, device)
    except Exception as error:  # of a kernel, a compiler or a driver: it is what the command looks for
        return f"FAILS: {type(error).__name__}: {' '.join(str(error).split())}"
    return f"{share:.2f}" if share <= 1 else f"{share:.3g} DIFFERS"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mind_kernels check",
        description="Runs every backend of this machine on small and odd shapes and compares loss and gradients with "
        "the definition in float64. Numbers are errors as a share of what is allowed; above 1 the exit status is 1.",
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help=f"cpu, cuda or cuda:1 (default here: {default})")
    device = parser.parse_args(arguments).device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {device}: {str(error).splitlines()[0]}")
    faults = 0
    print(f"{'loss':<20}{'backend':<18}" + "".join(f"{str(dtype).removeprefix('torch.'):<11}" for dtype in DTYPES))
    for name, backend, cells in rows_of(device):
        print(f"{name:<20}{backend:<18}" + "".join(f"{cell:<11}" for cell in cells).rstrip(), flush=True)
        faults += sum(" " in cell for cell in cells)
    told = f"{faults} of these differ from the definition or fail" if faults else "all agree with the definition"
    print(told, flush=True)
    return 1 if faults else 0
