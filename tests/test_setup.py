"""setup.py where the compiler fails, and its MIND_KERNELS_BUILD setting."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build(tmp_path: Path, mode: str | None) -> subprocess.CompletedProcess[str]:
    """`setup.py build_ext` into a folder of its own, with a compiler that fails at once."""
    environment = {name: value for name, value in os.environ.items() if name != "MIND_KERNELS_BUILD"}
    environment |= {"CC": "false", "CXX": "false", "LDSHARED": "false"}
    if mode is not None:
        environment["MIND_KERNELS_BUILD"] = mode
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    command = [sys.executable, "setup.py", "build_ext", *folders]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def built(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("*") if path.is_file()]


def test_without_a_compiler_the_build_goes_on_and_says_what_is_missing(tmp_path):
    done = build(tmp_path, None)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("mind-kernels:")]
    assert line.startswith("mind-kernels: mind._packer was not built (")
    assert "false" in line  # the command that failed
    assert line.endswith(": best-fit packing uses its Python twin: the same bins, more slowly")
    assert built(tmp_path) == []


def test_auto_is_the_default(tmp_path):
    assert build(tmp_path, "auto").stdout == build(tmp_path, None).stdout


def test_require_makes_a_failed_build_an_error(tmp_path):
    done = build(tmp_path, "require")
    assert done.returncode != 0
    assert "was not built" not in done.stdout
    assert "false" in done.stderr


def test_none_builds_nothing(tmp_path):
    done = build(tmp_path, "none")
    assert done.returncode == 0, done.stderr
    assert "mind._packer" not in done.stdout
    assert built(tmp_path) == []


def test_an_unknown_mode_is_an_error(tmp_path):
    done = build(tmp_path, "always")
    assert done.returncode != 0
    assert "MIND_KERNELS_BUILD is 'always': expected one of auto, none, require" in done.stderr
