"""Peak memory of each process that trains a student: as replicas, and divided among them by FSDP2.

    python -m bench.fsdp_memory [--jobs 2] [--steps 2] [--tokens 512] [--output folder] [--overwrite]

SFT of SmolLM2-135M in float32 on word problems, on --jobs processes of this machine: what `mind train` does between its
evaluations. The peak is the largest of the processes, from before the student is loaded, and from the first step on: of
the resident set without what the libraries take, or of PyTorch's allocator if each process has a GPU. Beside it stand
the bytes that weights and the state of the optimizer take in a process. Writes fsdp_memory.jsonl.
"""

from __future__ import annotations

import ctypes
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from bench import command
from bench.measure import RESET_PEAK, give_back, print_table, provenance, resident_bytes, write_results

NAME = "fsdp_memory"
RETURNED = (-3, 2**16)
"""glibc's M_MMAP_THRESHOLD: what is as large goes back to the system once it is freed, and the resident set is what is
in use; otherwise its peak depends on how the freed memory is cut."""


def peaks(shard: str, processes: int, steps: int, tokens: int) -> dict[str, float]:
    """MiB of the process that takes most: "peak_mib" and "training_mib" above the libraries, "state_mib" of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        spawn(_process, (processes, port, shard, steps, tokens, folder), nprocs=processes)
        found = [torch.load(file) for file in Path(folder).glob("*.pt")]
    return {name: max(one[name] for one in found) for name in found[0]}


def _process(rank: int, processes: int, port: int, shard: str, steps: int, tokens: int, folder: str) -> None:
    launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {name: str(value) for name, value in (launch | {"MASTER_PORT": port}).items()}
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        ctypes.CDLL(None).mallopt(*RETURNED)
    torch.save(_measured(shard, steps, tokens, f"{folder}/run"), f"{folder}/{rank}.pt")


def _measured(shard: str, steps: int, tokens: int, output: str) -> dict[str, float]:
    from transformers.trainer_utils import SaveStrategy

    from mind.config import MindConfig, TrainConfig
    from mind.methods import METHODS
    from mind.methods.method import MethodContext
    from mind.run.data import load_data
    from mind.run.trainer import MethodTrainer
    from mind.student.model import load_student

    options: dict[str, Any] = {"shard": shard, "max_steps": steps, "report_to": "none"}
    train = TrainConfig(tokens_per_step=2 * tokens, pack_length=tokens, **options)
    config = MindConfig(output=output, method="sft", train=train)
    data = load_data(config)
    before = _start()
    model, tokenizer = load_student(config.student)
    context = MethodContext.build(config, model, tokenizer, data.train, method=METHODS["sft"])
    trainer = MethodTrainer(context, METHODS["sft"](context))
    trainer.args.save_strategy = SaveStrategy.NO
    loading = _peak() - before
    _start()
    trainer.train()
    training = _peak() - before
    optimizer: Any = trainer.optimizer
    held = [tensor for p in context.model.parameters() for tensor in (p, p.grad, *optimizer.state.get(p, {}).values())]
    state = sum(_bytes(tensor) for tensor in held if isinstance(tensor, torch.Tensor))
    found = {"peak_mib": max(loading, training), "training_mib": training, "state_mib": state}
    return {name: number / 2**20 for name, number in found.items()}


def _start() -> int:
    """Bytes that are held now, from where the next peak is measured."""
    give_back()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    return resident_bytes("VmRSS")


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident_bytes("VmHWM")


def _bytes(tensor: Any) -> int:
    return getattr(tensor, "to_local", lambda: tensor)().nbytes


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "")
    parser.add_argument("--jobs", type=command.count, default=2, help="processes (default 2)")
    parser.add_argument("--steps", type=command.count, default=2, help="optimizer steps (default 2)")
    parser.add_argument("--tokens", type=command.count, default=512, help="tokens of a pass, half a step (default 512)")
    options, file = command.parse(parser, lambda _: NAME, arguments)
    rows: list[dict[str, Any]] = []
    for shard in ("none", "fsdp2"):
        found = peaks(shard, options.jobs, options.steps, options.tokens)
        row = {"shard": shard, "processes": options.jobs, "steps": options.steps, "tokens": options.tokens, **found}
        rows.append(row | {"of_replica": found["peak_mib"] / (rows[0] if rows else found)["peak_mib"]})
    columns = ("shard", "processes", "tokens", "peak_mib", "training_mib", "state_mib", "of_replica")
    print_table(rows, columns)
    write_results([row | provenance() for row in rows], file)


if __name__ == "__main__":
    command.program(NAME, main)
