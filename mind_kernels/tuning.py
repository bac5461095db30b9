"""Tables of the fastest backend per device, which `python -m mind_kernels tune` writes and "auto" reads.

A table is a JSON file, in the folder that MIND_KERNELS_TUNING names ("none": no table is read), by default
mind-kernels/tuning in $XDG_CACHE_HOME, else in ~/.cache. It is valid for one device (for a CPU, with one number of
threads) and for the versions that it was made with. An entry is valid for a use (an operation, or a form of it such as
"sparse"), a dtype, and sizes between the same powers of two as the measured ones. The number of rows does not matter,
since they are computed in chunks. A process reads a table once.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

FOLDER = "MIND_KERNELS_TUNING"
"""The environment variable that says where the tables are."""
_FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """The measurement of a use, and the choice."""

    use: str
    dtype: str
    vocabulary: int
    hidden_size: int
    rows: int
    backend: str
    """The chosen backend; for the use STREAM_TILE, the name of the chosen tile."""
    median_ms: dict[str, float]
    """Times of forward and backward by each backend; for a tile, times of the row statistics only."""

    def key(self) -> tuple[str, str, int, int]:
        """The key of the entry: a table has one entry per key."""
        return self.use, self.dtype, bucket(self.vocabulary), bucket(self.hidden_size)


@dataclass(frozen=True, eq=False)
class Table:
    """The table of a device. Compared by identity, so that others can cache results per table."""

    path: Path | None
    """The path of the table's file, which need not exist; None if no table is read."""
    entries: tuple[Entry, ...] = ()
    problem: str = ""
    """Why the file at `path` is not used; empty if it is, or if there is none."""


def use(operation: str, form: str) -> str:
    """The name of a form of an operation in the tables."""
    return f"{operation}, {form}" if form else operation


STREAM_TILE = use("linear_cross_entropy", "stream tile")
"""The use of entries that choose a tile for the kernel of backend triton_streaming."""


def bucket(size: int) -> int:
    """The largest power of two that is at most the size: an entry is used from this size up to twice as much."""
    return 1 << (size.bit_length() - 1)


def read(device: torch.device) -> Table:
    """The table of a device. It never raises: `Table.problem` says what is wrong with the file."""
    return _read(os.environ.get(FOLDER, ""), device_name(device))


@functools.cache
def _read(setting: str, device: str) -> Table:
    folder = _folder(setting)
    if folder is None or not device:
        return Table(None)
    path = folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', device).strip('-')}.json"
    try:
        if setting and not folder.is_dir():
            return Table(path, problem=f"{FOLDER} is {setting!r}: expected 'none' or a folder")
        return Table(path, _parsed(path.read_text(encoding="utf-8"), device)) if path.exists() else Table(path)
    except (OSError, ValueError, RecursionError) as error:
        return Table(path, problem=str(error) or type(error).__name__)


def write(device: torch.device, entries: Iterable[Entry]) -> Path:
    """Adds entries to the table of a device, replacing those with the same keys, and returns the path of its file.

    A table that cannot be used is discarded. The file is replaced atomically. Raises the errors of `make_folder`.
    """
    make_folder()
    _read.cache_clear()
    table = read(device)
    assert table.path is not None, f"{device} is not here"
    merged = {entry.key(): entry for entry in (*table.entries, *entries)}
    content = {
        "format": _FORMAT,
        "device": device_name(device),
        "versions": versions(),
        "entries": [asdict(entry) for entry in merged.values()],
    }
    handle, partial = tempfile.mkstemp(dir=table.path.parent, prefix=f".{table.path.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        os.replace(partial, table.path)
    except BaseException:
        os.unlink(partial)
        raise
    _read.cache_clear()
    return table.path


def make_folder() -> None:
    """Creates the folder of the tables.

    ValueError if MIND_KERNELS_TUNING forbids one or no home directory is known, OSError if the system forbids it.
    """
    setting = os.environ.get(FOLDER, "")
    folder = _folder(setting)
    if folder is None and setting:
        raise ValueError(f"{FOLDER} is 'none', so that no table is written: unset it, or name a folder")
    if folder is None:
        raise ValueError(f"no home directory is known: {FOLDER} may name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder}: {error.strerror}; {FOLDER} may name another folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: cannot be written to; {FOLDER} may name another folder")


def versions() -> dict[str, str]:
    """The versions that times depend on, "none" for a package that is not installed."""
    own = sys.modules[__name__.rpartition(".")[0]].__version__  # the package imports this module before it is complete
    return {"mind_kernels": own, "torch": torch.__version__, "triton": _triton()}


@functools.cache
def _triton() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _folder(setting: str) -> Path | None:
    if setting:
        return None if setting == "none" else Path(setting)
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as in some containers: there is no table
        return None
    return Path(cache) / "mind-kernels" / "tuning"


def _parsed(text: str, device: str) -> tuple[Entry, ...]:
    found = json.loads(text)
    if not isinstance(found, dict) or found.get("format") != _FORMAT or not isinstance(found.get("entries"), list):
        raise ValueError(f"it is no table of format {_FORMAT}")
    if found.get("device") != device:
        raise ValueError(f"it was made on {found.get('device')!r}, and this is {device!r}")
    if found.get("versions") != versions():
        raise ValueError(f"it was made with {found.get('versions')}, and this is {versions()}")
    return tuple(map(_entry, found["entries"]))


_TYPES = {
    "use": str,
    "dtype": str,
    "vocabulary": int,
    "hidden_size": int,
    "rows": int,
    "backend": str,
    "median_ms": dict,
}


def _entry(found: Any) -> Entry:
    if not isinstance(found, dict) or {name: type(value) for name, value in found.items()} != _TYPES:
        raise ValueError(f"an entry is {found!r}: expected {', '.join(_TYPES)}")
    if min(found["vocabulary"], found["hidden_size"]) < 1:
        raise ValueError(f"an entry is {found!r}: expected sizes of at least 1")
    return Entry(**found)


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of a CPU with its number of threads; empty for a device that does not exist."""
    if device.type == "cuda":
        return _gpu_name(device.index) if torch.cuda.is_available() else ""
    return f"{_cpu_name()}, {torch.get_num_threads()} threads" if device.type == "cpu" else ""


@functools.cache
def _gpu_name(index: int | None) -> str:
    return torch.cuda.get_device_name(index)


@functools.cache
def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
