"""`python -m mind_kernels check`: compares every backend of this machine with the definition in float64, in a minute.

It compares losses, statistics, and the gradients of hidden states, weight and bias, at small and odd shapes, in each
dtype. mind_kernels/testing.py defines the error that a backend may have, about twice that of plain PyTorch in the same
dtype. The exit status is 1 if a backend has a larger error, or fails; a line then says in which case, at which shape
and by how much.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mind_kernels import (
    Head,
    linear_cross_entropy,
    linear_divergence,
    linear_log_prob,
    linear_mind_loss,
    linear_pairwise_jsd,
    linear_top_k,
    tuning,
)
from mind_kernels.availability import interpreted
from mind_kernels.backend import BACKENDS, backends, backends_of
from mind_kernels.commands.options import Parser, fail, one_of
from mind_kernels.linear_divergence.kinds import KINDS
from mind_kernels.testing import error, error_budget, make_inputs

Inputs = dict[str, Tensor]
Results = dict[str, Tensor]
Setting = tuple[tuple[int, int, int], float | None, float]
"""Rows, hidden size and vocabulary; softcap; temperature."""

GROUP = 3  # rows per group
# 1009 is prime; 4112 is a multiple of 16, which Triton's vector loads need, and of no larger tile. There are few
# settings, since Triton compiles each kernel anew for each of them: 128 in all.
SETTINGS = (((33, 41, 1009), 4.0, 0.7), ((1, 16, 4112), None, 1.0), ((3, 5, 1), None, 1.0))
# The sparse gradient is for rows that few entries dominate; hidden states that are eight times as large give such rows.
# With smaller vocabularies or a lower softcap, a backend would rightly use the exact gradient. Half of the 601 rows are
# sampled for the background, and 6151 entries are more than backend cpp sums at a time: it streams the other half.
SHARPER, THRESHOLD = 8.0, 2.0**-7
SPARSE = (((601, 41, 6151), 50.0, 0.7), ((1, 16, 4112), None, 1.0))


def _with_a_group(settings: tuple[Setting, ...]) -> tuple[Setting, ...]:
    """The same settings with at least as many rows as a group has."""
    return tuple(((max(n, GROUP), d, v), softcap, temperature) for (n, d, v), softcap, temperature in settings)


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# A GPU's exponentials are approximate, while plain PyTorch may be exact by luck: see testing.error_budget.
CONDITIONING = 2.0
# If the truth is 0, as with a vocabulary of one, the rounding of probabilities near 1 is no fault.
ROUNDING = {torch.float64: 2.0**-43, torch.float32: 2.0**-21, torch.bfloat16: 2.0**-21, torch.float16: 2.0**-21}


@dataclass(frozen=True)
class Case:
    """A function of hidden states and a head that is compared."""

    operation: str
    """The operation whose kernels it uses, by its name in `backend.BACKENDS`."""
    compute: Callable[[Tensor, Head, Inputs, str], Results]
    """A function of hidden (N, D), the head, constants and the name of a backend; it returns results by name, of which
    "loss" (...) is differentiated."""
    form: str = ""
    """The form of the operation, by its name in tuning.py."""
    settings: tuple[Setting, ...] = SETTINGS
    """The settings at which it is compared."""


def _cross_entropy(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Results:
    loss = linear_cross_entropy(hidden, head, c["target"], row_weight=c["row_weight"], backend=backend)
    return {"loss": loss}


def _options(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Results:
    options: dict[str, Any] = {"reduction": "none", "label_smoothing": 0.1, "z_loss": 1e-3}
    return {"loss": linear_cross_entropy(hidden, head, c["target"], **options, backend=backend)}


def _statistics(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Results:
    with torch.no_grad():
        _, stats = linear_cross_entropy(hidden, head, c["target"], return_stats=True, backend=backend)
    return {"nll": stats.nll, "lse": stats.lse, "entropy": stats.entropy}


def _sparse(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Results:
    loss, stats = linear_cross_entropy(
        c["sharper"] * hidden,
        head,
        c["target"],
        row_weight=c["row_weight"],
        gradient_threshold=float(c["threshold"]),
        return_stats=True,
        backend=backend,
    )
    return {"loss": loss, "lse": stats.lse}


def _log_prob(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Results:
    found = linear_log_prob(hidden, head, c["target"], backend=backend)
    return {
        "loss": (c["row_weight"] * (0.1 * found.entropy - found.log_prob)).sum(),
        "log_prob": found.log_prob,
        "entropy": found.entropy,
    }


def _several_ids(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Results:
    """linear_log_prob with two ids and one temperature per row."""
    ids = torch.stack([c["target"], c["target"].clamp(min=0) // 2], 1)
    options = {"temperature": head.temperature * (0.5 + c["row_weight"]), "bias": head.bias, "softcap": head.softcap}
    found = linear_log_prob(hidden, head.weight, ids, **options, backend=backend)
    return {"loss": (c["row_weight"] * (0.01 * found.lse.square() - found.log_prob.sum(1))).sum(), "lse": found.lse}


def _kind(name: str) -> dict[str, Any]:
    parameter = KINDS[name].parameter
    return {"kind": name} if parameter is None else {"kind": name, parameter: 0.4}


def _divergence(kind: str) -> Callable[[Tensor, Head, Inputs, str], Results]:
    def compute(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Results:
        teacher = Head(c["teacher_weight"], temperature=head.temperature)
        of_teacher = (c["teacher_hidden"], teacher)
        loss, stats = linear_divergence(hidden, head, *of_teacher, **_kind(kind), return_stats=True, backend=backend)
        names = ("divergence", "entropy", "target_entropy")
        return {"loss": loss, **{name: getattr(stats, name) for name in names}}

    return compute


def _listed(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Results:
    teacher: dict[str, Any] = {"teacher_ids": c["teacher_ids"], "teacher_log_prob": c["teacher_log_prob"]}
    losses = [linear_divergence(hidden, head, **teacher, **_kind(kind), backend=backend) for kind in KINDS]
    return {"loss": torch.stack(losses)}


def _groups(hidden: Tensor, c: Inputs) -> Tensor:
    return hidden.unflatten(0, c["pair_weight"].shape[:2])


def _pairs(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Results:
    return {"loss": linear_pairwise_jsd(_groups(hidden, c), head, c["pair_weight"], backend=backend)}


def _jeffreys(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Results:
    groups = _groups(hidden, c)
    return {"loss": linear_pairwise_jsd(groups, head, c["pair_weight"], kind="jeffreys", backend=backend)}


def _mixture(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Results:
    weight = _groups(c["row_weight"], c)
    return {"loss": linear_pairwise_jsd(_groups(hidden, c), head, mixture_weight=weight, backend=backend)}


def _joint(hidden: Tensor, head: Head, c: Inputs, backend: str, threshold: float | None = None) -> Results:
    answers = torch.arange(c["pair_weight"].shape[1], device=hidden.device)[None]  # the first group
    given = (head, c["target"], c["row_weight"], answers, c["pair_weight"][:1])
    return {"loss": linear_mind_loss(hidden, *given, gradient_threshold=threshold, backend=backend)}


def _joint_sparse(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Results:
    return _joint(c["sharper"] * hidden, head, c, backend, float(c["threshold"]))


def _top_k(hidden: Tensor, head: Head, c: Inputs, backend: str) -> Results:
    found = linear_top_k(hidden, head, min(3, head.vocabulary), backend=backend)
    return {"log_prob": found.log_prob, "lse": found.lse}


# `tune` times the first case of each operation and form.
CASES = {
    "cross-entropy": Case("linear_cross_entropy", _cross_entropy),
    "all its options": Case("linear_cross_entropy", _options),
    "statistics alone": Case("linear_cross_entropy", _statistics),
    "log-probability": Case("linear_cross_entropy", _log_prob),
    "ids and lse": Case("linear_cross_entropy", _several_ids),
    "sparse gradient": Case("linear_cross_entropy", _sparse, "sparse", SPARSE),
    **{f"divergence {kind}": Case("linear_divergence", _divergence(kind)) for kind in KINDS},
    "teacher's lists": Case("linear_divergence", _listed, "list"),
    "JSD of pairs": Case("linear_pairwise_jsd", _pairs, settings=_with_a_group(SETTINGS)),
    "symmetric KL of pairs": Case("linear_pairwise_jsd, jeffreys", _jeffreys, settings=_with_a_group(SETTINGS)),
    "JSD of a mixture": Case("linear_pairwise_jsd", _mixture, "mixture", _with_a_group(SETTINGS)),
    "MIND's loss": Case("linear_mind_loss", _joint, settings=_with_a_group(SETTINGS)),
    "MIND's loss, sparse": Case("linear_mind_loss", _joint_sparse, "sparse", _with_a_group(SPARSE)),
    "top k": Case("linear_top_k", _top_k),
}


def inputs_of(rows: int, size: int, vocabulary: int, dtype: torch.dtype, device: str, group: int = GROUP) -> Inputs:
    """Random tensors in `dtype`, weights in at least float32; the same numbers for every dtype."""
    group = min(group, rows)
    ignored = 0.1 if rows > group else 0.0
    made = make_inputs(rows, size, vocabulary, dtype=dtype, device=device, ignored=ignored)
    teacher = make_inputs(rows, size + 3, vocabulary, dtype=dtype, device=device, seed=1)
    generator = torch.Generator().manual_seed(2)
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64)
    pairs = torch.rand(rows // group, group, group, generator=generator, dtype=torch.float64)
    listed = torch.rand(rows, vocabulary, generator=generator).topk(min(4, vocabulary)).indices
    log_prob = (torch.rand(listed.shape, generator=generator, dtype=torch.float64) + 0.1).log_softmax(1)
    log_prob -= 0.2 * (listed.shape[1] < vocabulary)  # a fifth of the probability is not listed
    wide = made["row_weight"].dtype
    return {
        **made,
        "bias": bias.to(device, dtype),
        "pair_weight": pairs.to(device, wide),
        "teacher_hidden": teacher["hidden"],
        "teacher_weight": teacher["weight"],
        "teacher_ids": listed.to(device),
        "teacher_log_prob": log_prob.to(device, wide),
        "sharper": torch.tensor(SHARPER, dtype=dtype),
        "threshold": torch.tensor(THRESHOLD),
    }


def results(case: Case, inputs: Inputs, softcap: float | None, temperature: float, backend: str) -> Results:
    """The results of the case, and the gradients of its loss by hidden states, weight and, if there is one, bias."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in ("hidden", "weight", "bias") if name in inputs}
    head = Head(leaves["weight"], leaves.get("bias"), softcap, temperature)
    found = case.compute(leaves["hidden"], head, inputs, backend)
    if "loss" not in found:
        return found
    loss = found["loss"]
    upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype, device=loss.device).view(loss.shape)
    gradients = torch.autograd.grad(loss, list(leaves.values()), upstream)
    return found | {f"gradient of {name}": of for name, of in zip(leaves, gradients, strict=True)}


