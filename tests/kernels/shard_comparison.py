"""A head that is split over processes, compared with the whole head: the inputs, the calls and the comparison."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from cases import interpreted, row_statistics, runs
from torch import Tensor

from mind_kernels import RowStats, linear_cross_entropy, linear_log_prob, row_chunks
from mind_kernels.testing import Error, error, error_budget, make_inputs

VOCABULARIES = (131, 4, 2, 1000)
EXTRA = ("mean_logit", "log_sum_sq", "predicted")
EVERYTHING: dict[str, Any] = {
    "label_smoothing": 0.1,
    "z_loss": 1e-3,
    "softcap": 5.0,
    "temperature": 0.7,
    "biased": True,
}
CROSS_ENTROPY: list[dict[str, Any]] = [
    {},
    {"reduction": "sum", "weighted": True, "z_loss": 1e-3, "extra_stats": EXTRA},
    {"reduction": "none", "weighted": True, "temperature": 1.3, "biased": True},
    {"reduction": "mean", "weighted": True, **EVERYTHING},
    {"reduction": "none", **EVERYTHING},
]
LOG_PROB: list[dict[str, Any]] = [
    {},
    {"softcap": 5.0, "temperature": 0.7, "biased": True, "extra_stats": EXTRA},
    {"ids": 1, "row_temperature": True},
    {"ids": 3, "biased": True},
    {"ids": 3, "row_temperature": True, "softcap": 5.0, "extra_stats": EXTRA},
]
_BACKENDS = {"whole": "reference", "whole torch": "torch"}

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Shards:
    """The group of a check, and the backend that it is about."""

    group: Any
    rank: int
    processes: int
    backend: str

    @property
    def dtypes(self) -> Iterator[torch.dtype]:
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            if runs(self.backend, dtype) and not (dtype == torch.bfloat16 and interpreted(self.backend)):
                yield dtype

    @property
    def vocabularies(self) -> Sequence[int]:
        return VOCABULARIES[:3] if interpreted(self.backend) else VOCABULARIES

    def sizes(self, vocabulary: int) -> list[int]:
        """Uneven, and one empty where there are few entries."""
        if self.processes == 1:
            return [vocabulary]
        if vocabulary < 8:
            return [vocabulary - 1, *[0] * (self.processes - 2), 1] if vocabulary > 2 else [0, 2, 0][: self.processes]
        first = vocabulary * 3 // 5
        rest = torch.arange(vocabulary - first).tensor_split(self.processes - 1)
        return [first, *map(len, rest)]

    def rows(self, vocabulary: int) -> slice:
        """The vocabulary entries of this process."""
        sizes = self.sizes(vocabulary)
        return slice(sum(sizes[: self.rank]), sum(sizes[: self.rank + 1]))


CHECKS: dict[str, Callable[[Shards], None]] = {}


def check(function: Callable[[Shards], None]) -> Callable[[Shards], None]:
    CHECKS[function.__name__] = function
    return function


def far(found: Tensors, truth: Tensors, case: str = "", tolerance: float = 1e-14) -> list[str]:
    """Which of them are not those of the truth, of the largest entry of each or of 1."""
    out = []
    for name, expected in truth.items():
        same = (found[name] == expected) | (found[name].isnan() & expected.isnan())
        difference = torch.where(same, 0, (found[name] - expected).abs())
        scale = float(expected.nan_to_num(posinf=0, neginf=0).abs().max()) if expected.numel() else 0.0
        if difference.numel() and not bool(difference.max() <= tolerance * max(1, scale)):
            out.append(f"{case}: {name} differs by {float(difference.max())} from the definition")
    return out


def tolerance(dtype: torch.dtype) -> float:
    return 1e-14 if dtype == torch.float64 else 1e-5


def gradients(leaves: Tensors, rows: slice | None) -> Tensors:
    """Of a run; of a whole head, those of the rows of this process."""
    found = {f"d_{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    if rows is not None:
        found |= {name: gradient[rows] for name, gradient in found.items() if name != "d_hidden"}
    return found


def make(shards: Shards, inputs: Tensors, dtype: torch.dtype, biased: bool, split: bool) -> tuple[Tensors, slice]:
    """Leaves with a gradient: hidden, weight and bias, of this process's rows of the head if it is split."""
    weight = inputs["weight"]
    rows = shards.rows(len(weight))
    leaves = {"hidden": inputs["hidden"], "weight": weight}
    if biased:
        leaves["bias"] = torch.linspace(-1, 1, len(weight), dtype=torch.float64)
    leaves = {name: leaf[rows] if split and name != "hidden" else leaf for name, leaf in leaves.items()}
    return {name: leaf.detach().to(dtype).clone().requires_grad_() for name, leaf in leaves.items()}, rows


def statistics(stats: RowStats) -> Tensors:
    found = row_statistics(stats) | {name: getattr(stats, name) for name in ("mean_logit", "log_sum_sq")}
    return {name: value for name, value in found.items() if value is not None}


def exact(stats: RowStats) -> Tensors:
    return {name: value for name in ("correct", "predicted") if (value := getattr(stats, name)) is not None}


