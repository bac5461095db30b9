"""The sparse gradient of a head that is split over the vocabulary, in processes of gloo: what one process gives.

A test starts its processes once, and makes all of its checks in them.
"""

from __future__ import annotations

import contextlib
import functools
import math

import pytest
import torch
import torch.distributed as dist
from cases import interpreted, usable
from kernel_processes import of_all, run_in_processes

from mind_kernels import (
    linear_cross_entropy,
    linear_log_prob,
    linear_mind_loss,
    row_chunks,
    sparse_gradient,
    threshold_for_error,
)
from mind_kernels.linear_cross_entropy import sparse_shard_rows
from mind_kernels.testing import assert_within_budget, make_inputs

BACKENDS = [name for name in usable("linear_cross_entropy, shards") if name != "reference"]
COMPILED = [name for name in BACKENDS if not interpreted(name)]
THRESHOLD = 2.0**-7
# Rows of the head in each process.
SPLITS = {2: ((70, 61), (131, 0), (2, 2), (1, 1), (64, 936)), 3: ((50, 40, 41), (0, 100, 31), (1, 0, 3), (400, 0, 600))}
OPTIONS = [
    {},
    {"reduction": "none", "weighted": True},
    {"reduction": "sum", "weighted": True, "label_smoothing": 0.1, "z_loss": 1e-2, "temperature": 1.3, "biased": True},
    {"reduction": "sum", "z_loss": 1e-2, "softcap": 9.0, "biased": True},
]


@contextlib.contextmanager
def changed(owner, **values):
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def always_sparse():
    """The small vocabularies of these tests are denser than any limit."""
    return changed(sparse_gradient, _DENSITY_LIMIT={"cpu": 1.0, "cuda": 1.0}, _MASS_LIMIT=1.0)


def place_in(sizes):
    start = sum(sizes[: dist.get_rank()])
    return slice(start, start + sizes[dist.get_rank()])


def leaves_of(inputs, dtype, place, biased=False):
    leaves = {"hidden": inputs["hidden"], "weight": inputs["weight"][place]}
    if biased:
        leaves["bias"] = torch.linspace(-1, 1, len(inputs["weight"]))[place]
    return {name: value.detach().to(dtype, copy=True).requires_grad_() for name, value in leaves.items()}


def call(inputs, dtype, *, place=slice(None), weighted=False, biased=False, **options):
    """Loss, statistics and gradients, for the rows `place` of the head."""
    leaves = leaves_of(inputs, dtype, place, biased)
    weight = inputs["row_weight"].clone()
    weight[::3] *= -1
    weight[1::7] = 0
    loss, stats = linear_cross_entropy(
        **leaves,
        target=inputs["target"],
        row_weight=weight if weighted else None,
        return_stats=True,
        gradient_threshold=options.pop("threshold", THRESHOLD),
        **options,
    )
    loss.backward(torch.full_like(loss, 1.7))
    found = {name: value for name, value in vars(stats).items() if value is not None}
    return {"loss": loss.detach(), **found, **{f"d_{name}": leaf.grad for name, leaf in leaves.items()}}


def call_of_group(inputs, dtype, sizes, **options):
    """The same in the processes: the same bits in all, and the gradients of the shards put together."""
    found = call(inputs, dtype, place=place_in(sizes), process_group=dist.group.WORLD, **options)
    return joined(found)


def joined(found):
    shards = of_all(found)
    for name, value in found.items():
        if name in ("d_weight", "d_bias"):
            found[name] = torch.cat([shard[name] for shard in shards])
        else:
            assert all(torch.equal(shard[name], value) for shard in shards), name
    return found


def closeness(found, expected):
    """The largest relative error (Frobenius) of what is no count."""
    return max(
        float((found[name].double() - value.double()).norm() / value.double().norm().clamp(min=1e-30))
        for name, value in expected.items()
        if value.is_floating_point() and name != "dropped_mass"
    )


