"""What holds of a head that is split over processes; every process runs every check, in this order.

A check compares only after its last collective, so that the processes stay together if one of them fails.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from cases import assert_compiles_whole, interpreted, opcheck, row_statistics, runs
from torch import Tensor

from mind_kernels import Head, RowStats, linear_cross_entropy, linear_log_prob, row_chunks
from mind_kernels import shards as split
from mind_kernels.linear_cross_entropy import shard_rows
from mind_kernels.linear_cross_entropy.contract import RowArguments, RowSpec
from mind_kernels.linear_cross_entropy.op import operator as cross_entropy_operator
from mind_kernels.linear_log_prob.contract import LogProbArguments, Upstream
from mind_kernels.linear_log_prob.op import operator as log_prob_operator
from mind_kernels.shards import Group
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


@check
def cross_entropy_is_that_of_the_whole_head(shards):
    compare(shards, cross_entropy, CROSS_ENTROPY)


@check
def log_probabilities_are_those_of_the_whole_head(shards):
    compare(shards, log_prob, LOG_PROB)


def small(shards: Shards, vocabulary: int = 31, rows: int = 9, **options) -> tuple[Tensors, torch.dtype]:
    dtype = next(shards.dtypes)
    return make_inputs(rows, 8, vocabulary, dtype=dtype, **options), dtype


def peers(shards, of, inputs, dtype, **options):
    """Of the shards, and of the whole head."""
    return of(shards, inputs, dtype, shards.backend, **options), of(shards, inputs, dtype, "whole", **options)


@check
def the_first_of_equal_logits_is_the_prediction(shards):
    inputs, dtype = small(shards)
    inputs["hidden"].zero_()
    inputs["target"][:3] = torch.tensor([0, 30, 0])
    (_, found), (_, expected) = peers(shards, cross_entropy, inputs, dtype, extra_stats=EXTRA)
    assert found["correct"].sum() > 0
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@check
def entries_that_are_ruled_out(shards):
    """All entries of a shard, a target among them, and all entries."""
    inputs, dtype = small(shards, 8, ignored=0.0)
    results = []
    for first, last in ((0, 5), (5, 8), (0, 8)):
        head = inputs["weight"], torch.zeros(8, dtype=dtype).index_fill(0, torch.arange(first, last), -torch.inf)
        rows = shards.rows(8)
        for reduction in ("sum", "none"):
            pair = []
            for part, group, backend in ((rows, shards.group, shards.backend), (slice(8), None, "reference")):
                weight, bias = (tensor[part].clone().requires_grad_() for tensor in head)
                hidden = inputs["hidden"].clone().requires_grad_()
                loss, stats = linear_cross_entropy(
                    hidden,
                    weight,
                    inputs["target"],
                    bias=bias,
                    reduction=reduction,
                    return_stats=True,
                    process_group=group,
                    backend=backend,
                )
                loss.backward(torch.ones_like(loss))
                mine = rows if group is None else slice(None)
                values = {"loss": loss.detach(), **statistics(stats), "correct": stats.correct.double()}
                pair.append(values | {"hidden": hidden.grad, "weight": weight.grad[mine], "bias": bias.grad[mine]})
            results.append(pair)
    failures = []
    for found, expected in results:
        failures += far(found, expected, tolerance=tolerance(dtype))
    assert not failures, failures


@check
def rows_of_every_kind(shards):
    """None at all, all ignored, weights of zero, and a leading shape."""
    inputs, dtype = small(shards)
    ignored = inputs | {"target": torch.full_like(inputs["target"], -100)}
    weightless = inputs | {"row_weight": inputs["row_weight"] * (torch.arange(9) % 2)}
    none = {name: value if name == "weight" else value[:0] for name, value in inputs.items()}
    pairs = [
        peers(shards, cross_entropy, rows, dtype, weighted=True, reduction=reduction)
        for rows in (ignored, weightless, none)
        for reduction in ("mean", "sum", "none")
    ]
    pairs += [peers(shards, log_prob, rows, dtype, ids=ids) for rows in (ignored, none) for ids in (0, 3)]
    part = inputs["weight"][shards.rows(31)]
    options = {"process_group": shards.group, "backend": shards.backend, "reduction": "none"}
    flat = linear_cross_entropy(inputs["hidden"], part, inputs["target"], **options)
    shaped = linear_cross_entropy(inputs["hidden"].view(3, 3, 8), part, inputs["target"].view(3, 3), **options)
    assert torch.equal(shaped, flat.view(3, 3))
    failures = []
    for (found, _), (expected, _) in pairs:
        failures += far(found, expected, tolerance=tolerance(dtype))
    assert not failures, failures


@check
def a_frozen_input_has_no_gradient(shards):
    inputs, dtype = small(shards)
    whole, _ = cross_entropy(shards, inputs, dtype, "whole")
    found = []
    for wanted in (("hidden",), ("weight",), ()):
        leaves, _ = make(shards, inputs, dtype, False, True)
        for name, leaf in leaves.items():
            leaf.requires_grad_(name in wanted)
        loss = linear_cross_entropy(
            leaves["hidden"], leaves["weight"], inputs["target"], process_group=shards.group, backend=shards.backend
        )
        if wanted:
            loss.backward()
        found.append((wanted, gradients(leaves, None) | {"loss": loss.detach()}))
    failures = []
    for wanted, values in found:
        assert set(values) == {"loss", *(f"d_{name}" for name in wanted)}
        # `cross_entropy` starts from an upstream gradient of -1/2.
        expected = {name: whole[name] * (1 if name == "loss" else -2) for name in values}
        failures += far(values, expected, tolerance=tolerance(dtype))
    assert not failures, failures


@check
def confident_rows_keep_their_digits(shards):
    """Losses of 1e-7, whose gradient p - 1 has no digit left in float32."""
    inputs = make_inputs(8, 16, 200, dtype=torch.float64, ignored=0.0)
    inputs["hidden"] = 44.0 * inputs["weight"][inputs["target"]]
    narrow = inputs | {name: inputs[name].float() for name in ("hidden", "weight")}
    wide = narrow | {name: narrow[name].double() for name in ("hidden", "weight")}
    for of, options in ((cross_entropy, {"reduction": "none"}), (log_prob, {})):
        found, _ = of(shards, narrow, torch.float32, shards.backend, **options)
        truth, _ = of(shards, wide, torch.float64, "whole", **options)
        of_rows = ((found["d_hidden"] - truth["d_hidden"]).norm(dim=1) / truth["d_hidden"].norm(dim=1)).max()
        assert truth["nll"].min() < 1e-6
        if shards.backend != "reference":  # the definition, which has float32's digits
            assert max((found["nll"] / truth["nll"] - 1).abs().max(), of_rows if of is cross_entropy else 0) < 1e-4


@check
def all_processes_have_the_same_bits(shards):
    inputs, dtype = small(shards, 131)
    found, _ = cross_entropy(shards, inputs, dtype, shards.backend, **EVERYTHING, extra_stats=EXTRA)
    shared = [value for name, value in found.items() if name not in ("d_weight", "d_bias")]
    flat = torch.cat([value.double().flatten() for value in shared])
    every = [torch.empty_like(flat) for _ in range(shards.processes)]
    dist.all_gather(every, flat, group=shards.group)
    assert all(torch.equal(each, flat) for each in every)


@contextmanager
def counted() -> Iterator[list[str]]:
    """The collectives that were asked for."""
    names = [name for name in ("all_gather_single", "all_gather_into_tensor", "all_reduce") if hasattr(dist, name)]
    before, seen = {name: getattr(dist, name) for name in names}, []

    def counting(name: str) -> Callable[..., Any]:
        def call(*arguments, **options):
            seen.append(name)
            return before[name](*arguments, **options)

        return call

    for name in names:
        setattr(dist, name, counting(name))
    try:
        yield seen
    finally:
        for name, function in before.items():
            setattr(dist, name, function)


@check
def one_collective_per_chunk(shards):
    """And one at the start of each pass, and one for the gradient of the hidden states."""
    if shards.backend == "reference":
        return
    inputs, dtype = small(shards, 31, rows=12, ignored=0.0)
    counts = []
    row_bytes = max(shards.sizes(31)) * inputs["hidden"].element_size()
    before = dict(row_chunks._CHUNK_BYTES)
    row_chunks._CHUNK_BYTES["cpu"] = 5 * row_bytes  # three chunks
    for of, options in (
        (cross_entropy, {}),
        (cross_entropy, EVERYTHING | {"extra_stats": EXTRA}),
        (cross_entropy, {"reduction": "none"}),
        (log_prob, {}),
        (log_prob, {"ids": 3}),
    ):
        with counted() as seen:
            of(shards, inputs, dtype, shards.backend, **options)
        counts.append(len(seen))
    row_chunks._CHUNK_BYTES.update(before)
    assert counts == [1 + 3 + 1, 1 + 3 + 1, (1 + 3) + (1 + 3 + 1), (1 + 3) + (1 + 3 + 1), (1 + 6) + (1 + 6 + 1)]


@check
def chunks_that_are_started_ahead_change_nothing(shards):
    """As on a GPU, where the next chunk's product runs while the numbers of one travel."""
    inputs, dtype = small(shards, rows=14)
    before, found = split.chunks_ahead, []
    with few_rows_a_chunk():
        row_chunks._CHUNK_BYTES["cpu"] //= 4
        for ahead in (0, 1):
            split.chunks_ahead = shard_rows.chunks_ahead = lambda hidden, ahead=ahead: ahead
            found.append([cross_entropy(shards, inputs, dtype, shards.backend, **EVERYTHING, extra_stats=EXTRA)])
            found[-1] += [log_prob(shards, inputs, dtype, shards.backend, **options) for options in LOG_PROB[:4]]
    split.chunks_ahead = shard_rows.chunks_ahead = before
    for (values, same), (numbers, others) in zip(*found, strict=True):
        for name, value in (values | same).items():
            assert torch.equal(value, (numbers | others)[name]), name


