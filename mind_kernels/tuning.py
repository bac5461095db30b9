"""The tables of `python -m mind_kernels tune`."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """What is measured: the name of a GPU; of a CPU also the number of threads. Empty for a device that is not here."""
    if device.type == "cuda":
        return _gpu_name(device.index) if torch.cuda.is_available() else ""
    return f"{_cpu_name()}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


@functools.cache
def _gpu_name(index: int | None) -> str:
    return torch.cuda.get_device_name(index)


@functools.cache
def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
