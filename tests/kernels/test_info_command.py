"""`python -m mind_kernels`: which command runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import mind_kernels
from mind_kernels.__main__ import guarded, main
from mind_kernels.availability import Availability
from mind_kernels.backend import BACKENDS, Backend, resolve
from mind_kernels.commands import info

NAMES = "reference, torch, cpp, cuda, triton or triton_streaming"
LISTS = "`python -m mind_kernels {} --help` lists the options".format


def test_info_is_the_default(capsys):
    printed = []
    for arguments in ([], ["info"], ["--json"], ["info", "--json"]):
        assert main(arguments) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and printed[2] == printed[3]
    assert printed[0].startswith("backend ") and "torch" in json.loads(printed[2])["backends"]


def ended(words: list[str]) -> object:
    """The exit status of a command that ends before it does anything."""
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code


@pytest.mark.parametrize(
    "words, told",
    [
        ("inof", "unknown command inof; perhaps you meant info; the commands are info, check, tune, ahead"),
        ("xyz", "unknown command xyz; the commands are info, check, tune, ahead"),
        ("backends", "unknown command backends; the commands are info, check, tune, ahead"),
        ("--jsn", "unknown option --jsn; perhaps you meant --json; `python -m mind_kernels --help` lists the options"),
        ("-x", "unknown option -x; `python -m mind_kernels --help` lists the options"),
        ("info now", "unexpected word now; `python -m mind_kernels --help` lists the options"),
        ("check --devise=cpu", f"unknown option --devise; perhaps you meant --device; {LISTS('check')}"),
        ("check --backend", f"--backend: expected at least one argument; {LISTS('check')}"),
        ("check --backend torhc", f"--backend is torhc: expected {NAMES}; perhaps you meant torch; {LISTS('check')}"),
        ("tune --rows x", f"--rows is x: expected a whole number; {LISTS('tune')}"),
        ("tune --rows", f"--rows: expected one argument; {LISTS('tune')}"),
        ("tune --dtype int8", f"--dtype is int8: expected float32, bfloat16 or float16; {LISTS('tune')}"),
        ("tune one two", f"unexpected word two; {LISTS('tune')}"),
    ],
)
def test_wrong_words_are_told_in_one_line(words, told, capsys):
    assert ended(words.split()) == 2
    assert capsys.readouterr() == ("", f"mind_kernels: error: {told}\n")


@pytest.mark.parametrize("words", [["help"], ["help", "info"], ["--help"], ["info", "-h"]])
def test_help_is_shown(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0 and "--json" in capsys.readouterr().out


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith(
        f"mind_kernels {mind_kernels.__version__}, torch "
    )


def test_what_auto_takes_is_what_it_takes(capsys):
    """Each use that is listed, by `resolve` on a tensor of it."""
    assert main(["--json"]) == 0
    taken = json.loads(capsys.readouterr().out)["auto"]
    listed = []
    for name, uses in taken["CPU"].items():
        for use in uses:
            operation, _, double = use.partition(" in ")
            assert resolve("auto", torch.zeros(1, dtype=getattr(torch, double or "float32")), operation) == name
            listed.append(operation)
    assert set(listed) == {operation for backend in BACKENDS.values() for operation in backend.kernels}
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert 'what "auto" takes' in shown and all(name in shown.split("auto")[1] for name in taken["CPU"])


def test_a_backend_that_auto_takes_is_listed(monkeypatch):
    here = Backend("here", "cuda", {"linear_divergence": "x"}, fastest_on="cuda")
    # Not deleted: what is restored would be the last one, in every table of backends.
    monkeypatch.setitem(BACKENDS, "triton", replace(BACKENDS["triton"], fastest_on=None))
    monkeypatch.setitem(BACKENDS, "here", here)
    line = next(line for line in info.text(info.report()).splitlines() if line.startswith("  CUDA tensors"))
    assert line.split("tensors")[1].split() == ["torch;", "here", "for", "linear_divergence"]


def test_what_auto_would_take_says_why_it_does_not(monkeypatch, capsys):
    reason = "the package triton is not installed"
    monkeypatch.setitem(
        BACKENDS, "triton", replace(BACKENDS["triton"], availability=lambda: Availability(False, reason, "install it"))
    )
    assert main([]) == 0
    shown = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(shown) if line.startswith("  CUDA tensors"))
    assert f"not triton: {reason}" in (line.strip() for line in shown[at + 1 : at + 3])
    monkeypatch.setenv("MIND_KERNELS_BACKEND", "torch")  # nothing is missed then
    assert main([]) == 0 and "not triton" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "error, status, told",
    [
        (KeyboardInterrupt(), 130, "mind_kernels: interrupted\n"),
        (OSError(28, "No space left on device"), 2, "mind_kernels: error: [Errno 28] No space left on device\n"),
        (subprocess.CalledProcessError(1, ["cuobjdump"]), 2, "mind_kernels: error: Command '['cuobjdump']' returned"),
    ],
)
def test_what_ends_a_command_is_one_line(error, status, told, monkeypatch, capsys):
    def fail(_):
        raise error

    monkeypatch.setattr(info, "main", fail)
    assert guarded([]) == status
    assert capsys.readouterr().err.startswith(told)


def test_output_that_nobody_reads_ends_in_silence():
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, "-m", "mind_kernels"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-m", "mind_kernels"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (2, "mind_kernels: error: [Errno 28] No space left on device\n")


def test_output_that_is_closed_is_no_error():
    closed = 'import sys; sys.stdout = None; from mind_kernels.__main__ import guarded; sys.exit(guarded(["info"]))'
    ended = subprocess.run([sys.executable, "-c", closed], stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_ahead_without_triton_names_the_extra(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "mind_kernels.commands.ahead", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert ended(["ahead", "--help"]) == 2
    told = "mind_kernels: error: ahead needs the package triton: pip install 'mind-kernels[triton]'\n"
    assert capsys.readouterr().err == told
