"""`python -m mind_kernels`: which command runs."""

from __future__ import annotations

import json
import sys

from mind_kernels.__main__ import main


def test_check_is_the_default(capsys):
    printed = []
    for arguments in ([], ["check"], ["--json"], ["check", "--json"]):
        assert main(arguments) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and printed[2] == printed[3]
    assert printed[0].startswith("backend ") and "torch" in json.loads(printed[2])["backends"]


def test_an_unknown_command_is_named(capsys):
    assert main(["chekc"]) == 2
    assert "command is 'chekc': expected one of check, ahead" in capsys.readouterr().err


def test_ahead_without_triton_names_the_extra(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "mind_kernels.commands.ahead", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert main(["ahead", "--help"]) == 2
    assert capsys.readouterr().err == "ahead needs the package triton: pip install 'mind-kernels[triton]'\n"