@dataclass(frozen=True)
class Finding:
    """The largest error of a backend in a case and dtype, as a share of the allowed error, and where it occurred."""

    share: float
    where: str


def worst(case: Case, backend: str, dtype: torch.dtype, device: str) -> Finding:
    """The largest error over all settings and results."""
    findings = []
    for shape, softcap, temperature in case.settings:
        given = inputs_of(*shape, dtype, device)
        exact = {name: value.double() if value.is_floating_point() else value for name, value in given.items()}
        truth = results(case, exact, softcap, temperature, "reference")
        peer = results(case, given, softcap, temperature, "reference")
        found = results(case, given, softcap, temperature, backend)
        for name, right in truth.items():
            allowed, mine = error_budget(peer[name], right, dtype, CONDITIONING), error(found[name], right)
            of = f"{name} at N {shape[0]}, D {shape[1]}, V {shape[2]}, softcap {softcap}, temperature {temperature}"
            for kind, one, budget in (("error", mine.largest, allowed.largest), ("rms error", mine.rms, allowed.rms)):
                most = budget + ROUNDING[dtype]
                findings.append(Finding(one / most, f"{of}: {kind} {one:.2g}, allowed {most:.2g}"))
    return max(findings, key=lambda finding: finding.share)


def runs(backend: str, dtype: torch.dtype, device: str) -> bool:
    """Whether the backend computes in this dtype; Triton's interpreter multiplies no bfloat16 matrices."""
    row = BACKENDS[backend]
    if dtype == torch.float64:
        return row.float64
    on_cpu = torch.device(device).type == "cpu"
    return not (dtype == torch.bfloat16 and on_cpu and row.interpreter and interpreted())


