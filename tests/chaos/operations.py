"""Counts what a process does to files, and lets a function see each operation before it is done.

Python's own files, the functions of os that change names, and the two libraries that write weights by themselves.
What else writes natively, such as tokenizers, is reached by real full disks, size limits and kills at a time.
"""

from __future__ import annotations

import builtins
import io
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NAMES = {
    "replace": "rename",
    "rename": "rename",
    "mkdir": "mkdir",
    "unlink": "unlink",
    "remove": "unlink",
    "rmdir": "unlink",
    "truncate": "truncate",
    "fsync": "fsync",
}
"""Functions of os, and what they count as."""


@dataclass(frozen=True)
class Operation:
    """What is about to be done."""

    number: int
    """From 1."""
    kind: str
    """write, truncate, open, mkdir, rename, unlink, fsync, or native."""
    half: Callable[[], Any] = lambda: None
    """Does half of it, if it can be halved."""
    error: Callable[[int], Exception] = lambda number: OSError(number, os.strerror(number))
    """What it raises for an error of this number."""


Seen = Callable[[Operation], None]


def install(seen: Seen, short: random.Random | None = None) -> None:
    """From now on `seen` gets each operation of this process; if it raises, the operation is not done.

    With `short`, reads and writes do only a part of what they could, by these random numbers.
    """
    done = 0

    def act(kind: str, **more: Any) -> None:
        nonlocal done
        done += 1
        seen(Operation(done, kind, **more))

    def wrapped(plain: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def function(*arguments: Any, **options: Any) -> Any:
            act(kind)
            return plain(*arguments, **options)

        return function

    for name, kind in NAMES.items():
        setattr(os, name, wrapped(getattr(os, name), kind))
    builtins.open = io.open = _opener(act, short)
    _wrap_native(act)


def _opener(act: Callable[..., None], short: random.Random | None) -> Callable[..., Any]:
    plain = io.open

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
            view = memoryview(data).cast("B")
            write = super().write
            act("write", half=lambda: write(view[: len(view) // 2]))
            if short is not None and len(view) > 1:
                view = view[: short.randint(1, len(view))]
            return write(view) or 0

        def readinto(self, buffer: Any) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
            view = memoryview(buffer).cast("B")
            if short is not None and len(view) > 1:
                view = view[: short.randint(1, len(view))]
            return super().readinto(view) or 0

        def truncate(self, size: int | None = None) -> int:
            act("truncate")
            return super().truncate(size)

    def opened(
        file: Any, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None
    ) -> Any:
        writes = bool(set(mode) & set("wax+"))
        if isinstance(file, int) or opener or not (writes or short) or os.fspath(file) == os.devnull:
            return plain(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if writes:
            act("open")
        raw = Raw(file, "".join(letter for letter in mode if letter not in "bt"))
        if buffering == 0:
            return raw
        kind = io.BufferedRandom if "+" in mode else io.BufferedWriter if writes else io.BufferedReader
        buffered = kind(raw)
        if "b" in mode:
            return buffered
        text = io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)
        text.mode = mode  # pyright: ignore[reportAttributeAccessIssue]
        return text

    return opened


def _wrap_native(act: Callable[..., None]) -> None:
    """Weights that PyTorch and safetensors write without Python's files."""
    import safetensors.torch
    import torch
    import transformers.modeling_utils
    from safetensors import SafetensorError

    def saved(plain: Callable[..., Any], error: Callable[[int], Exception]) -> Callable[..., Any]:
        def function(content: Any, file: Any, *arguments: Any, **options: Any) -> Any:
            def half() -> None:
                plain(content, file, *arguments, **options)
                _truncate(file, os.stat(file).st_size // 2)

            named = isinstance(file, str | os.PathLike)
            act("native", **({"half": half, "error": error} if named else {}))
            return plain(content, file, *arguments, **options)

        return function

    def of_safetensors(number: int) -> Exception:
        return SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")

    def of_torch(_: int) -> Exception:
        return RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    save_file = saved(safetensors.torch.save_file, of_safetensors)
    safetensors.torch.save_file = transformers.modeling_utils.safe_save_file = save_file  # pyright: ignore
    torch.save = saved(torch.save, of_torch)


_write, _truncate = os.write, os.truncate


def tell(file: str, number: int) -> None:
    """Keeps in a file the largest number that it was told; not counted."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    former = os.read(descriptor, 20)
    if not former or int(former) < number:
        os.lseek(descriptor, 0, os.SEEK_SET)
        _write(descriptor, f"{number:12d}".encode())
    os.close(descriptor)
