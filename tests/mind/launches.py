"""Commands in several processes, as torchrun starts them: forks of one server that has imported what they need."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

LIMIT_S = 600
"""A launch that takes longer hangs."""
LAUNCHER_LOOKS_S = 0.1
"""How often torchrun looks whether a process has failed."""

_context: Any = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["mind.run.train", "mind.cli.training", "transformers.models.llama.modeling_llama"])


@dataclass
class Launch:
    """The processes of a command."""

    processes: list[Any]
    outputs: list[Path]
    """What each prints, on both streams."""
    store: TCPStore
    """By which they meet."""
    started: float = field(default_factory=time.monotonic)

    def wait(self, *, launcher: bool = False) -> list[int]:
        """Their exit statuses. A `launcher` tells the others to end once one has failed, as torchrun does."""
        told = not launcher
        while any(process.exitcode is None for process in self.processes):
            if not told and any(process.exitcode for process in self.processes):
                time.sleep(LAUNCHER_LOOKS_S)
                for process in self.processes:
                    process.terminate()
                told = True
            if time.monotonic() > self.started + LIMIT_S:
                self.kill()
                raise AssertionError(f"hangs after {LIMIT_S} s: {self.said()}")
            multiprocessing.connection.wait([one.sentinel for one in self.processes if one.exitcode is None], 1)
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        """All of them."""
        for process in self.processes:
            process.kill()

    def said(self) -> list[str]:
        """What each printed."""
        return [output.read_text() for output in self.outputs]

    def errors(self) -> list[str]:
        """The lines with an error, of all processes."""
        return [line for text in self.said() for line in text.splitlines() if line.startswith("mind: error")]


def launch(
    place: Path,
    words: Sequence[str],
    processes: int,
    *,
    environment: Mapping[str, str] | None = None,
    absent: Sequence[int] = (),
    others: Mapping[int, Sequence[str]] | None = None,
    folders: Mapping[int, Path] | None = None,
    first: Mapping[int, Callable[[], object]] | None = None,
) -> Launch:
    """Starts `mind` with these words in so many processes, which work in `place`.

    Some may be `absent`, have `others`, words of their own, begin in other `folders`, or call something `first`.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # which the launcher holds
    common = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(environment or {})}
    common |= {"MIND_CACHE": str(place / "cache")} if "MIND_CACHE" not in common else {}
    started, outputs = [], []
    for rank in set(range(processes)) - set(absent):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
        own = {name: str(value) for name, value in own.items()} if processes > 1 else {}
        outputs.append(place / f"output-{store.port}-{rank}")
        folder = (folders or {}).get(rank, place)
        arguments = (
            list((others or {}).get(rank, words)),
            common | own,
            str(folder),
            str(outputs[-1]),
            (first or {}).get(rank),
        )
        started.append(_context.Process(target=_run, args=arguments))
        started[-1].start()
    return Launch(started, outputs, store)


def _run(
    words: list[str], environment: dict[str, str], folder: str, output: str, first: Callable[[], object] | None
) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
    import torch

    from mind.cli import main

    torch.set_num_threads(1)
    if first is not None:
        first()
    status = main(words)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)  # as a command ends: nothing of the server's is left to do
