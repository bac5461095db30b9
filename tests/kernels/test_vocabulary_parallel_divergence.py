"""Divergences of heads that are split over the vocabulary, in processes of gloo: each gives what one process gives.

A test starts its processes once, and makes all of its checks in them.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from cases import device_of, usable
from divergence_cases import EXTREME_KINDS, KINDS, NEARLY_THE_TEACHER, make
from kernel_processes import assert_as_in_one_process, run_in_processes

from mind_kernels import linear_divergence

BACKENDS = [name for name in usable("linear_divergence, shards") if name != "torch" and device_of(name) == "cpu"]
# Rows of the head in each process.
SPLITS = {2: ((70, 61), (131, 0), (2, 2), (1, 1), (600, 400)), 3: ((50, 40, 41), (100, 0, 31), (1, 0, 3), (1, 0, 1))}
OPTIONS = {
    "reduction": "none",
    "weighted": True,
    "softcap": 5.0,
    "teacher_softcap": 7.0,
    "temperature": 0.7,
    "teacher_temperature": 1.6,
}
HEADS = ("weight", "bias", "teacher_weight", "teacher_bias")


def call(inputs, dtype, *, weighted=False, place=slice(None), **options):
    """Loss, statistics and gradients of the rows `place` of the heads; upstream gradients differ by row."""
    inputs = rounded(inputs, dtype)
    inputs |= {name: inputs[name][place] for name in HEADS if name in inputs}
    row_weight = inputs.pop("row_weight")
    leaves = {k: inputs[k].detach().clone().requires_grad_() for k in ("hidden", "weight", "bias") if k in inputs}
    if "teacher_ids" in inputs:
        options = {name: value for name, value in options.items() if not name.startswith("teacher_")}
    loss, stats = linear_divergence(
        **(inputs | leaves), row_weight=row_weight if weighted else None, return_stats=True, **options
    )
    loss.backward(torch.linspace(-1, 2, loss.numel()).to(loss).view_as(loss))
    found = {"loss": loss.detach()} | vars(stats)
    return found | {f"d_{name}": leaf.grad for name, leaf in leaves.items()}


def rounded(inputs, dtype):
    """What an operation takes in that dtype."""
    wide = "teacher_log_prob", "row_weight"
    return {k: v.to(dtype) if v.is_floating_point() and k not in wide else v for k, v in inputs.items()}


def biased(inputs):
    """With biases, of which some rule a token out on both sides."""
    vocabulary = len(inputs["weight"])
    bias, teacher_bias = torch.linspace(-1, 1, vocabulary), torch.linspace(1, 0, vocabulary)
    if vocabulary > 4:
        bias[3::11] = teacher_bias[3::11] = -torch.inf
    return inputs | {"bias": bias} | ({"teacher_bias": teacher_bias} if "teacher_weight" in inputs else {})


def check(inputs, dtype, sizes, backend="torch", **options):
    start = sum(sizes[: dist.get_rank()])
    place = slice(start, start + sizes[dist.get_rank()])
    inputs = rounded(inputs, dtype)
    found = call(inputs, dtype, place=place, process_group=dist.group.WORLD, backend=backend, **options)
    truth = call(inputs, torch.float64, backend="reference", **options)
    peers = [call(inputs, dtype, backend=peer, **options) for peer in ("reference", "torch")]
    assert_as_in_one_process(found, truth, peers, dtype)


def kinds_in(form: str, world: int) -> None:
    for sizes in SPLITS[world]:
        inputs = make(24, 16, sum(sizes), form=form)
        for kind in (*KINDS, *EXTREME_KINDS, *NEARLY_THE_TEACHER):
            check(inputs, torch.float64, sizes, **kind)
        for kind in (KINDS[0], KINDS[1], KINDS[3], KINDS[6]):
            check(biased(inputs), torch.float64, sizes, **kind, **OPTIONS)


def masked_in(form: str, world: int) -> None:
    """All that the last process has is ruled out, and half of the first one's; of a list, what it does not name."""
    for sizes in SPLITS[world][:1]:
        inputs = make(24, 16, sum(sizes), form=form, listed=1)
        bias = torch.zeros(sum(sizes), dtype=torch.float64)
        bias[: sizes[0] // 2] = bias[-sizes[-1] :] = -torch.inf
        if form == "list":
            bias[inputs["teacher_ids"]] = 0.5
        inputs |= {"bias": bias} | ({"teacher_bias": bias} if form == "head" else {})
        for kind in KINDS:
            check(inputs, torch.float64, sizes, **kind)
            check(inputs, torch.float32, sizes, **kind)


def half_precision_in(form: str, world: int) -> None:
    sizes = SPLITS[world][0]
    inputs = make(24, 16, sum(sizes), form=form)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for kind in (KINDS[0], KINDS[1], KINDS[3], KINDS[6]):
            check(biased(inputs), dtype, sizes, **kind, **OPTIONS)
    check(inputs, torch.float64, sizes, backend="reference", **KINDS[2])
    check(inputs, torch.float64, sizes, backend="auto", **KINDS[2])


def others_in_all(backend: str) -> None:
    for form in ("head", "list"):
        others_in(form, backend)


def others_in(form: str, backend: str) -> None:
    """Few and short rows: the interpreter of Triton may run them."""
    plain = make(4, 16, 61, form=form)
    for turn, kind in enumerate([*KINDS, *NEARLY_THE_TEACHER[:2]] if form == "head" else KINDS[:4]):
        inputs = biased(plain) if turn % 2 == 0 else plain
        options = OPTIONS if turn % 2 == 0 else {}
        check(inputs, torch.float32, (35, 26), backend=backend, **kind, **options)
    check(biased(plain), torch.float32, (61, 0), backend=backend, **KINDS[0], **OPTIONS)


def every_check(world: int) -> None:
    for form in ("head", "list"):
        for checks in (kinds_in, masked_in, half_precision_in):
            checks(form, world)


@pytest.mark.nightly
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_backends(backend):
    run_in_processes(2, others_in_all, backend)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_it_is_that_of_one_process(world):
    run_in_processes(world, every_check, world)