def fault(case: Case, backend: str, dtype: torch.dtype, device: str) -> tuple[str, str]:
    """The share as a cell of the table, and a description of what is wrong, empty if nothing is."""
    try:
        found = worst(case, backend, dtype, device)
    except Exception as raised:  # raised by a kernel, a compiler or a driver: this command is there to find such errors
        return "FAILS", f"{type(raised).__name__}: {' '.join(str(raised).split())}"
    return (f"{found.share:.2f}", "") if found.share <= 1 else ("DIFFERS", found.where)


def _lost(device: str) -> str:
    """Why the device no longer works, as after an illegal memory access; empty if it works."""
    try:
        torch.ones(1, device=device).item()
    except RuntimeError as raised:
        return f"{device} cannot be used any more in this process: {str(raised).splitlines()[0]}"
    return ""


def _rows(names: list[str], device: str) -> Iterator[tuple[str, str, Case]]:
    """Each case with each of the backends that support it."""
    for name, case in CASES.items():
        yield from ((name, backend, case) for backend in backends_of(case.operation) if backend in names)


def usable(device: str) -> list[str]:
    """The backends that can run on this device."""
    kind = torch.device(device).type
    return [name for name, row in BACKENDS.items() if row.availability().available and row.takes(kind)]


def add_device(parser: Parser) -> None:
    """The option --device, by default the GPU if there is one."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help=f"cpu, cuda or cuda:1 (default here: {default})")


def require_device(device: str) -> None:
    """Ends the command if the device does not exist."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {device}: {str(error).splitlines()[0]}")