def check_definition():
    for sizes in SPLITS[dist.get_world_size()]:
        inputs = make_inputs(37, 16, sum(sizes), ignored=0.2)
        for options in OPTIONS:
            truth = call(inputs, torch.float64, backend="reference", **options)
            found = call_of_group(inputs, torch.float64, sizes, backend="torch", **options)
            assert torch.equal(found["kept_entries"], truth["kept_entries"])
            assert (found["dropped_mass"] - truth["dropped_mass"]).abs().max() < 1e-14
            for name, value in truth.items():
                error, value = (found[name].double() - value.double()).abs().max(), value.double()
                assert error <= 1e-14 * max(1, value.abs().max()), (name, sizes, options)


def check_backends():
    for backend in BACKENDS:
        few = interpreted(backend)  # a row takes as long as a thousand compiled ones
        if few and dist.get_world_size() > 2:
            continue
        sizes = (41, 26) if few else SPLITS[dist.get_world_size()][0]
        inputs = make_inputs(5 if few else 37, 16, sum(sizes), ignored=0.2)
        for dtype in (torch.float32,) if few else (torch.float32, torch.bfloat16, torch.float16):
            for options in OPTIONS[2:3] if few else OPTIONS:
                rounded = {k: v.to(dtype).float() if k in ("hidden", "weight") else v for k, v in inputs.items()}
                truth = call(rounded, torch.float64, backend="reference", **options)
                peer = call(rounded, dtype, backend="reference", **options)
                found = call_of_group(rounded, dtype, sizes, backend=backend, **options)
                if dtype == torch.float32:
                    assert torch.equal(found["kept_entries"], truth["kept_entries"]), (backend, options)
                for side in (found, peer, truth):  # a rounding error of it is one of the whole mass
                    side["dropped_mass"] = 1 - side["dropped_mass"]
                    del side["correct"], side["kept_entries"]
                assert_within_budget(found, peer, truth, dtype)


def of_log_prob(inputs, dtype, upstream, *, place=slice(None), **options):
    leaves = leaves_of(inputs, dtype, place, biased=True)
    rows, stats = linear_log_prob(
        **leaves, target=inputs["target"], gradient_threshold=THRESHOLD, return_stats=True, **options
    )
    torch.autograd.backward(list(rows), [part.to(rows.lse.dtype) for part in upstream])
    found = rows._asdict() | {"kept_entries": stats.kept_entries, "dropped_mass": stats.dropped_mass}
    return {n: v.detach() for n, v in found.items()} | {f"d_{name}": leaf.grad for name, leaf in leaves.items()}


def check_log_prob():
    """With gradients of log-probability, entropy and lse."""
    for sizes in SPLITS[dist.get_world_size()]:
        inputs = make_inputs(23, 16, sum(sizes), ignored=0.2)
        for of in ((1.0, -0.2, 0.0), (0.0, 0.0, 1.0), (1.0, -0.2, 0.5)):
            upstream = [each * torch.linspace(0.5, 1, 23) for each in of]
            for backend in COMPILED if sizes == SPLITS[dist.get_world_size()][0] else ["torch"]:
                dtype = torch.float64 if backend == "torch" else torch.float32
                run = functools.partial(of_log_prob, inputs, dtype, upstream, backend=backend, temperature=0.9)
                one, found = run(), joined(run(place=place_in(sizes), process_group=dist.group.WORLD))
                assert torch.equal(found["kept_entries"], one["kept_entries"])
                assert closeness(found, one) < (1e-14 if dtype == torch.float64 else 1e-5), (backend, sizes, of)


