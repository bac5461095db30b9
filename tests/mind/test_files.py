"""Files: replaced in one step or left as they were, held by one process, and named for what they are."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from mind import processes
from mind.errors import MindError
from mind.files import (
    cache_folder,
    check_new_folder,
    held,
    json_rows,
    make_cache,
    new_file,
    parse_json,
    path_meant,
    replacing,
    replacing_file,
    replacing_folder,
    require_file,
    saving,
)
from mind.typed_json import read_json

LONG = "x" * 300


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The current folder, with one of everything that a path may lead to."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("old")
    Path("folder").mkdir()
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    os.symlink("gone", "dangling")
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [None, KeyError, KeyboardInterrupt])
def test_a_file_is_replaced_in_one_step_or_left_as_it_was(tmp_path, error):
    file = tmp_path / "f"
    file.write_text("old")
    os.link(file, tmp_path / "same")  # who had opened the file before still reads all of it
    try:
        with replacing(file) as writer:
            writer.write("new")
            writer.flush()
            assert file.read_text() == "old"
            if error:
                raise error
    except (KeyError, KeyboardInterrupt):
        assert error
    assert file.read_text() == ("old" if error else "new") and (tmp_path / "same").read_text() == "old"
    assert names(tmp_path) == ["f", "same"]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, real=real: (done.append(name), real(*given))[1])
    with replacing(tmp_path / "f") as writer:
        writer.write("new")
    assert done == ["fsync", "replace"]


KILLED = """
import os, signal, sys
from mind.files import held, replacing, replacing_folder
with replacing_folder(sys.argv[1] + "/d") as folder, replacing(sys.argv[1] + "/f") as writer, held(sys.argv[1] + "/h"):
    (folder / "a").write_text("half")
    writer.write("half, and longer than what comes next")
    writer.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_kill_leaves_is_written_over(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path], env=environment).returncode == -signal.SIGKILL
    assert names(tmp_path) == [".d.partial", ".f.partial", "h"]
    with held(tmp_path / "h", "held by a dead process"):
        pass
    with replacing_folder(tmp_path / "d") as folder, replacing(tmp_path / "f") as writer:
        (folder / "b").write_text("whole")
        writer.write("whole")
    assert names(tmp_path) == ["d", "f", "h"] and names(tmp_path / "d") == ["b"]
    assert (tmp_path / "f").read_text() == "whole"


