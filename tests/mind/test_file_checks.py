"""What a command replaces and reads: nothing of another's is lost, and what is in the way is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mind.errors import MindError
from mind.files import (
    check_apart,
    check_new_folder,
    check_replaceable,
    make_cache,
    naming,
    read_text,
    replacing_file,
)


def test_what_a_command_reads_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("folder").mkdir()
    check_apart(Path("new"), ["file", "folder"])
    check_apart(Path("file"), ["gone", "folder"])
    for output, path, told in (
        ("file", "file", "file: this command also reads it, and would overwrite it"),
        ("folder", "folder/inner", "folder: holds folder/inner, which this command also reads"),
    ):
        Path("folder/inner").write_text("")
        with pytest.raises(MindError, match=told):
            check_apart(Path(output), [path])


@pytest.mark.parametrize("other", [None, "file", "link", "folder link"])
def test_a_folder_is_replaced_if_all_of_it_is_ones_own(tmp_path, other):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    own = folder / "inner" / "own"
    own.write_text("")
    name = folder / "inner" / "other"
    if other == "file":
        name.write_text("")
    elif other is not None:
        name.symlink_to(own if other == "link" else tmp_path)

    def is_own(file):
        return file == own or other == "link"

    if other is None:
        check_replaceable(folder, is_own, "name another")
        return
    with pytest.raises(MindError, match=f"{name}: this command did not write it, .*: name another"):
        check_replaceable(folder, is_own, "name another")


@pytest.mark.parametrize(("named", "told"), [(None, "mine"), ("partial", "mine"), ("another", "another")])
def test_an_error_of_the_system_names_the_file_that_was_meant(named, told):
    with pytest.raises(OSError, match="No space left") as raised, naming("mine", "partial"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), named)
    assert raised.value.filename == told


def test_an_error_passes_although_the_partial_file_is_gone(tmp_path):
    with pytest.raises(KeyError), replacing_file(tmp_path / "f") as partial:
        partial.unlink()
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lacking", [os.W_OK, os.X_OK])
def test_a_folder_has_to_be_writable_and_open(tmp_path, monkeypatch, lacking):
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & lacking)
    for check in (check_new_folder, make_cache):
        with pytest.raises(MindError, match=f"{tmp_path}: cannot be written to"):
            check(tmp_path)


def test_text_is_read_and_anything_else_is_named(tmp_path):
    (tmp_path / "text").write_text("Über\n")
    (tmp_path / "packed").write_bytes(b"PK\x03\x04rest")
    assert read_text(tmp_path / "text") == "Über\n"
    with pytest.raises(MindError, match="packed: not UTF-8 text but a ZIP archive"):
        read_text(tmp_path / "packed")
