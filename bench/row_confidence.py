"""The error of the gradient by how confident the rows are: exact, sparse, and of dense bfloat16 arithmetic.

    python -m bench.row_confidence [--rows 256] [--device cpu] [--backends torch cpp] [--data svamp.jsonl]
        [--output folder] [--overwrite] [--draw]

Real rows in float32, the logits of whose targets are raised until the loss of every row is 5, 1, ... 1e-7. An error is
the relative Frobenius norm of the difference from float64: of dH, of the worst row of dH, and of dW. bfloat16 is what
eager PyTorch gives with operands and logits in it. Writes row_confidence.jsonl, and fails where the sparse gradient
errs more than bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import command
from bench.comparison.heads import REAL
from bench.comparison.provider import backends_here
from bench.linear_cross_entropy.inputs import load
from bench.measure import print_table, read_results, write_results
from mind_kernels import linear_cross_entropy

NAME = "row_confidence"
THRESHOLD = 2.0**-12
LOSSES = (5.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
ERRORS = ("d_hidden_error", "worst_row_error", "d_weight_error")
COLUMNS = ("nll", "gradient", *ERRORS, "kept", "dropped_mass")


class Rows(NamedTuple):
    """hidden (N, D + K), weight (V, D + K) and target (N,); the last K columns only raise the target's logit."""

    hidden: Tensor
    weight: Tensor
    target: Tensor
    size: int  # D


@torch.no_grad()
def at_loss(hidden: Tensor, weight: Tensor, target: Tensor, nll: float) -> Rows:
    """The rows, each with the loss `nll`: K columns, one for each distinct target, raise or lower its logit alone."""
    logits, index = hidden.double() @ weight.double().T, target[:, None]
    of_target = logits.gather(1, index)
    others = logits.scatter(1, index, -torch.inf).logsumexp(1, keepdim=True)
    lift = others - of_target - math.log(math.expm1(nll))
    distinct, place = target.unique(return_inverse=True)
    raised = hidden.new_zeros(len(hidden), len(distinct)).scatter_(1, place[:, None], lift.to(hidden.dtype))
    by_target = weight.new_zeros(len(weight), len(distinct))
    by_target[distinct, torch.arange(len(distinct), device=weight.device)] = 1
    return Rows(torch.cat([hidden, raised], 1), torch.cat([weight, by_target], 1), target, hidden.shape[1])


def gradients(loss: Callable[[Tensor, Tensor], Tensor], rows: Rows, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """dH (N, D) and dW (V, D) of loss(hidden, weight), both in `dtype`."""
    leaves = rows.hidden.to(dtype).requires_grad_(), rows.weight.to(dtype).requires_grad_()
    found = torch.autograd.grad(loss(*leaves), leaves)
    return found[0][:, : rows.size], found[1][:, : rows.size]


def eager(rows: Rows, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Those of eager PyTorch, with operands and logits in `dtype` and a softmax in float32 or better."""
    wide = torch.promote_types(dtype, torch.float32)
    return gradients(lambda hidden, weight: F.cross_entropy((hidden @ weight.T).to(wide), rows.target), rows, dtype)


def errors(found: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> dict[str, float]:
    """The `ERRORS` of dH and dW."""

    def relative(value: Tensor, true: Tensor, dim: int | None = None) -> float:
        return float(((value.double() - true).norm(dim=dim) / true.norm(dim=dim)).max())

    (hidden, weight), (true_hidden, true_weight) = found, truth
    values = relative(hidden, true_hidden), relative(hidden, true_hidden, 1), relative(weight, true_weight)
    return dict(zip(ERRORS, values, strict=True))


def measure(hidden: Tensor, weight: Tensor, target: Tensor, backends: list[str]) -> list[dict[str, Any]]:
    """A row of results for each loss and gradient."""
    out = []
    for nll in LOSSES:
        rows = at_loss(hidden, weight, target, nll)
        truth = eager(rows, torch.float64)
        for dtype in (torch.bfloat16, torch.float32):
            name = f"eager {str(dtype).removeprefix('torch.')}"
            out.append({"nll": nll, "gradient": name, **errors(eager(rows, dtype), truth)})
        for backend in backends:
            exact = partial(linear_cross_entropy, target=rows.target, backend=backend)
            sparse = partial(exact, gradient_threshold=THRESHOLD)
            _, stats = sparse(rows.hidden, rows.weight, return_stats=True)
            left_out = {
                "kept": float(stats.kept_entries.double().mean()),
                "dropped_mass": float(stats.dropped_mass.mean()),
            }
            for name, loss, more in (("exact", exact, {}), ("sparse 2^-12", sparse, left_out)):
                found = errors(gradients(loss, rows, torch.float32), truth)
                out.append({"nll": nll, "gradient": f"{backend} {name}", **found, **more})
    return out


def check(rows: list[dict[str, Any]]) -> None:
    """Raises AssertionError where the sparse gradient errs more than bfloat16."""
    for row in rows:
        bfloat16 = next(r for r in rows if r["nll"] == row["nll"] and r["gradient"] == "eager bfloat16")
        for error in ERRORS:
            assert "sparse" not in row["gradient"] or row[error] <= bfloat16[error], (row, bfloat16)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "", draw=True, minutes="accepted for `make bench`; this takes two")
    parser.add_argument("--rows", type=command.count, default=256)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--backends", nargs="+", help="default: those that this machine has")
    parser.add_argument(
        "--data", type=command.readable_file, help="questions whose rationales give the rows (`mind data import`)"
    )
    options, file = command.parse(parser, lambda _: NAME, arguments)
    if options.draw:
        print_table(read_results(file), COLUMNS)
        return
    here = [name for name in backends_here("linear_cross_entropy", options.device) if name != "reference"]
    if unknown := set(options.backends or ()) - set(here):
        parser.error(f"--backends {' '.join(sorted(unknown))}: expected some of {' '.join(here)}")
    backends = options.backends or here
    inputs = load(REAL, options.rows, torch.float32, options.device, options.data)
    case = {"rows": options.rows, "V": len(inputs.weight), "inputs": inputs.label}
    rows = [case | row for row in measure(inputs.hidden.detach(), inputs.weight.detach(), inputs.target, backends)]
    print_table(rows, COLUMNS)
    check(rows)
    write_results(rows, file)


if __name__ == "__main__":
    command.program(NAME, main)
