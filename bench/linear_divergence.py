"""linear_divergence by backend and in eager PyTorch: time of loss and gradients, for a dense teacher and for its lists.

    python -m bench.linear_divergence [--rows 1024] [--vocabulary 49152] [--size 576] [--listed 64] [--repeats 5]
        [--output folder] [--overwrite]

On the CPU in float32, with gradients of hidden states and weight; teacher and student have heads of the same shape. All
ways take turns in one process; before that, their losses and gradients have to agree. "of_torch" is the time beside
that of backend torch in the same case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from bench import command
from bench.measure import measure_time, print_table, write_results
from mind_kernels import linear_divergence

NAME = "linear_divergence"
COLUMNS = ("case", "way", "median_ms", "p20_ms", "p80_ms", "of_torch", "of_eager")
BACKENDS = ("torch", "cpp")
KINDS = ("forward_kl", "jsd")
Loss = Callable[[Tensor, Tensor], Tensor]


def eager_of(kind: str, teacher_hidden: Tensor, teacher_weight: Tensor) -> Loss:
    """The divergence from a dense teacher by PyTorch's own functions, with all logits in memory."""

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        teacher = torch.log_softmax(teacher_hidden @ teacher_weight.T, -1)
        student = torch.log_softmax(hidden @ weight.T, -1)
        if kind == "forward_kl":
            return kl_div(student, teacher, reduction="batchmean", log_target=True)
        middle = torch.logsumexp(torch.stack([student, teacher]), 0) - torch.tensor(2.0).log()
        return sum(kl_div(middle, one, reduction="batchmean", log_target=True) for one in (teacher, student)) / 2

    return loss


def cases(rows: int, vocabulary: int, size: int, listed: int) -> dict[str, dict[str, Loss]]:
    """By case the ways to compute it; all take the student's hidden states and weight."""
    generator = torch.Generator().manual_seed(1)
    teacher_hidden = 8 * torch.randn(rows, size, generator=generator)
    teacher_weight = torch.randn(vocabulary, size, generator=generator) / size**0.5
    log_prob, ids = torch.log_softmax(teacher_hidden @ teacher_weight.T, -1).topk(listed)
    teachers: dict[str, dict[str, Any]] = {
        "dense": {"teacher_hidden": teacher_hidden, "teacher_weight": teacher_weight},
        f"top {listed}": {"teacher_ids": ids, "teacher_log_prob": log_prob},
    }
    found: dict[str, dict[str, Loss]] = {}
    for kind in KINDS:
        for label, teacher in teachers.items():
            ways = {
                name: lambda h, w, kind=kind, teacher=teacher, name=name: linear_divergence(
                    h, w, **teacher, kind=kind, reduction="mean", backend=name
                )
                for name in BACKENDS
            }
            dense = {"eager": eager_of(kind, teacher_hidden, teacher_weight)} if label == "dense" else {}
            found[f"{kind}, {label}"] = dense | ways
    return found


def check_equal(results: dict[str, tuple[Tensor, ...]]) -> None:
    expected = results["torch"]
    for name, found in results.items():
        for one, other in zip(found, expected, strict=True):
            assert (one - other).norm() <= 1e-4 * other.norm(), f"{name} differs from backend torch"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "")
    for name, default in (("rows", 1024), ("vocabulary", 49152), ("size", 576), ("listed", 64), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=command.count, default=default, help=f"(default {default})")
    options, file = command.parse(parser, lambda _: NAME, arguments)
    if options.listed >= options.vocabulary:
        parser.error(f"--listed {options.listed}: expected less than --vocabulary {options.vocabulary}")
    sizes = options.rows, options.vocabulary, options.size
    generator = torch.Generator().manual_seed(0)
    hidden = (8 * torch.randn(options.rows, options.size, generator=generator)).requires_grad_()
    weight = (torch.randn(*sizes[1:], generator=generator) / options.size**0.5).requires_grad_()

    def call(loss: Loss) -> Callable[[], tuple[Tensor, ...]]:
        def compute() -> tuple[Tensor, ...]:
            value = loss(hidden, weight)
            return value.detach(), *torch.autograd.grad(value, (hidden, weight))

        return compute

    shape = dict(zip(("N", "V", "D"), sizes, strict=True)) | {"threads": torch.get_num_threads()}
    rows = []
    for case, ways in cases(*sizes, options.listed).items():
        timings = measure_time(
            {name: call(loss) for name, loss in ways.items()}, gate=check_equal, repeats=options.repeats, warmup=1
        )
        median = {name: timing.row()["median_ms"] for name, timing in timings.items()}
        for name, timing in timings.items():
            shares = {f"of_{of}": round(median[name] / median[of], 3) for of in ("torch", "eager") if of in median}
            rows.append({"case": case, "way": name, **shape, **timing.row(), **shares})
    print_table(rows, COLUMNS)
    write_results(rows, file)


if __name__ == "__main__":
    command.program(NAME, main)