def main(arguments: list[str]) -> int:
    parser = Parser(
        prog="python -m mind_kernels check",
        description="Runs every backend of this machine on small and odd shapes and compares losses, statistics and "
        "gradients with the definition in float64. Numbers are errors as a share of what is allowed; if one is above "
        "1, or a backend fails, a line says in what, and the exit status is 1.",
        epilog="Example: python -m mind_kernels check --backend cpp torch",
    )
    add_device(parser)
    parser.add_argument(
        "--backend", nargs="+", metavar="NAME", type=one_of(BACKENDS), help="check these backends alone"
    )
    options = parser.parse_args(arguments)
    device = options.device
    require_device(device)
    names = usable(device)
    for name in options.backend or []:
        if name not in names:
            fail(f"--backend {name}: {backends()[name].reason or f'it does not run on {device}'}")
    faults = 0
    started = time.perf_counter()
    print(f"on {device}: {tuning.device_name(torch.device(device))}; errors as a share of what is allowed")
    print(f"{'':<28}{'backend':<18}" + "".join(f"{str(dtype).removeprefix('torch.'):<10}" for dtype in DTYPES).rstrip())
    for name, backend, case in _rows(options.backend or names, device):
        told = {d: fault(case, backend, d, device) if runs(backend, d, device) else ("-", "") for d in DTYPES}
        print(f"{name:<28}{backend:<18}" + "".join(f"{cell:<10}" for cell, _ in told.values()).rstrip(), flush=True)
        for dtype, (_, wrong) in told.items():
            if wrong:
                print(f"    {backend}, {str(dtype).removeprefix('torch.')}: {wrong}", flush=True)
                faults += 1
        if wrong := _lost(device):
            print(f"the rest was not run: {wrong}")
            return 1
    told = f"{faults} of these differ from the definition or fail" if faults else "all agree with the definition"
    print(f"{told} ({time.perf_counter() - started:.0f} s)")
    return 1 if faults else 0
