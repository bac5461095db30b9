"""Groups of rows of a head that is split over the vocabulary, in processes of gloo: each gives what one process gives.

A test starts its processes once, and makes all of its checks in them.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from cases import device_of, usable
from kernel_processes import assert_as_in_one_process, run_in_processes
from test_linear_pairwise_jsd import as_mixture, make

from mind_kernels import linear_mind_loss, linear_pairwise_jsd

BACKENDS = [name for name in usable("linear_mind_loss, shards") if name != "torch" and device_of(name) == "cpu"]
SPLITS = {2: ((70, 61), (131, 0), (2, 2), (1, 1)), 3: ((50, 40, 41), (100, 0, 31), (1, 0, 3), (1, 0, 1))}
CONDITIONED = {"softcap": 4.0, "temperature": 0.8}


def groups(inputs, dtype, place=slice(None), **options):
    """Loss, divergences and gradients of linear_pairwise_jsd."""
    leaves = leaves_of(inputs, dtype, place)
    loss, stats = linear_pairwise_jsd(**(inputs | leaves), return_stats=True, **options)
    (1.3 * loss).backward()
    (divergence,) = vars(stats).values()
    return {"loss": loss.detach(), "divergence": divergence} | gradients_of(leaves)


def joint(inputs, dtype, place=slice(None), **options):
    """Loss, statistics and gradients of linear_mind_loss."""
    leaves = leaves_of(inputs, dtype, place)
    loss, stats = linear_mind_loss(**(inputs | leaves), return_stats=True, **options)
    (1.3 * loss).backward()
    (divergence,) = vars(stats.pairs).values()
    found = {"loss": loss, "cross_entropy": stats.cross_entropy, "consistency": stats.consistency}
    rows = {name: getattr(stats.rows, name) for name in ("nll", "lse", "entropy", "segment_nll")}
    correct = stats.rows.correct.double()
    return found | rows | {"loss": loss.detach(), "divergence": divergence, "correct": correct} | gradients_of(leaves)


def leaves_of(inputs, dtype, place):
    leaves = {name: inputs[name].to(dtype) for name in ("hidden", "weight", "bias") if name in inputs}
    leaves |= {name: leaves[name][place] for name in ("weight", "bias") if name in leaves}
    return {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}


def gradients_of(leaves):
    return {f"d_{name}": leaf.grad for name, leaf in leaves.items()}


def biased(inputs):
    """With a bias that rules out some tokens."""
    bias = torch.linspace(-1, 1, len(inputs["weight"]), dtype=torch.float64)
    if len(bias) > 4:
        bias[3::11] = -torch.inf
    return inputs | {"bias": bias}


def make_joint(vocabulary):
    """Rows of two questions with answers of three perspectives, one of which is missing; some rows without a target."""
    inputs = make(4, 8, vocabulary=vocabulary)
    rows = inputs["hidden"].flatten(0, 1)
    target = torch.randint(0, vocabulary, (len(rows),), generator=torch.Generator().manual_seed(1))
    target = torch.where(target % 11 == 3, 0, target)  # that the bias rules out
    target[5::7] = -100
    weight = torch.linspace(0.1, 1, len(rows), dtype=torch.float64)
    weight[2::6] = 0
    answers = torch.tensor([[3, 9, -1], [4, 10, 30], [1, 2, 17]])
    pair_weight = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return {
        "hidden": rows,
        "weight": inputs["weight"],
        "target": target,
        "row_weight": weight,
        "answer_rows": answers,
        "pair_weight": pair_weight,
        "segment": torch.arange(len(rows)) % 3,
        "num_segments": 3,
    }


def check(call, inputs, dtype, sizes, backend="torch", **options):
    start = sum(sizes[: dist.get_rank()])
    place = slice(start, start + sizes[dist.get_rank()])
    heads = "hidden", "weight", "bias"
    inputs = {name: value.to(dtype) if name in heads else value for name, value in inputs.items()}
    found = call(inputs, dtype, place, process_group=dist.group.WORLD, backend=backend, **options)
    truth = call(inputs, torch.float64, backend="reference", **options)
    peers = [call(inputs, dtype, backend=peer, **options) for peer in ("reference", "torch")]
    assert_as_in_one_process(found, truth, peers, dtype)


def in_float64(world: int) -> None:
    for sizes in SPLITS[world]:
        inputs = make(3, 5, vocabulary=sum(sizes))
        for options in ({}, CONDITIONED):
            check(groups, biased(inputs), torch.float64, sizes, **options)
            check(groups, biased(as_mixture(inputs)), torch.float64, sizes, **options)
            check(groups, biased(inputs), torch.float64, sizes, kind="jeffreys", **options)
        check(groups, make(3, 5, vocabulary=sum(sizes), spread=0.0), torch.float64, sizes)
        check(joint, biased(make_joint(sum(sizes))), torch.float64, sizes, **CONDITIONED)
        ruled_out = torch.zeros(sum(sizes), dtype=torch.float64)
        ruled_out[sizes[0] :] = -torch.inf  # all but the first process's
        for options in ({}, {"kind": "jeffreys"}):
            check(groups, inputs | {"bias": ruled_out}, torch.float64, sizes, **options)
        check(groups, as_mixture(inputs) | {"bias": ruled_out}, torch.float64, sizes)
    check(groups, inputs, torch.float64, sizes, backend="reference")
    check(joint, make_joint(sum(sizes)), torch.float64, sizes, backend="reference")


def in_less(world: int) -> None:
    sizes = SPLITS[world][0]
    inputs = biased(make(3, 5, vocabulary=sum(sizes)))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for kind in ("jsd", "jeffreys"):
            check(groups, inputs, dtype, sizes, kind=kind, **CONDITIONED)
        check(groups, as_mixture(inputs), dtype, sizes)
        check(joint, biased(make_joint(sum(sizes))), dtype, sizes)


def others_in(backend: str) -> None:
    """Few and short rows: the interpreter of Triton may run them."""
    if backend in usable("linear_pairwise_jsd, shards"):
        inputs = biased(make(2, 3, vocabulary=37))
        for sizes in ((20, 17), (37, 0)):
            check(groups, inputs, torch.float32, sizes, backend=backend, **CONDITIONED)
            check(groups, as_mixture(inputs), torch.float32, sizes, backend=backend)
            check(groups, inputs, torch.float32, sizes, kind="jeffreys", backend=backend)
        check(groups, make(1, 10, vocabulary=37), torch.float32, (20, 17), backend=backend)
        check(groups, make(2, 3, vocabulary=37, spread=0.0), torch.float32, (20, 17), backend=backend)
    check(joint, biased(make_joint(37)), torch.float32, (20, 17), backend=backend, **CONDITIONED)


def every_check(world: int) -> None:
    in_float64(world)
    in_less(world)


@pytest.mark.nightly
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_backends(backend):
    run_in_processes(2, others_in, backend)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_it_is_that_of_one_process(world):
    run_in_processes(world, every_check, world)
