"""What the processes of a split head may be called with: DTensors, and errors that leave none of them waiting."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from shard_checks import CHECKS, Shards, check, far, small, tolerance
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from mind_kernels import linear_cross_entropy, linear_log_prob

__all__ = ["CHECKS"]  # of this module and of that


def failure(call: Callable[[], Any]) -> str:
    """The message of the error that it raises, with its kind."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def assert_match(found: list[tuple[str, str]]) -> None:
    assert not [pair for pair in found if not re.search(pair[0], pair[1])], found


@check
def all_processes_hear_of_what_differs(shards: Shards):
    inputs, dtype = small(shards)
    part, first = inputs["weight"][shards.rows(31)], shards.rank == 0
    hidden, target = inputs["hidden"], inputs["target"]

    def of(hidden=hidden, weight=part, target=target, operation=linear_cross_entropy, **options):
        return lambda: operation(hidden, weight, target, process_group=shards.group, backend=shards.backend, **options)

    own = shards.rank
    cases = [
        ("ValueError: .*the number of rows of hidden differs", of(hidden[: 5 + own], target=target[: 5 + own])),
        ("ValueError: .*target differs between process 0 and process 1", of(target=(target + own).clamp(0, 30))),
        ("ValueError: .*the hidden size differs", of(hidden[:, : 4 + own], part[:, : 4 + own])),
        ("ValueError: .*options differs", of(label_smoothing=0.1 * own)),
        ("ValueError: .*options differs", of(reduction="sum" if first else "mean")),
        ("ValueError: .*row_weight .* differs", of(row_weight=torch.ones(9) if first else torch.arange(9.0))),
        ("ValueError: .*the operation differs", of(operation=linear_cross_entropy if first else linear_log_prob)),
        ("ValueError: .*bias, softcap or temperature differs", of(softcap=5.0 if first else None)),
        ("ValueError: .*weight has no rows in any process", of(weight=part[:0])),
        (r"ValueError: target: expected values in \[0, 31\)", of(target=target.clamp(min=0) + 25)),
        (
            r"ValueError: hidden has shape" if first else "ValueError: .*process 0 of process_group raised an error",
            of(hidden[0] if first else hidden),
        ),
    ]
    if shards.backend != "reference":
        wants = hidden.clone().requires_grad_(first)
        cases.append(("ValueError: .*whether hidden requires a gradient differs", of(wants)))
    found = [(expected, failure(call)) for expected, call in cases]
    still = of()()  # and they can go on
    assert bool(still.isfinite())
    assert_match(found)


@check
def what_is_no_group_is_refused(shards: Shards):
    inputs, _ = small(shards)
    arguments = inputs["hidden"], inputs["weight"], inputs["target"]
    mesh = init_device_mesh("cpu", (shards.processes,), mesh_dim_names=("tp",))
    pair = dist.new_group([0, 1])
    cases = [
        (r"TypeError: process_group is a DeviceMesh: expected .*ProcessGroup, such as its \.get_group", mesh),
        ("TypeError: process_group is a str", "tp"),
    ]
    if shards.rank > 1:
        cases.append(("ValueError: process_group: this process does not belong to it", pair))
    for operation in (linear_cross_entropy, linear_log_prob):
        calls = [(said, partial(operation, *arguments, process_group=group)) for said, group in cases]
        assert_match([(said, failure(call)) for said, call in calls])


@check
def dtensors_are_taken(shards: Shards):
    """A head that is split or whole, and hidden states that are whole, or split by rows: sequence parallelism."""
    inputs, dtype = small(shards, 31, rows=12)
    mesh = init_device_mesh("cpu", (shards.processes,), mesh_dim_names=("tp",))
    bias = torch.linspace(-1, 1, 31, dtype=torch.float64).to(dtype)
    found, failures = [], []
    for of_head, of_hidden in ((Shard(0), Replicate()), (Shard(0), Shard(0)), (Replicate(), Shard(0))):
        for operation in (_mean, _sum):
            results = []
            for place in (True, False):
                leaves = [tensor.clone() for tensor in (inputs["hidden"], inputs["weight"], bias)]
                if place:
                    placements: list[Placement] = [of_hidden, of_head, of_head]
                    leaves = [distribute_tensor(leaf, mesh, [p]) for leaf, p in zip(leaves, placements, strict=True)]
                leaves = [leaf.detach().requires_grad_() for leaf in leaves]
                loss = operation(*leaves, inputs["target"], shards.backend if place else "reference")
                loss.backward()
                gradients = [leaf.grad for leaf in leaves]
                if place:
                    # Of whole hidden states each process has its part, as of torch.nn.functional.linear.
                    parts = of_head == Shard(0) and of_hidden == Replicate()
                    expected = [Partial() if parts else of_hidden, of_head, of_head]
                    assert [gradient.placements for gradient in gradients] == [(each,) for each in expected]
                    gradients = [gradient.full_tensor() for gradient in gradients]
                results.append(
                    dict(zip(("hidden", "weight", "bias", "loss"), [*gradients, loss.detach()], strict=True))
                )
            found.append((f"{of_head}, {of_hidden}", *results))
    for case, values, truth in found:
        failures += far(values, truth, case, tolerance(dtype))
    assert not failures, failures


def _mean(hidden, weight, bias, target, backend):
    return linear_cross_entropy(hidden, weight, target, bias=bias, backend=backend)


def _sum(hidden, weight, bias, target, backend):
    found = linear_log_prob(hidden, weight, target, bias=bias, backend=backend)
    return found.log_prob.sum() + 0.1 * found.entropy.sum()


@check
def dtensors_that_say_too_little_are_refused(shards: Shards):
    inputs, _ = small(shards)
    mesh = init_device_mesh("cpu", (shards.processes,), mesh_dim_names=("tp",))
    both = init_device_mesh("cpu", (1, shards.processes), mesh_dim_names=("dp", "tp"))
    hidden, weight, target = (inputs[name] for name in ("hidden", "weight", "target"))

    def on(tensor: torch.Tensor, *placements: Placement, mesh=mesh) -> DTensor:
        return distribute_tensor(tensor, mesh, placements)

    def of(hidden, weight, **options):
        return failure(lambda: linear_cross_entropy(hidden, weight, target, backend=shards.backend, **options))

    split, whole = on(weight, Shard(0)), on(hidden, Replicate())
    found = [
        (
            r"weight is split over mesh dimension 'tp' and hidden is a plain tensor: pass process_group=",
            of(hidden, split),
        ),
        (
            r"weight is a DTensor that every process has whole and hidden is a plain",
            of(hidden, on(weight, Replicate())),
        ),
        (r"hidden is a DTensor and weight a plain tensor", of(whole, weight)),
        (r"process_group: expected none beside a DTensor", of(whole, split, process_group=shards.group)),
        (r"weight is S\(1\) over mesh dimension 'tp': expected Shard\(0\)", of(whole, on(weight, Shard(1)))),
        (r"expected the same device mesh", of(on(hidden, Replicate(), Replicate(), mesh=both), split)),
        (r"bias: expected a DTensor with the placements of weight", of(whole, split, bias=weight[:, 0].contiguous())),
        (
            r"weight is split over mesh dimensions 'dp' and 'tp'",
            of(whole, DTensor.from_local(weight, both, [Shard(0), Shard(0)])),
        ),
    ]
    assert_match([(f"ValueError: .*{said}", message) for said, message in found])
