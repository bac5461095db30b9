"""Files and folders of another user: each command names what it may not read or write, and changes nothing; what it may
read is enough for what it only reads."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FORMATS = Path(__file__).parent / "formats" / "0.1.0"
DROP_FROM_BOUNDING_SET, OVERRIDE, READ_SEARCH = 24, 1, 2
"""Of prctl(2) and capabilities(7): with these two root reads and writes whatever the mode of a file says."""


def obey_modes() -> None:
    """In a child before its program begins. It fails for a user who is not root, and has no such rights."""
    prctl = ctypes.CDLL(None).prctl
    for capability in (OVERRIDE, READ_SEARCH):
        prctl(DROP_FROM_BOUNDING_SET, capability, 0, 0, 0)


def child(words: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, preexec_fn=obey_modes)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A folder that can be read and not written to, with a file that cannot be read."""
    place = tmp_path_factory.mktemp("permissions") / "theirs"
    shutil.copytree(FORMATS, place)
    secret = place / "secret.jsonl"
    shutil.copy(place / "train.jsonl", secret)
    folders = [place, *(path for path in place.rglob("*") if path.is_dir())]
    secret.chmod(0)
    for folder in folders:
        folder.chmod(0o555)
    if child(["cat", "secret.jsonl"], place).returncode == 0:
        pytest.skip("modes bind nobody here")
    yield place
    for folder in folders:
        folder.chmod(0o755)
    secret.chmod(0o644)


def times(folder: Path) -> dict[str, int]:
    """When each file and folder changed last."""
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("data check secret.jsonl", "secret.jsonl: cannot be read: Permission denied"),
        ("data word-problems --output mine.jsonl", ".: cannot be written to"),
        pytest.param("train --output mine --data.train train.jsonl", "cannot be written to", marks=pytest.mark.nightly),
        pytest.param("report run", "run/report.html: Permission denied", marks=pytest.mark.nightly),
        pytest.param("data judge teacher", "teacher: cannot be written to", marks=pytest.mark.nightly),
    ],
)
def test_what_is_another_users_is_named_and_stays(theirs, words, told):
    before = times(theirs)
    ended = child([sys.executable, "-m", "mind", *words.split()], theirs)
    assert times(theirs) == before
    assert ended.returncode == 2, ended.stderr
    error = ended.stderr.splitlines()[-1]
    assert error.startswith("mind: error: ") and error.endswith(told) and "Traceback" not in ended.stderr


def test_what_may_be_read_is_filtered(theirs, tmp_path):
    words = ["data", "filter", "teacher", "--output", str(tmp_path / "mine.jsonl")]
    ended = child([sys.executable, "-m", "mind", *words], theirs)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "mine.jsonl").read_bytes() == (theirs / "dataset.jsonl").read_bytes()
