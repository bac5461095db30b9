"""What the processes of a split head may be called with: DTensors, and errors that leave none of them waiting."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from shard_checks import small
from shard_comparison import CHECKS, Shards, check, far, tolerance
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from mind_kernels import (
    Head,
    linear_cross_entropy,
    linear_divergence,
    linear_log_prob,
    linear_mind_loss,
    linear_pairwise_jsd,
)
from mind_kernels import shards as split
from mind_kernels.backend import backends_of
from mind_kernels.integrations.tensor_parallel import part_of

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

    own, segment = shards.rank, torch.arange(len(target)) % 3
    cases = [
        ("ValueError: .*the number of rows of hidden differs", of(hidden[: 5 + own], target=target[: 5 + own])),
        ("ValueError: .*target differs between process 0 and process 1", of(target=(target + own).clamp(0, 30))),
        ("ValueError: .*the hidden size differs", of(hidden[:, : 4 + own], part[:, : 4 + own])),
        ("ValueError: .*: label_smoothing differs", of(label_smoothing=0.1 * own)),
        ("ValueError: .*: reduction differs", of(reduction="sum" if first else "mean")),
        ("ValueError: .*: segment differs", of(segment=(segment + (own == 1)).clamp(max=2), num_segments=3)),
        ("ValueError: .*: num_segments differs", of(segment=segment, num_segments=3 + own)),
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
    wants = hidden.clone().requires_grad_(first)
    only_head = {"weight": part.clone().requires_grad_(first), "reduction": "none"}
    cases += [
        ("ValueError: .*whether hidden requires a gradient differs", of(wants)),
        ("ValueError: .*whether hidden requires a gradient differs", of(wants, operation=linear_log_prob)),
        ("ValueError: .*whether hidden, weight or bias requires a gradient differs", of(**only_head)),
    ]
    found = [(expected, failure(call)) for expected, call in cases]
    takes = hidden.clone().requires_grad_()
    with torch.set_grad_enabled(first):
        found.append(("ValueError: .*whether hidden requires a gradient differs", failure(of(takes, reduction="none"))))
    other = ("torch", "reference") if shards.backend == "reference" else (shards.backend, "reference")
    calls = partial(linear_cross_entropy, hidden, part, target, process_group=shards.group, backend=other[not first])
    found.append(("ValueError: .*: backend differs", failure(calls)))
    still = of()()  # and they can go on
    assert bool(still.isfinite())
    assert_match(found)


@check
def all_processes_hear_of_values_that_are_wrong_in_one(shards: Shards):
    """Values that a process judges by itself, in eager mode and in a compiled graph."""
    inputs, _ = small(shards)
    hidden, target = inputs["hidden"], inputs["target"].clamp(min=0)
    head, first = inputs["weight"][shards.rows(31)], shards.rank == 0
    rows, groups = len(target), hidden[:8].reshape(2, 4, -1)
    wrong = torch.arange(rows) == 3 * first + rows * (not first)  # row 3 of the first process, none of the others
    segment, ids = torch.zeros(rows, dtype=torch.int64), torch.arange(rows)[:, None]
    pairs, mixture = torch.ones(2, 4, 4), torch.ones(2, 4)
    if first:
        pairs[0, 0, 1], mixture[1, 2] = torch.inf, -1
    more: dict[str, Any] = {"process_group": shards.group, "backend": shards.backend}
    cases = [
        ("segment: expected", partial(linear_cross_entropy, hidden, head, target), {"segment": segment + 9 * wrong}),
        ("temperature: expected", partial(linear_log_prob, hidden, head, target), {"temperature": 1.0 - wrong.float()}),
    ]
    cases[0][2]["num_segments"] = 2
    if shards.backend in backends_of("linear_divergence, shards"):
        listed = partial(linear_divergence, hidden, head, teacher_ids=ids)
        cases.append(("teacher_log_prob: expected", listed, {"teacher_log_prob": wrong[:, None].float() - 0.5}))
        cases.append(("pair_weight: expected", partial(linear_pairwise_jsd, groups, head), {"pair_weight": pairs}))
        mind = partial(linear_mind_loss, hidden, head, target, torch.ones(rows), torch.arange(8).view(2, 4))
        cases.append(("mixture_weight: expected", mind, {"mixture_weight": mixture}))
    found = []
    for said, call, options in cases:
        expected = f"ValueError: {said}" if first else "ValueError: .*process 0 of process_group raised an error"
        found.append((expected, failure(partial(call, **options, **more))))
    if shards.backend == "torch":
        compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
        said, _, options = cases[0]
        expected = said if first else "process 0 of process_group raised an error"
        found.append((expected, failure(partial(compiled, hidden, head, target, **options, **more))))
    still = linear_cross_entropy(hidden, head, target, **more)
    assert bool(still.isfinite())
    assert_match(found)


@check
def all_processes_hear_of_errors_however_the_group_is_given(shards: Shards):
    """By keywords, as the integrations pass it, and as DTensors."""
    inputs, _ = small(shards)
    first, part = shards.rank == 0, inputs["weight"][shards.rows(31)]
    hidden, target = inputs["hidden"], inputs["target"]
    wrong = target[:-1] if first else target
    mesh = init_device_mesh("cpu", (shards.processes,), mesh_dim_names=("tp",))
    as_dtensors = distribute_tensor(hidden, mesh, [Replicate()]), distribute_tensor(inputs["weight"], mesh, [Shard(0)])
    plain = hidden if first else as_dtensors[0]
    plainly = {"hidden": hidden, "weight": part, "target": wrong}
    calls = [
        ("target has shape", plainly | {"process_group": shards.group}),
        ("target has shape", plainly | {"process_group": part_of(shards.group)}),
        ("target has shape", {"hidden": as_dtensors[0], "weight": as_dtensors[1], "target": wrong}),
        ("weight is split over", {"hidden": plain, "weight": Head(as_dtensors[1]), "target": target}),
    ]
    found = []
    for said, options in calls:
        expected = f"ValueError: {said}" if first else "ValueError: .*process 0 of process_group raised an error"
        found.append((expected, failure(partial(linear_cross_entropy, backend=shards.backend, **options))))
    assert_match(found)


@check
def the_group_says_where_messages_travel(shards: Shards):
    """Not the tensors, which may be on the wrong device. The device "meta" is in the place of a GPU."""

    def device(kinds: list[str], *near: torch.Tensor) -> torch.device:
        bound = torch.device("meta", 3)
        group: Any = SimpleNamespace(_device_types=[torch.device(kind) for kind in kinds], bound_device_id=bound)
        return split._message_device(group, *near)

    on_cpu, elsewhere = torch.empty(1), torch.empty(1, device="meta")
    assert device(["cpu"], elsewhere).type == device(["meta", "cpu"], elsewhere).type == "cpu"
    assert device(["meta"], on_cpu, elsewhere) == elsewhere.device
    assert device(["meta"], on_cpu) == device(["meta"]) == torch.device("meta", 3)
    assert device([], on_cpu) == on_cpu.device
    only_elsewhere: Any = SimpleNamespace(_device_types=[elsewhere.device])
    assert "hidden is on cpu: process_group exchanges tensors on meta" in failure(
        lambda: split._check_device(only_elsewhere, on_cpu)
    )
    assert split._message_device(shards.group, elsewhere).type == "cpu"


@check
def statistics_may_be_wanted_in_one_process(shards: Shards):
    """A process that logs them alone; rows of weight zero are in the statistics, and not in the loss."""
    inputs, _ = small(shards)
    head, first = inputs["weight"][shards.rows(31)], shards.rank == 0
    weight = torch.ones(2, 4, 4)
    weight[1] = 0
    groups, backend = inputs["hidden"][:8].reshape(2, 4, -1), "reference" if shards.backend == "reference" else "torch"
    more = {"process_group": shards.group, "backend": backend}
    found = failure(lambda: linear_pairwise_jsd(groups, head, weight, return_stats=first, **more))
    assert found == "nothing was raised", found


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
