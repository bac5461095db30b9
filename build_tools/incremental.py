"""Compiles the sources of a library and links it: in parallel, and only what changed since the last time.

An object is current while the command that made it, the versions behind that command and the contents of every file
that it read (the compiler lists them, system headers apart) are what they were. The folder of torch's
headers does not count, its version does: in an isolated build it lies elsewhere each time.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .settings import NotBuilt

ERROR_WIDTH = 160  # of a compiler's error in the reason; the build's output has the whole of it


@dataclass(frozen=True)
class Translation:
    """One source file, compiled with one set of flags."""

    source: str
    command: tuple[str, ...]  # compiler and flags
    unmarked: tuple[str, ...]  # flags that do not make an object stale, such as the folders of headers
    variant: str = ""  # tells two translations of one source apart

    @property
    def name(self) -> str:
        return "-".join(filter(None, (Path(self.source).name, self.variant)))


@dataclass(frozen=True)
class Library:
    module: str
    translations: tuple[Translation, ...]
    link: tuple[str, ...]  # the command before the objects
    link_with: tuple[str, ...]  # and after them
    versions: tuple[str, ...]  # of compilers and headers: another one makes every object stale


def build(library: Library, folder: Path, jobs: int) -> Path:
    """The linked library, in `folder` beside its objects. Raises NotBuilt with the compiler's first error."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        tasks = [pool.submit(_compile, translation, library.versions, folder) for translation in library.translations]
        try:
            compiled = [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
    objects = [str(folder / f"{translation.name}.o") for translation in library.translations]
    linked = folder / f"{library.module}.so"
    mark, digest = folder / f"{linked.name}.digest", _digest([*library.link, *objects, *library.versions], [])
    if any(compiled) or not linked.is_file() or _text(mark) != digest:
        mark.unlink(missing_ok=True)
        _run([*library.link, *objects, *library.link_with, "-o"], linked)
        mark.write_text(digest)
    return linked


def install(built: Path, destination: Path) -> None:
    """A copy that replaces the old file in one step: a process that has the old library loaded keeps it whole."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}")
    shutil.copy2(built, temporary)
    os.replace(temporary, destination)


def _compile(translation: Translation, versions: tuple[str, ...], folder: Path) -> bool:
    """Whether there was anything to do."""
    target = folder / f"{translation.name}.o"
    mark, listing = target.with_suffix(".o.digest"), target.with_suffix(".o.d")
    identity = [*translation.command, translation.source, *versions]
    if target.is_file() and listing.is_file() and _text(mark) == _digest(identity, dependencies(listing.read_text())):
        return False
    mark.unlink(missing_ok=True)
    started = time.time()
    outputs = ["-MMD", "-MF", str(listing), "-c", translation.source, "-o"]
    _run([*translation.command, *translation.unmarked, *outputs], target)
    read = dependencies(listing.read_text())
    if all(os.path.getmtime(path) < started for path in read):  # else one was edited meanwhile: stale at once
        mark.write_text(_digest(identity, read))
    return True


def dependencies(listing: str) -> list[str]:
    """The files of a make rule as compilers write it."""
    files = listing.replace("\\\n", " ").partition(": ")[2].replace("\\ ", "\0").split()
    return [file.replace("\0", " ") for file in files]


def _run(command: list[str], target: Path) -> None:
    """Runs the command, whose last argument is to be the file that it makes; a failed one leaves none."""
    temporary = target.with_name(f".{os.getpid()}.{target.name}")
    print(f"{shlex.join([*command, str(target)])}\n", end="", flush=True)  # in one piece: others print meanwhile
    try:
        done = subprocess.run([*command, str(temporary)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise NotBuilt(f"{command[0]} cannot be started ({error.strerror})") from error
    if done.stdout:
        print(done.stdout, flush=True)
    if done.returncode != 0:
        target.unlink(missing_ok=True)
        temporary.unlink(missing_ok=True)
        errors = [line.strip() for line in done.stdout.splitlines() if "error" in line.lower()]
        status = f"{command[0]} ended with status {done.returncode}"
        raise NotBuilt(textwrap.shorten(errors[0], ERROR_WIDTH) if errors else status)
    os.replace(temporary, target)


def _digest(words: list[str], files: list[str]) -> str:
    digest = hashlib.sha256("\0".join(words).encode())
    for file in files:
        digest.update(b"\0" + file.encode() + b"\0")
        digest.update(Path(file).read_bytes() if os.path.isfile(file) else b"")
    return digest.hexdigest()


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
