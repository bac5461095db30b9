"""Writes files that are complete or absent, checks paths before use, and reads JSON with errors that name the line.

A row is the JSON object of one line.
"""

from __future__ import annotations

import codecs
import errno
import fcntl
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mind import processes
from mind.display import one_line, path_meant
from mind.errors import MindError, require

_ADDRESS = re.compile(r"(https?|s3|gs|hf|ftp):/")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


_FORMATS = {
    codecs.BOM_UTF32_LE: "UTF-32: save it as UTF-8",  # before UTF-16, with which it begins
    codecs.BOM_UTF16_LE: "UTF-16: save it as UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16: save it as UTF-8",
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it",
    b"\xfd7zXZ": "compressed by xz: unpack it",
    b"BZh": "compressed by bzip2: unpack it",
    b"PK\x03\x04": "a ZIP archive or a workbook: unpack it, or save it as CSV",
    b"PAR1": "Parquet: give it a name that ends in .parquet",
}
"""First bytes of files that are not plain text -> what they are, and the remedy."""


def cache_folder() -> Path:
    """The folder for converted models and encoder features: $MIND_CACHE, else ~/.cache/mind-kernels."""
    return Path(os.environ.get("MIND_CACHE") or Path.home() / ".cache" / "mind-kernels")


def make_cache(folder: Path) -> None:
    """Makes a folder in `cache_folder` if it is missing. Raises MindError if it cannot be made or written to."""
    remedy = "name another cache by the environment variable MIND_CACHE"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise MindError(f"{folder}: cannot be made: {_reason(error)}; {remedy}") from None
    require(os.access(folder, os.W_OK | os.X_OK), f"{folder}: cannot be written to; {remedy}")


@contextmanager
def held(path: str | os.PathLike[str], busy: str | None = None) -> Iterator[IO[bytes]]:
    """Holds a lock on the file at `path` (made if missing) inside the block: no other process or thread can hold it
    meanwhile.

    The system releases the lock when the process ends in any way. If another holds the lock, the call waits or, if
    `busy` is given, raises a MindError with that text. The block gets the file and may rename it.
    """
    while True:
        with open(path, "ab") as file:
            lock(file, None if busy is None else f"{path}: {busy}")
            if is_at(path, file):  # else the previous holder has renamed it, and this lock is on the renamed file
                yield file
                return


