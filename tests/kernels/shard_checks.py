"""What holds of a head that is split over processes; every process runs every check, in this order.

A check compares only after its last collective, so that the processes stay together if one of them fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from cases import interpreted, row_statistics, runs
from torch import Tensor

from mind_kernels import RowStats, linear_cross_entropy, linear_log_prob, row_chunks
from mind_kernels.testing import assert_within_budget, make_inputs

VOCABULARIES = (131, 4, 2, 1000)
EXTRA = ("mean_logit", "log_sum_sq", "predicted")
EVERYTHING = {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 5.0, "temperature": 0.7, "biased": True}
CROSS_ENTROPY = [
    {},
    {"reduction": "sum", "weighted": True, "z_loss": 1e-3, "extra_stats": EXTRA},
    {"reduction": "none", "weighted": True, "temperature": 1.3, "biased": True},
    {"reduction": "mean", "weighted": True, **EVERYTHING},
    {"reduction": "none", **EVERYTHING},
]
LOG_PROB = [
    {},
    {"softcap": 5.0, "temperature": 0.7, "biased": True, "extra_stats": EXTRA},
    {"ids": 1, "row_temperature": True},
    {"ids": 3, "biased": True},
    {"ids": 3, "row_temperature": True, "softcap": 5.0, "extra_stats": EXTRA},
]

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


def close(found: Tensors, truth: Tensors, tolerance: float = 1e-14) -> None:
    for name, expected in truth.items():
        difference = torch.where(found[name] == expected, 0, (found[name] - expected).abs())
        nan = found[name].isnan() & expected.isnan()
        largest = expected.nan_to_num(posinf=0, neginf=0).abs().max() if expected.numel() else 0
        assert bool((nan | (difference <= tolerance * max(1, float(largest)))).all()), (name, found[name], expected)


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
    """(numbers, what is exact); of the whole head for backend "whole", which is the definition."""
    split = backend != "whole"
    leaves, rows = make(shards, inputs, dtype, biased, split)
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
        process_group=shards.group if split else None,
        backend=backend if split else "reference",
        **options,
    )
    loss.backward(torch.linspace(-0.5, 1.7, loss.numel()).to(loss).view(loss.shape))
    numbers = {"loss": loss.detach(), "segment_nll": stats.segment_nll, **statistics(stats)}
    return numbers | gradients(leaves, None if split else rows), exact(stats)


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
    split = backend != "whole"
    leaves, rows = make(shards, inputs, dtype, biased, split)
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
        process_group=shards.group if split else None,
        backend=backend if split else "reference",
        **options,
    )
    upstream = [torch.linspace(-1, 2, target.numel()).view(target.shape), torch.linspace(0.3, -0.2, count)]
    upstream.append(torch.linspace(-0.1, 0.2, count))
    torch.autograd.backward(list(found), [gradient.to(found.lse) for gradient in upstream])
    numbers = {"log_prob": found.log_prob.detach(), **statistics(stats)}
    return numbers | gradients(leaves, None if split else rows), exact(stats)


@contextmanager
def few_rows_a_chunk() -> Iterator[None]:
    """A few rows of 66 entries, one of 500, all of 4."""
    before = dict(row_chunks._CHUNK_BYTES)
    row_chunks._CHUNK_BYTES["cpu"] = 2048
    yield
    row_chunks._CHUNK_BYTES.update(before)


def compare(shards: Shards, of: Callable[..., tuple[Tensors, Tensors]], all_options: Sequence[dict]) -> None:
    found, failures = [], []
    with few_rows_a_chunk():
        for vocabulary in shards.vocabularies:
            for dtype in shards.dtypes:
                inputs = make_inputs(13, 24, vocabulary, dtype=dtype, ignored=0.2)
                for options in all_options:
                    values, same = of(shards, inputs, dtype, shards.backend, **options)
                    found.append((vocabulary, dtype, options, inputs, values, same))
    for vocabulary, dtype, options, inputs, values, same in found:
        truth, _ = of(shards, inputs, torch.float64, "whole", **options)
        peer, of_peer = of(shards, inputs, dtype, "whole", **options)
        try:
            if dtype == torch.float64:
                close(values, truth)
                assert all(torch.equal(same[name], value) for name, value in of_peer.items())
            else:
                assert_within_budget(values, peer, truth, dtype)
        except AssertionError as error:
            failures.append(f"V {vocabulary}, {dtype}, {options}: {error}")
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
    for found, expected in results:
        close(found, expected, 1e-14 if dtype == torch.float64 else 1e-5)


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
    for (found, _), (expected, _) in pairs:
        close(found, expected, 1e-14 if dtype == torch.float64 else 1e-5)


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
    scale = 0.5  # that of the upstream gradient of `cross_entropy`
    for wanted, values in found:
        assert set(values) == {"loss", *(f"d_{name}" for name in wanted)}
        expected = {name: whole[name] / (1 if name == "loss" else -scale) for name in values}
        close(values, expected, 1e-14 if dtype == torch.float64 else 1e-5)


@check
def confident_rows_keep_their_digits(shards):
    """Losses of 1e-7, whose gradient p - 1 has no digit left in float32."""
    inputs = make_inputs(8, 16, 200, dtype=torch.float64, peak=22.0, ignored=0.0)
    inputs["hidden"] = 22.0 * inputs["weight"][inputs["target"]]
    narrow = inputs | {name: inputs[name].float() for name in ("hidden", "weight")}
    for of, options in ((cross_entropy, {"reduction": "none"}), (log_prob, {})):
        found, _ = of(shards, narrow, torch.float32, shards.backend, **options)
        wide = narrow | {name: narrow[name].double() for name in ("hidden", "weight")}
        truth, _ = of(shards, wide, torch.float64, "whole", **options)
        for name in ("nll", "d_hidden"):
            error = (found[name] - truth[name]).norm() / truth[name].norm()
            assert error < 1e-4, (of.__name__, name, error)


@check
def all_processes_have_the_same_bits(shards):
    inputs, dtype = small(shards, 131)
    found, _ = cross_entropy(shards, inputs, dtype, shards.backend, **EVERYTHING, extra_stats=EXTRA)
    shared = [value for name, value in found.items() if name not in ("d_weight", "d_bias")]
    flat = torch.cat([value.double().flatten() for value in shared])
    every = [torch.empty_like(flat) for _ in range(shards.processes)]
    dist.all_gather(every, flat, group=shards.group)
    assert all(torch.equal(each, flat, equal_nan=True) if False else bool((each == flat).all()) for each in every)


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