def check_mind_loss():
    """Whose rows without a group take the sparse gradient."""
    sizes = SPLITS[dist.get_world_size()][0]
    inputs = make_inputs(30, 16, sum(sizes), ignored=0.2)
    groups = {"answer_rows": torch.randperm(30)[:12].view(3, 4), "pair_weight": torch.rand(3, 4, 4)}
    dist.broadcast(groups["answer_rows"], 0)
    dist.broadcast(groups["pair_weight"], 0)

    def run(place=slice(None), **options):
        leaves, rest = leaves_of(inputs, torch.float64, place, biased=True), ("target", "row_weight")
        options |= groups | {name: inputs[name] for name in rest}
        loss, stats = linear_mind_loss(**leaves, gradient_threshold=THRESHOLD, return_stats=True, **options)
        loss.backward()
        found = {"loss": loss.detach()} | {name: getattr(stats.rows, name) for name in ("kept_entries", "dropped_mass")}
        return found | {f"d_{name}": leaf.grad for name, leaf in leaves.items()}

    one = run(backend="torch")
    found = joined(run(place_in(sizes), backend="torch", process_group=dist.group.WORLD))
    assert 0 < one["dropped_mass"].count_nonzero() < 30 and torch.equal(found["kept_entries"], one["kept_entries"])
    assert closeness(found, one) < 1e-14


def check_limits():
    """All processes decide alike, from whole rows: sparse where one shard alone is denser than 1/16, and exact where
    the entries of each shard alone are less than 1/16 of the vocabulary."""
    sizes = (40, 760) if dist.get_world_size() == 2 else (40, 380, 380)
    direction = torch.ones(32, dtype=torch.float64) / 32**0.5
    for near, is_sparse in (((range(40),), True), ((range(30), range(770, 800)), False)):
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(800, 32, generator=generator, dtype=torch.float64) / 32**0.5
        for part in near:  # a hidden state along this direction keeps them all
            weight[part] = direction + 0.1 * weight[part]
        target, hidden = torch.randint(30, (32,), generator=generator), 40 * direction.expand(32, -1)
        inputs = {"hidden": hidden, "weight": weight, "target": target, "row_weight": torch.ones(32)}
        one = call(inputs, torch.float64, backend="torch", threshold=2.0**-12)
        found = call_of_group(inputs, torch.float64, sizes, backend="torch", threshold=2.0**-12)
        assert (found["kept_entries"] == (40 if is_sparse else 800)).all(), found["kept_entries"]
        assert torch.equal(found["kept_entries"], one["kept_entries"]) and closeness(found, one) < 1e-13


def check_chunks(overlap):
    """Peaked rows first, flat rows last: the first chunks are sparse, the last are exact; two collectives a chunk, and
    the background is that of all of them."""
    world, vocabulary = dist.get_world_size(), 301
    sizes = tuple(len(part) for part in torch.arange(vocabulary).tensor_split(world))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, 32, generator=generator, dtype=torch.float64) / 32**0.5
    target = torch.randint(0, vocabulary, (48,), generator=generator)
    hidden = weight[target] * 30
    hidden[32:] = torch.randn(16, 32, generator=generator, dtype=torch.float64)
    inputs = {"hidden": hidden, "weight": weight, "target": target, "row_weight": torch.ones(48)}
    of_one, of_shard = (dict.fromkeys(("cpu", "cuda"), 8 * rows * 8) for rows in (vocabulary, max(sizes)))
    with changed(row_chunks, _SPARSE_CHUNK_BYTES=of_one):
        one = call(inputs, torch.float64, backend="torch")
    with (
        changed(row_chunks, _SPARSE_CHUNK_BYTES=of_shard),
        changed(sparse_shard_rows, _overlaps=lambda hidden: overlap),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
    ):
        found = call(inputs, torch.float64, place=place_in(sizes), process_group=dist.group.WORLD, backend="torch")
    collectives = [event.name for event in profile.events() if event.name.startswith("gloo:")]
    # Of the call, of six chunks two each, and of dH.
    assert collectives == ["gloo:all_gather"] * 13 + ["gloo:all_reduce"], collectives
    found = joined(found)
    assert (found["kept_entries"][:32] < 30).all() and (found["kept_entries"][32:] == vocabulary).all()
    assert torch.equal(found["kept_entries"], one["kept_entries"]) and closeness(found, one) < 1e-13