def lock(file: IO[bytes] | int, busy: str | None = None) -> None:
    """Locks an open file, or a folder's descriptor, until it is closed; the end of the process closes it too.

    If another holds the lock, the call waits or, if `busy` is given, raises a MindError with that text.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
    except BlockingIOError:
        raise MindError(busy) from None


def is_at(path: str | os.PathLike[str], file: IO[bytes]) -> bool:
    """Whether the open file is the one at `path`, and was not moved, removed or replaced."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def naming(path: str | os.PathLike[str], *others: str | os.PathLike[str]) -> Iterator[None]:
    """Inside the block, an OSError without a file name, or with the name of one of the `others`, is raised with the
    name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None or error.filename in {str(other) for other in others}:
            error.filename = os.fspath(path)
        raise


@contextmanager
def replacing_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty file to write to; when the block ends without an error, it replaces the file at `path` in one step.

    By then its content is on the disk. If several processes do so, one writes at a time. A killed process leaves
    .NAME.partial, which the next writer overwrites. A link at `path` stays: what it names is replaced, as by `open`.
    """
    target = Path(os.path.realpath(path))
    partial = _partial(target)
    with naming(path, partial, target), held(partial) as file:
        file.truncate(0)
        try:
            yield partial
            assert is_at(partial, file), f"{partial} was put in the place of the file to write to"
            os.fsync(file.fileno())
            os.replace(partial, target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """`replacing_file` for a folder: an empty folder, which replaces `path` when the block ends.

    The caller must ensure that only one process does so at a time. A link at `path` stays, as in `replacing_file`.
    """
    target = Path(os.path.realpath(path))
    partial, former = _partial(target), target.with_name(f".{target.name}.former")
    for left in (partial, former):  # left by a killed process
        shutil.rmtree(left, ignore_errors=True)
    with naming(path, partial, target):
        partial.mkdir()
        try:
            yield partial
            if target.exists():
                target.rename(former)
            partial.rename(target)
        finally:
            for left in (partial, former):
                shutil.rmtree(left, ignore_errors=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    """`replacing_file`, opened as UTF-8 text."""
    # Lone surrogates, which json.dumps escapes and HTML cannot hold, become character references.
    with replacing_file(path) as partial, partial.open("w", encoding="utf-8", errors="xmlcharrefreplace") as file:
        yield file


def new_file(name: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """The path of a file that is to be written.

    Raises MindError if it exists already, unless it is a file and `overwrite` is given, and if its folder does not
    exist or cannot be written to.
    """
    file = Path(name)
    check_name(file)
    require(os.path.lexists(file.parent), f"{file.parent}: no such folder")
    _check_folder(file.parent)
    if os.path.lexists(file):
        require(file.is_file(), f"{file}: is {_kind(file)}: expected a file")
        require(overwrite, f"{file}: exists already; name another --output, or add --overwrite")
    return file


def check_apart(output: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raises MindError if `output`, which will be replaced, is or contains one of the `inputs`, files and folders that
    are read."""
    for path in map(Path, inputs):
        if output.exists() and os.path.exists(path):
            lost = output.samefile(path)
            require(not lost, f"{output}: this command also reads it, and would overwrite it: name another --output")
            lost = output.resolve() in path.resolve().parents
            require(not lost, f"{output}: holds {path}, which this command also reads: name another --output")


def check_replaceable(folder: Path, is_own: Callable[[Path], bool], remedy: str) -> None:
    """Raises MindError, which ends with the `remedy`, if a folder that is to be replaced holds something that the
    command did not write: a file, by its path, for which `is_own` is false, or anything that is neither file nor
    folder, such as a link."""
    require(not folder.is_symlink(), f"{folder}: is a link: {remedy}")
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for file in sorted(Path(place) / name for name in (*links, *files)):
            own = file.is_file() and not file.is_symlink() and is_own(file)
            require(own, f"{file}: this command did not write it, and --overwrite would remove it: {remedy}")


def check_new_folder(path: Path) -> None:
    """Raises MindError if the folder `path`, with its missing parents, could not be made or written to."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise MindError(f"{str(path)!r:.100}: cannot be written by every library: expected a name in UTF-8") from None
    path = path.absolute()
    check_name(path)
    above = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    _check_folder(above)
    for missing in path.relative_to(above).parts:
        check_name(above / missing)


def _check_folder(folder: Path) -> None:
    require(folder.is_dir(), f"{folder}: is {_kind(folder)}: expected a folder")
    require(os.access(folder, os.W_OK | os.X_OK), f"{folder}: cannot be written to")


def check_name(path: Path) -> None:
    """Raises MindError if the system does not accept the name, such as one of 300 characters."""
    require(path.name != "", f"{str(path)!r}: expected the name of a file or folder")
    try:
        os.lstat(_partial(path))  # the longest name that will be written
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise MindError(f"{str(path)!r:.100}: cannot be written: {_reason(error)}") from None


def require_file(path: str | os.PathLike[str]) -> Path:
    """`path`; if it is not a readable file, raises a MindError that says what is there."""
    file = Path(path)
    try:
        found = file.stat()
    except FileNotFoundError:
        is_link = os.path.lexists(file)
        missing = "a link to what is not there" if is_link else f"no such file{path_meant(file)}"
        if address := _ADDRESS.match(str(file)):  # of which Path has taken a slash
            missing += f"; {address[1]} addresses are not read: download the file first"
        raise MindError(f"{file}: {missing}") from None
    except (OSError, ValueError) as error:
        raise MindError(f"{str(file)!r:.100}: cannot be read: {_reason(error)}") from None
    require(stat.S_ISREG(found.st_mode), f"{file}: is {_kind(file)}: expected a file")
    require(os.access(file, os.R_OK), f"{file}: cannot be read: {os.strerror(errno.EACCES)}")
    return file


def _kind(path: Path) -> str:
    """What is at a path, in words."""
    try:
        return _KINDS.get(stat.S_IFMT(path.stat().st_mode), "a file")
    except OSError:
        return "a link to what is not there"


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; raises MindError as `require_file`, or if it is
    not UTF-8."""
    text = require_file(path).read_bytes()
    check_is_text(str(path), text)
    return _decoded(str(path), text)


def check_is_text(where: str, begin: bytes) -> None:
    """Raises a MindError that begins with `where` if `begin`, the first bytes of a file, shows that it is compressed,
    in another encoding than UTF-8, or no text at all."""
    if (other := _other_format(begin)) is not None:
        raise MindError(f"{where}: not UTF-8 text but {other}")


def _other_format(begin: bytes) -> str | None:
    """What a file with these first bytes is, if that is not UTF-8 text."""
    if 0 in begin[:2]:  # the first characters of a table or of JSON are ASCII: one byte and zeros in other encodings
        return "UTF-16 or UTF-32: save it as UTF-8" if any(begin[:4]) else "zero bytes: its content is lost"
    return next((what for signature, what in _FORMATS.items() if begin.startswith(signature)), None)


def json_rows(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a file of JSON lines with its "path:line"; blank lines are skipped.

    Raises MindError as `require_file` and, with the line, for what is not UTF-8, not JSON or not an object.
    """
    with require_file(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.removeprefix(codecs.BOM_UTF8).strip():
                where = f"{path}:{number}"
                yield where, parse_object(where, line)


def write_json_rows(rows: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Writes `rows` as JSON lines; a file at `path` is replaced in one step or, after an error, left as it was."""
    with replacing(path) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object that a file holds; raises MindError as `require_file`, and for what is not JSON or no object."""
    return parse_object(str(path), require_file(path).read_bytes())


def parse_object(where: str, text: bytes) -> dict[str, Any]:
    """The JSON object in `text`; raises a MindError that begins with `where` if it holds none."""
    value = parse_json(where, text)
    if not isinstance(value, dict):
        raise MindError(f"{where}: expected a JSON object, not {type(value).__name__}")
    return value


def parse_json(where: str, text: bytes) -> Any:
    """The JSON value in `text`, which is UTF-8 with or without a byte order mark.

    Raises a MindError that begins with `where` and has the line number if there are several lines; also for an object
    that has a name twice, since one of the values would be lost.
    """
    decoded = _decoded(where, text).rstrip()
    require(decoded != "", f"{where}: is empty: expected JSON")
    try:
        return _DECODER.decode(decoded)
    except json.JSONDecodeError as error:
        place = f"{where}:{error.lineno}" if "\n" in decoded else where
        raise MindError(f"{place}: not JSON: {error.msg.removesuffix(' at')} at column {error.colno}") from None
    except RecursionError:
        raise MindError(f"{where}: cannot be read: brackets are nested too deep") from None
    except ValueError as error:
        raise MindError(f"{where}: cannot be read: {error}") from None


def _decoded(where: str, text: bytes) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start)
        place = f"{where}:{line + 1}" if line else where
        other = _other_format(text)
        raise MindError(f"{place}: not UTF-8 text{f' but {other}' if other else ': save it as UTF-8'}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has {json.dumps(twice)} twice")
    return found


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:
        raise ValueError(f"a number has {len(digits):,} digits") from None


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Inside the block, errors of torch, safetensors and tokenizers about a file that cannot be written become an
    OSError that names `path`."""
    from safetensors import SafetensorError

    try:
        with naming(path):
            yield
    except Exception as error:
        number = re.search(r"os error (\d+)", str(error))  # torch gives no number
        of_tokenizers = type(error) is Exception and number is not None
        if not (of_tokenizers or isinstance(error, (SafetensorError, RuntimeError))):
            raise
        if processes.lost(error):  # no fault of the file: processes save a student that is divided among them together
            raise
        free = shutil.disk_usage(path.parent).free / 2**20
        reason = f"cannot be written ({one_line(str(error), 200)}; {free:,.0f} MiB are free there)"
        raise OSError(int(number[1]) if number else errno.EIO, reason, str(path)) from error
