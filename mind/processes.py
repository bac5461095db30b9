"""Coordinates the processes of a launch by torchrun or accelerate: who writes, who computes what, and what all share.

Without a launch there is one process, the main one, and nothing here loads PyTorch. All processes of a launch must call
the functions that exchange something in the same order. A process that fails reports why and ends (mind/cli/launch.py);
the others end too, because they wait for it or because the launcher ends them.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from mind.errors import MindError, require

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")

REMEDY = "unset WORLD_SIZE if no launcher has started this process"
TIMEOUT = "MIND_PROCESS_TIMEOUT"
"""The environment variable with the seconds that a process waits for another one before it ends with an error."""
TIMEOUT_S = 1800
"""Its default: long enough for one process to save a large student while the others wait."""
OF_LAUNCHES = ("WORLD_SIZE", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Environment variables by which accelerate takes a process for one of several, even if WORLD_SIZE is empty or not
set."""
CLAIM_S = 10
"""Seconds that a failing process waits for the key-value store of the launch."""

_store: Any = None
"""The key-value store of all processes, which the launcher, or else the main process, holds."""


def count() -> int:
    """Number of processes of the launch: 1 without one."""
    return _number("WORLD_SIZE", 1)


def index() -> int:
    """This process's number, from 0. An environment variable RANK that remains from an earlier launch does not
    count."""
    return _number("RANK", 0) if count() > 1 else 0


def main() -> bool:
    """Whether this is the main process, which owns all written files and speaks for all."""
    return index() == 0


def speaks() -> bool:
    """Whether this process prints: the main one; before the processes have met, which may never happen, one per
    machine."""
    return main() if joined() else count() == 1 or _number("LOCAL_RANK", 0) == 0


def of_machine() -> int:
    """How many processes of the launch share this machine: all, if the launcher does not say."""
    return max(1, _number("LOCAL_WORLD_SIZE", count())) if count() > 1 else 1


def device() -> torch.device:
    """The device of this process: the CPU, or the GPU that the launcher assigned.

    A launcher may show each process only its own GPU, as Ray and Slurm do. Raises MindError if a process sees several
    GPUs without an assignment and shares its machine with other processes.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    there = torch.cuda.device_count()
    if count() == 1 or there == 1:
        return torch.device("cuda", 0)
    local = _number("LOCAL_RANK", 0)
    require(
        local < there,
        f"process {index()} is number {local} of its machine, from 0, and {there} GPUs are there: each needs one",
    )
    return torch.device("cuda", local)


def processors() -> int:
    """Number of processors that this process may use; all of the machine if the system does not tell, as on macOS."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def begin() -> None:
    """Connects to the other processes; later calls do nothing. Functions that exchange something call it if needed.

    Raises MindError for environment variables that no launcher would set this way.
    """
    global _store
    if count() == 1 or _store is not None:
        return
    import torch
    from torch import distributed

    require(distributed.is_available(), "this build of torch has no torch.distributed, which several processes need")
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    require(
        not missing,
        f"WORLD_SIZE is {count()} and {' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not set: torchrun "
        f"sets all of them; {REMEDY}",
    )
    require(
        index() < count(), f"RANK is {index()} and WORLD_SIZE {count()}: expected a number below that, from 0; {REMEDY}"
    )
    timeout = timedelta(seconds=timeout_s())
    own = device()
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if not distributed.is_initialized():
        # Objects always travel between CPUs, even if tensors travel between GPUs: gloo notices at once that a process
        # has ended.
        backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=timeout)
    _store = distributed.distributed_c10d._get_default_store()


@contextmanager
def without_leftovers() -> Iterator[None]:
    """Inside the block, accelerate counts the processes as `count` does: without WORLD_SIZE there is no launch,
    whatever an earlier one, MPI or a cluster's scheduler left in the environment."""
    names = [] if os.environ.get("WORLD_SIZE") else [name for name in OF_LAUNCHES if name in os.environ]
    left = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(left)


def joined() -> bool:
    """Whether this process is connected to others."""
    return _store is not None


def end() -> None:
    """Disconnects from the other processes when all are done."""
    global _store
    if _store is not None:
        from torch import distributed

        wait()
        distributed.destroy_process_group()
        _store = None


def together(value: T) -> list[T]:
    """The values of all processes, in their order, in each of them; each waits for the others."""
    if count() == 1:
        return [value]
    from torch import distributed

    begin()
    values: list[Any] = [None] * count()
    distributed.all_gather_object(values, value)
    return values


def wait() -> None:
    """Waits until all processes are here: then the others can read what one has written before."""
    together(None)


