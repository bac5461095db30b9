"""What holds of a head that is split over processes; every process runs every check, in this order.

A check compares only after its last collective, so that the processes stay together if one of them fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from cases import assert_compiles_whole, opcheck
from shard_comparison import (
    CROSS_ENTROPY,
    EVERYTHING,
    EXTRA,
    LOG_PROB,
    Shards,
    Tensors,
    check,
    compare,
    cross_entropy,
    far,
    few_rows_a_chunk,
    gradients,
    log_prob,
    make,
    statistics,
    tolerance,
)

from mind_kernels import Head, linear_cross_entropy, linear_log_prob, row_chunks
from mind_kernels import shards as split
from mind_kernels.linear_cross_entropy import shard_rows
from mind_kernels.linear_cross_entropy.contract import RowArguments, RowSpec
from mind_kernels.linear_cross_entropy.op import operator as cross_entropy_operator
from mind_kernels.linear_log_prob.contract import LogProbArguments, Upstream
from mind_kernels.linear_log_prob.op import operator as log_prob_operator
from mind_kernels.shards import Group
from mind_kernels.testing import make_inputs


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