def cross_entropy(
    shards: Shards, inputs: Tensors, dtype: torch.dtype, backend: str, *, weighted=False, biased=False, **options
) -> tuple[Tensors, Tensors]:
    """(numbers, what is exact). Of the whole head for backend "whole", the definition, and "whole torch"."""
    is_split = not backend.startswith("whole")
    leaves, rows = make(shards, inputs, dtype, biased, is_split)
    count = len(inputs["hidden"])
    loss, stats = linear_cross_entropy(
        leaves["hidden"],
        leaves["weight"],
        inputs["target"],
        bias=leaves.get("bias"),
        row_weight=inputs["row_weight"] if weighted else None,
        segment=torch.arange(count) % 3,
        num_segments=3,
        return_stats=True,
        process_group=shards.group if is_split else None,
        backend=_BACKENDS.get(backend, backend),
        **options,
    )
    loss.backward(torch.linspace(-0.5, 1.7, loss.numel()).to(loss).view(loss.shape))
    numbers = {"loss": loss.detach(), "segment_nll": stats.segment_nll, **statistics(stats)}
    return numbers | gradients(leaves, None if is_split else rows), exact(stats)


def log_prob(
    shards: Shards,
    inputs: Tensors,
    dtype: torch.dtype,
    backend: str,
    *,
    ids=0,
    row_temperature=False,
    biased=False,
    **options,
) -> tuple[Tensors, Tensors]:
    """The same."""
    is_split = not backend.startswith("whole")
    leaves, rows = make(shards, inputs, dtype, biased, is_split)
    target, count = inputs["target"], len(inputs["hidden"])
    if ids:
        vocabulary = len(inputs["weight"])
        listed = torch.stack([target, (target + 3) % vocabulary, (7 * target + 1) % vocabulary], 1)[:, :ids]
        listed[::4, -1] = -100
        target = torch.where((target == -100)[:, None], -100, listed)
    if row_temperature:
        options["temperature"] = torch.linspace(0.5, 1.5, count, dtype=torch.float64)
    found, stats = linear_log_prob(
        leaves["hidden"],
        leaves["weight"],
        target,
        bias=leaves.get("bias"),
        return_stats=True,
        process_group=shards.group if is_split else None,
        backend=_BACKENDS.get(backend, backend),
        **options,
    )
    upstream = [torch.linspace(-1, 2, target.numel()).view(target.shape), torch.linspace(0.3, -0.2, count)]
    upstream.append(torch.linspace(-0.1, 0.2, count))
    torch.autograd.backward(list(found), [gradient.to(found.lse) for gradient in upstream])
    numbers = {"log_prob": found.log_prob.detach(), **statistics(stats)}
    return numbers | gradients(leaves, None if is_split else rows), exact(stats)


@contextmanager
def few_rows_a_chunk() -> Iterator[None]:
    """A few rows of 66 entries, one of 500, all of 4."""
    before = dict(row_chunks._CHUNK_BYTES)
    row_chunks._CHUNK_BYTES["cpu"] = 2048
    yield
    row_chunks._CHUNK_BYTES.update(before)


def compare(shards: Shards, of: Callable[..., tuple[Tensors, Tensors]], all_options: Sequence[dict]) -> None:
    """Against the definition in float64; in less within the budget of the definition in that dtype, or of backend
    "torch", by the same chunks of rows."""
    failures, alone = [], replace(shards, rank=0, processes=1)
    with few_rows_a_chunk():
        for vocabulary, dtype in itertools.product(shards.vocabularies, shards.dtypes):
            if vocabulary > 131 and dtype.itemsize == 2:
                continue
            inputs = make_inputs(13, 24, vocabulary, dtype=dtype, ignored=0.2)
            for options in all_options:
                values, same = of(shards, inputs, dtype, shards.backend, **options)
                whole, exactly = of(alone, inputs, torch.float64, "whole", **options)
                rows = shards.rows(vocabulary)
                truth = {n: value[rows] if n in ("d_weight", "d_bias") else value for n, value in whole.items()}
                case = f"V {vocabulary}, {dtype}, {options}"
                if dtype == torch.float64:
                    differ = [name for name, value in exactly.items() if not torch.equal(same[name], value)]
                    failures += [f"{case}: {differ}"] if differ else []
                    failures += far(values, truth, case)
                    continue
                peers = [of(alone, inputs, dtype, peer, **options)[0] for peer in ("whole", "whole torch")]
                for name, value in truth.items():
                    errs = error(values[name], value)
                    budgets = [error_budget(peer[name], whole[name], dtype) for peer in peers]
                    # All errors of the whole may be in the rows of this process.
                    share = max(1, value.numel()) / max(1, whole[name].numel())
                    allowed = Error(max(b.largest for b in budgets), max(b.rms for b in budgets) / share**0.5)
                    if errs.largest > allowed.largest or errs.rms > allowed.rms:
                        failures.append(f"{case}: {name} errs by {errs}, allowed is {allowed}")
    assert not failures, "\n".join(failures)