def test_many_write_the_same_file_at_once(tmp_path):
    broken = []

    def write(mark: str) -> None:
        try:
            for _ in range(20):
                with replacing(tmp_path / "f") as writer:
                    for _ in range(20):
                        writer.write(mark * 50)
                        writer.flush()
                text = (tmp_path / "f").read_text()
                assert len(text) == 1000 and len(set(text)) == 1
        except BaseException as error:
            broken.append(error)

    writers = [threading.Thread(target=write, args=(mark,)) for mark in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert broken == [] and names(tmp_path) == ["f"]


def test_who_puts_another_file_in_the_place_of_the_held_one_is_caught(tmp_path):
    """A library that does so, as safetensors' save_file, would let a second process write at the same time."""
    with pytest.raises(AssertionError, match="was put in the place"), replacing_file(tmp_path / "f") as partial:
        (tmp_path / "other").write_text("new")
        os.replace(tmp_path / "other", partial)
    assert names(tmp_path) == []


def test_a_folder_is_replaced_or_left_as_it_was(tmp_path):
    for content in ("a", "b"):
        with replacing_folder(tmp_path / "d") as folder:
            (folder / content).touch()
    with pytest.raises(KeyError), replacing_folder(tmp_path / "d") as folder:
        (folder / "c").touch()
        raise KeyError
    assert names(tmp_path) == ["d"] and names(tmp_path / "d") == ["b"]


def test_one_holds_a_file(tmp_path):
    second = held(tmp_path / "h", "somebody else has it")
    with held(tmp_path / "h"), pytest.raises(MindError, match="h: somebody else has it"), second:
        pytest.fail("two hold it")
    with held(tmp_path / "h", "it is free again"):
        pass


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "nowhere: no such file"),
        ("folder", "folder: is a folder: expected a file"),
        ("pipe", "pipe: is a named pipe: expected a file"),
        ("/dev/null", "/dev/null: is a device: expected a file"),
        ("dangling", "dangling: a link to what is not there"),
        ("loop", "'loop': cannot be read: Too many levels of symbolic links"),
        ("file/x", "'file/x': cannot be read: Not a directory"),
        (LONG, "x: cannot be read: File name too long"),
        ("a\0b", "cannot be read: embedded null byte"),
    ],
)
def test_what_is_no_file_is_named(place, path, message):
    for read in (require_file, read_json, lambda path: next(json_rows(path))):
        with pytest.raises(MindError) as error:
            read(path)
        assert message.removeprefix("x") in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("name", "overwrite", "message"),
    [
        ("new", False, None),
        ("new", True, None),
        ("file", False, "file: exists already; name another --output, or add --overwrite"),
        ("file", True, None),
        ("folder", False, "folder: is a folder: expected a file"),
        ("folder", True, "folder: is a folder: expected a file"),
        ("pipe", True, "pipe: is a named pipe"),
        ("/dev/null", True, "/dev/null: is a device"),
        ("dangling", False, "dangling: is a link to what is not there"),
        ("dangling", True, "dangling: is a link to what is not there"),
        ("no/new", False, "no: no such folder"),
        ("file/new", False, "file: is a file: expected a folder"),
        ("loop/new", False, "Too many levels of symbolic links"),
        (LONG, False, "File name too long"),
        ("x" * 250, False, "File name too long"),  # with what is written beside it
        ("a\0b", False, "embedded null byte"),
        ("", False, "expected the name of a file"),
    ],
)
def test_a_place_for_a_file_is_checked_before_it_is_needed(place, name, overwrite, message):
    before = names(place)
    if message is None:
        assert new_file(name, overwrite=overwrite) == Path(name)
    else:
        with pytest.raises(MindError, match=message):
            new_file(name, overwrite=overwrite)
    assert names(place) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("new", None),
        ("new/below/it", None),
        ("folder", None),
        (".", None),
        ("file", "file: is a file: expected a folder"),
        ("file/run", "file: is a file: expected a folder"),
        ("pipe/run", "pipe: is a named pipe: expected a folder"),
        ("dangling", "dangling: is a link to what is not there: expected a folder"),
        ("loop/run", "Too many levels of symbolic links"),
        (LONG, "File name too long"),
        (f"new/{LONG}/run", "File name too long"),
        ("a\0b/run", "embedded null byte"),
        ("/", "expected the name of a file or folder"),
    ],
)
def test_a_place_for_a_folder_is_checked_before_it_is_needed(place, name, message):
    if message is None:
        check_new_folder(Path(name))
    else:
        with pytest.raises(MindError, match=message):
            check_new_folder(Path(name))


def test_a_folder_that_is_not_ours_is_named(place, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "folder")  # root may write anywhere
    for check in (lambda: new_file("folder/new"), lambda: check_new_folder(Path("folder/a/b"))):
        with pytest.raises(MindError, match="folder: cannot be written to"):
            check()