def agreed(compute: Callable[[], T]) -> T:
    """The result of `compute` in the main process, in all processes; a MindError that it raises is raised in all."""
    if count() == 1:
        return compute()
    from torch import distributed

    begin()
    box: list[Any] = [None, None]
    if main():
        try:
            box[0] = compute()
        except (MindError, OSError) as error:
            box[1] = error
    distributed.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]


def by_main(compute: Callable[[], object]) -> None:
    """Runs `compute` in the main process only, for example to write a file; the others wait. A MindError that it raises
    is raised in all."""

    def done() -> None:
        compute()

    agreed(done)


def spread(
    items: Sequence[T], compute: Callable[[Sequence[T]], Sequence[R]], costs: Sequence[float] | None = None
) -> list[R]:
    """One result per item, in all processes. Each process calls `compute` with its share of the items, if that is not
    empty; it returns one result per item, which must be picklable.

    `costs` are the costs of the items, by which the work is divided evenly; None: all are equal. A MindError of one
    process is raised in all.
    """
    if count() == 1:
        return list(compute(items)) if items else []
    mine = shares([1] * len(items) if costs is None else costs, count())[index()]
    results: Sequence[R] = ()
    failure: Exception | None = None
    try:
        results = compute([items[place] for place in mine]) if mine else ()
    except (MindError, OSError) as error:
        failure = error
    parts = together((failure, len(items), list(zip(mine, results, strict=failure is None))))
    for failure, _, _ in parts:
        if failure is not None:
            raise failure
    lengths = {length for _, length, _ in parts}
    require(len(lengths) == 1, f"the processes of a launch were given {sorted(lengths)} items: expected the same ones")
    found = {place: result for _, _, part in parts for place, result in part}
    return [found[place] for place in range(len(items))]


def for_all(progress: Callable[[int], object] | None, mine: int, items: int) -> Callable[[int], object]:
    """A function that takes the number of finished items among this process's `mine`, and passes to `progress` an
    estimate for all `items`, assuming that the others are as fast."""
    return lambda done: progress and progress(done * items // mine)


def shares(costs: Sequence[float], processes: int) -> list[list[int]]:
    """The items of each process, assigned from the largest on to the process that has the least; a share may be
    empty."""
    members: list[list[int]] = [[] for _ in range(processes)]
    loads = [0.0] * processes
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        least = loads.index(min(loads))
        members[least].append(item)
        loads[least] += costs[item]
    return [sorted(part) for part in members]


def check_same(what: str, values: Mapping[str, Any]) -> None:
    """Raises MindError in all processes if the values, plain ones by name, are not the same in all."""
    first, *others = together((socket.gethostname(), dict(values)))
    for number, other in enumerate(others, start=1):
        names = [name for name in {**first[1], **other[1]} if first[1].get(name) != other[1].get(name)]
        if names:
            its, own = (values.get(names[0], "missing") for _, values in (other, first))
            raise MindError(
                f"{what}: {names[0]} is {its!s:.200} in process {number}, on {other[0]}, and {own!s:.200} in process "
                f"0, on {first[0]}: expected the same in all of a launch"
            )


def lost(error: BaseException) -> bool:
    """Whether an exception means that another process of the launch has ended or does not answer."""
    if count() == 1 or not isinstance(error, RuntimeError):
        return False
    from torch import distributed

    said = re.search("gloo|connection (was )?(closed|reset|refused)|timed out|broken pipe", str(error), re.IGNORECASE)
    return isinstance(error, distributed.DistError) or said is not None


def first_to_fail() -> bool:
    """Whether this process, which has failed, was the first of the launch to fail and therefore reports the reason. The
    others fail because of it or for the same reason."""
    with suppress(Exception):  # the main process, if it held the store, has ended and reports itself
        store = _launchers_store() if _store is None else _store
        if store is not None:
            store.set_timeout(timedelta(seconds=CLAIM_S))
            return store.add("mind/failed", 1) == 1
    # If they have not met, there may be no other process, and each may have a reason of its own.
    return _store is None or index() == 1


def _launchers_store() -> Any:
    """The store of torchrun, which exists before the processes have met; None without torchrun."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout = timedelta(seconds=CLAIM_S)
    return TCPStore(*place, timeout=timeout, wait_for_workers=False)


def timeout_s() -> float:
    """Seconds that a process waits for another one."""
    text = os.environ.get(TIMEOUT, "") or str(TIMEOUT_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    require(1 <= seconds < 1e8, f"{TIMEOUT} is {text!r:.60}: expected seconds, at least 1")
    return seconds


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "") or str(default)
    require(text.isascii() and text.isdigit(), f"{name} is {text!r:.60}: expected a number, as torchrun sets it")
    return int(text)