def check_hard_rows():
    """Confident rows, rows of nan, and no rows."""
    world = dist.get_world_size()
    sizes = tuple(len(part) for part in torch.arange(500).tensor_split(world))
    inputs = make_inputs(24, 16, 500, ignored=0.0)
    for backend in COMPILED:
        weight = inputs["weight"].clone()
        confident = inputs | {"hidden": weight[inputs["target"]] * 60 / weight.norm(dim=1)[inputs["target"], None] ** 2}
        truth = call(confident, torch.float64, backend="reference", threshold=2.0**-12)
        assert 1e-30 < float(truth["nll"].median()) < 1e-4
        found = call_of_group(confident, torch.float32, sizes, backend=backend, threshold=2.0**-12)
        assert torch.equal(found["kept_entries"], truth["kept_entries"])
        errors = (found["d_hidden"] - truth["d_hidden"]).norm(dim=1) / truth["d_hidden"].norm(dim=1)
        assert float(errors.max()) < 1e-3, (backend, errors)

        broken = inputs["hidden"].clone()
        broken[3] = math.nan
        one = call(inputs | {"hidden": broken}, torch.float32, backend=backend)
        leaves = leaves_of(inputs | {"hidden": broken}, torch.float32, place_in(sizes))
        options = {"gradient_threshold": THRESHOLD, "reduction": "sum", "process_group": dist.group.WORLD}
        linear_cross_entropy(**leaves, target=inputs["target"], backend=backend, **options).backward()
        assert leaves["hidden"].grad[3].isnan().all() and one["d_hidden"][3].isnan().all()
        assert leaves["hidden"].grad[[0, 1, 2, *range(4, 24)]].isfinite().all()

        for target in (torch.full((24,), -100), torch.empty(0, dtype=torch.int64)):
            rows = {"hidden": inputs["hidden"][: len(target)], "target": target, "row_weight": torch.ones(len(target))}
            found = call_of_group(inputs | rows, torch.float32, sizes, backend=backend, reduction="sum")
            assert not any(found[name].count_nonzero() for name in ("loss", "kept_entries", "d_hidden", "d_weight"))


def check_extra_statistics():
    sizes = SPLITS[dist.get_world_size()][0]
    inputs, named = make_inputs(21, 16, sum(sizes)), {"extra_stats": ("mean_logit", "log_sum_sq", "predicted")}
    one = call(inputs, torch.float64, backend="torch", **named)
    found = call_of_group(inputs, torch.float64, sizes, backend="torch", **named)
    assert torch.equal(found["predicted"], one["predicted"]) and closeness(found, one) < 1e-14


def check_refusals():
    """By name, and in no process later than in another."""
    inputs = make_inputs(8, 16, 20)
    arguments = inputs["hidden"], inputs["weight"], inputs["target"]
    with pytest.raises(
        ValueError, match="gradient_error is 3e-05: expected None with process_group.*threshold_for_error"
    ):
        linear_cross_entropy(*arguments, gradient_error=3e-5, process_group=dist.group.WORLD)
    threshold = threshold_for_error(1e-3) * (1 + dist.get_rank())
    for call_with in (linear_cross_entropy, linear_log_prob):
        with pytest.raises(ValueError, match="differs between process 0 and process 1"):
            call_with(*arguments, gradient_threshold=threshold, process_group=dist.group.WORLD)


def every_check():
    with always_sparse():
        check_definition()
        check_backends()
        check_log_prob()
        check_mind_loss()
        check_hard_rows()
        check_extra_statistics()
    check_limits()
    for overlap in (False, True):
        check_chunks(overlap)
    check_refusals()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_the_processes_give_what_one_gives(world):
    run_in_processes(world, every_check)