def test_a_cache_that_cannot_be_is_named(place, monkeypatch):
    monkeypatch.setenv("MIND_CACHE", "file/cache")
    with pytest.raises(MindError, match="file/cache: cannot be made: Not a directory; .*MIND_CACHE"):
        make_cache(cache_folder())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(MindError, match="folder: cannot be written to; .*MIND_CACHE"):
        make_cache(Path("folder"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "a": 1}', 'w: cannot be read: an object has "a" twice'),
        ('{"x": {"é": 1, "b": 2, "é": 2}}'.encode(), r'w: cannot be read: an object has "\u00e9" twice'),
        (b"[[" * 50_000, "w: cannot be read: brackets are nested too deep"),
        (b'{"a":' * 100_000, "w: cannot be read: brackets are nested too deep"),
        (b"[-" + b"9" * 5000 + b"]", "w: cannot be read: a number has 5,001 digits"),
        (b'{\n"a": oops}', "w:2: not JSON: Expecting value at column 6"),
        (b"", "w: is empty: expected JSON"),
        (b"\xef\xbb\xbf\r\n", "w: is empty: expected JSON"),
        (b'{"a": "b', "w: not JSON: Unterminated string starting at column 7"),
        (b'["a\tb"]', "w: not JSON: Invalid control character at column 4"),
        (b'{"a": 1,\n\n"b": "\xff"}', "w:3: not UTF-8 text: save it as UTF-8"),
        (b"\xff\xfe{\0}\0", "w: not UTF-8 text but UTF-16: save it as UTF-8"),
        ('{"ä": 1}'.encode("latin-1"), "w: not UTF-8 text: save it as UTF-8"),
    ],
)
def test_what_is_not_json_is_named(text, message):
    with pytest.raises(MindError) as error:
        parse_json("w", text)
    assert str(error.value) == message


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    row = '{"a": "\ufeffä"}'.encode()
    file = tmp_path / "f"
    mark = b"\xef\xbb\xbf"
    file.write_bytes(mark + row + b"\r\n\n" + mark + row)  # two files, one after the other
    assert [row for _, row in json_rows(file)] == [{"a": "\ufeffä"}] * 2
    file.write_bytes(mark + row)
    assert read_json(file) == {"a": "\ufeffä"}


def test_a_process_that_is_lost_while_a_file_is_saved_is_no_fault_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=5 * 2**20))
    with pytest.raises(RuntimeError, match="^gloo: Connection reset by peer$"), saving(tmp_path / "checkpoint-5"):
        raise RuntimeError("gloo: Connection reset by peer")
    with (
        pytest.raises(OSError, match="cannot be written .* 5 MiB are free .*checkpoint-5"),
        saving(tmp_path / "checkpoint-5"),
    ):
        raise RuntimeError("no space")


def test_what_tokenizers_cannot_write_is_an_error_of_the_file(tmp_path: Path) -> None:
    """tokenizers raises a plain Exception; one without a number of the system is no error of a file."""
    with pytest.raises(OSError, match="cannot be written .*student") as caught, saving(tmp_path / "student"):
        raise Exception("No space left on device (os error 28)")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(Exception, match="^another fault$"), saving(tmp_path / "student"):
        raise Exception("another fault")


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path):
    """As by `open`: whoever has put a file or a folder on another disk finds the new one there."""
    other = tmp_path / "other"
    (other / "folder").mkdir(parents=True)
    for name in ("file", "folder", "new"):
        (tmp_path / name).symlink_to(other / name)
    for turn in ("one", "two"):  # the second finds what the first has left
        for name in ("file", "new"):
            with replacing(tmp_path / name) as writer:
                writer.write(turn)
            assert (tmp_path / name).is_symlink() and (other / name).read_text() == turn
        with replacing_folder(tmp_path / "folder") as folder:
            (folder / turn).touch()
        assert (tmp_path / "folder").is_symlink() and os.listdir(other / "folder") == [turn]
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "new", "other"]
    assert sorted(os.listdir(other)) == ["file", "folder", "new"]


@pytest.mark.parametrize(
    "asked, meant",
    [
        ("generate.json", None),  # of "wasted.jsonl" it has half of the letters, with the suffix
        ("train.jsonl", None),
        ("questons.jsonl", "questions.jsonl"),
        ("questions.json", "questions.jsonl"),
        ("rnu", "run"),
        ("rnu/wasted.jsnol", "run/wasted.jsonl"),
    ],
)
def test_a_missing_file_is_told_with_the_name_that_was_meant(asked, meant, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("wasted.jsonl", "test.jsonl", "questions.jsonl", "questions.csv", "run/wasted.jsonl"):
        (tmp_path / name).touch()
    assert path_meant(tmp_path / asked) == (f"; perhaps you meant {tmp_path / meant}" if meant else "")