@check
def the_gradient_is_the_derivative(shards):
    """Of each row, by differences; of the hidden states, which all processes change alike."""
    inputs, dtype = small(shards, 31, rows=5)
    part = inputs["weight"][shards.rows(31)]
    options = {"process_group": shards.group, "backend": shards.backend, "softcap": 3.0}

    def rows(hidden):
        return linear_cross_entropy(hidden, part, inputs["target"], reduction="none", z_loss=0.1, **options)

    def found(hidden):
        return tuple(linear_log_prob(hidden, part, inputs["target"], **options))

    if dtype == torch.float64:
        hidden = inputs["hidden"].requires_grad_()
        assert torch.autograd.gradcheck(rows, (hidden,))
        assert torch.autograd.gradcheck(found, (hidden,))


@check
def graphs_are_whole(shards):
    """torch.compile(fullgraph=True) gives the bits of eager mode; and the operators are what torch.library asks for."""
    if shards.backend != "torch":  # the operator is the same for all others, and the definition has none
        return
    inputs, _ = small(shards)
    part, target = inputs["weight"][shards.rows(31)], inputs["target"]

    def of_rows(hidden, weight):
        return linear_cross_entropy(hidden * 2, weight, target, process_group=shards.group, reduction="none").sum()

    def probabilities(hidden, weight):
        found = linear_log_prob(hidden * 2, weight, target, process_group=shards.group, backend="torch")
        return found.log_prob.sum() + found.entropy.sum()

    for step in (of_rows, probabilities):
        assert_compiles_whole(step, inputs["hidden"], part)
    group = Group(shards.group.group_name, True)
    spec = RowSpec(Head(part.requires_grad_(), None, 4.0, 0.9), label_smoothing=0.1)
    hidden = inputs["hidden"].requires_grad_()
    for reduction in ("mean", "none"):
        opcheck(
            cross_entropy_operator,
            RowArguments(hidden, spec, target, None, None, 0, -100, reduction, "", "torch", group),
        )
    listed = torch.stack([target, target], 1)
    arguments = LogProbArguments(hidden, spec, listed, None, Upstream(), -100, "", "torch", group)
    opcheck(log_prob_operator, arguments)
