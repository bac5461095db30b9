"""The file that holds what was paid for: whole lines on the disk, or an error, and room for what is under way."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from contextlib import suppress
from types import SimpleNamespace

import pytest

from mind.errors import MindError
from mind.records import Key
from mind.teacher.journal import Journal, load_wasted
from mind.teacher.requests import Wasted

CREATED = "2026-11-21T19:00:00Z"


def record(number):
    return Wasted(Key(f"q{number}", "intuitive", 0), "time-out", 7, number, True, CREATED, text="half " * number)


def numbers(path):
    return [json.loads(line)["completion_tokens"] for line in path.read_bytes().splitlines()]


def open_in(folder):
    """The files in it that this process has open."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [name for name in found if name.startswith(str(folder))]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "wasted.jsonl"


def test_records_are_on_the_disk_when_append_returns(path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(descriptor):
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), path.stat().st_size))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with Journal(path) as journal:
        assert synced.pop() == (str(path.parent), 0)  # the file's name
        for number in range(3):
            journal.append([record(number)])
            assert numbers(path) == list(range(number + 1))
            assert synced.pop() == (str(path), path.stat().st_size)
        assert open_in(path.parent)
    assert not open_in(path.parent)
    assert list(load_wasted(path)) == [record(number) for number in range(3)]


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        (b"", b""),
        (b"{}\n", b"{}\n"),
        (b"{}\n{}", b"{}\n"),
        (b"\n{}", b"\n"),
        (b"{", b""),
        (b"{}\n" + b"x" * 200_000, b"{}\n"),
    ],
)
def test_an_unfinished_line_is_cut_off(path, before, kept, caplog):
    path.write_bytes(before)
    with caplog.at_level(logging.WARNING), Journal(path) as journal:
        assert path.read_bytes() == kept
        assert [record.args[1] for record in caplog.records] == [len(before) - len(kept)] * (before != kept)
        journal.append([record(1)])
    assert path.read_bytes().startswith(kept) and path.read_bytes().count(b"\n") == kept.count(b"\n") + 1


@pytest.mark.parametrize("size", [1, 2**20, 2**20 + 5, 3 * 2**20 - 1])
def test_room_is_reserved_and_given_back(path, size, monkeypatch):
    reserve = path.with_name(".wasted.jsonl.reserve")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))
    with Journal(path, reserve=size) as journal:
        assert reserve.stat().st_size == size
        journal.append([record(1)])
        assert reserve.stat().st_size == size
    assert not reserve.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size - 1))
    with pytest.raises(MindError, match=f"no room for the {-(-size // 1000):,} kB of answers that are under way"):
        Journal(path, reserve=size)
    assert not reserve.exists() and numbers(path) == [1]
    Journal(path).close()  # nothing holds it


def test_a_full_disk_takes_the_reserved_place(path):
    reserve = path.with_name(".wasted.jsonl.reserve")
    with Journal(path, reserve=1000) as journal:
        journal.append([record(1)])
        file, real = journal._file, journal._file.write

        def write(data):
            if reserve.exists():
                real(data[:3])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(data[:5])  # a few bytes at a time

        file.write = write
        with pytest.raises(OSError, match="No space left on device") as raised:
            journal.append([record(2), record(3)])
        assert raised.value.filename == str(path)
        assert numbers(path) == [1, 2, 3] and not reserve.exists()
        journal.append([record(4)])
    assert numbers(path) == [1, 2, 3, 4]


def test_what_could_not_be_cut_off_is_cut_off_before_the_next_record(path):
    with Journal(path) as journal:
        journal.append([record(1)])
        file, real = journal._file, journal._file.write

        def write(data):
            real(data[:3])
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def truncate(size):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        file.write, file.truncate = write, truncate
        with pytest.raises(OSError, match="Input/output error"):
            journal.append([record(2)])
        del file.write, file.truncate
        journal.append([record(3)])
    assert numbers(path) == [1, 3]


def test_a_file_that_was_moved_ends_the_job(path):
    with Journal(path) as journal:
        journal.append([record(1)])
        path.rename(path.with_name("elsewhere.jsonl"))
        with pytest.raises(MindError, match="moved or removed while the job ran"):
            journal.append([record(2)])
    assert numbers(path.with_name("elsewhere.jsonl")) == [1, 2]


def test_a_second_process_is_refused_and_changes_nothing(path):
    with Journal(path) as journal:
        journal.append([record(1)])
        with pytest.raises(MindError, match="another process is writing it"):
            Journal(path)
        journal.append([record(2)])
    assert numbers(path) == [1, 2]
