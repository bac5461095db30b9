"""`mind doctor`: what is installed, what is missing, and the command that gets it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib

import pytest
from terminal_process import ROOT

from mind.cli import main
from mind.cli.boundary import guarded
from mind.cli.experiment import threads_of
from mind.errors import MissingError
from mind.requirements import EXTRAS, PACKAGES
from mind_kernels import backends

NOT_OF_THE_COMMAND = {"train", "bench", "test", "lint", "dev", "docs"}


def test_it_shows_every_extra_and_backend(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(declared) - NOT_OF_THE_COMMAND
    for name in (*EXTRAS, *backends()):
        assert re.search(rf"^  {name} +(yes|no) ", shown + " ", re.M) or re.search(rf"^  {name} +yes$", shown, re.M), (
            name
        )
    assert "Python 3." in shown and "complete" in shown


def test_a_key_is_not_shown(monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "OPENAI_API_KEY is set" in shown and "secret" not in shown


def test_what_is_missing_is_named_with_the_command_that_gets_it(monkeypatch, capsys):
    from mind.cli import doctor

    monkeypatch.setattr(doctor, "_found", lambda module: module not in ("tyro", "openai", "peft"))
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"not complete +missing: openai, tyro\n +to get it: pip install 'mind-kernels\[train\]'", shown)
    assert re.search(r"  lora +no .*\n +to get it: pip install 'mind-kernels\[lora\]'", shown)


@pytest.mark.parametrize("error", ["ImportError('libtorch.so: no such file')", "OSError('libcudart.so.13: missing')"])
def test_it_works_without_the_packages_of_the_application_and_with_a_torch_that_does_not_load(error):
    """As in an environment with none of them: each import of one fails."""
    program = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'torch': raise {error}\n"
        f"        if name.partition('.')[0] in {sorted(PACKAGES)!r}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import mind.cli.doctor as doctor\n"
        f"doctor._found = lambda name: name not in {sorted(PACKAGES)!r}\n"
        "from mind.cli import main\n"
        "sys.exit(main(['doctor']))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr == ""
    assert "PyTorch cannot be loaded: lib" in ended.stdout and "missing: accelerate, " in ended.stdout


def test_what_the_machine_lacks_names_the_doctor(capsys):
    def lacking():
        raise MissingError("this needs the package x: pip install x")

    assert guarded("mind", lacking) == 2
    expected = "mind: error: this needs the package x: pip install x; `mind doctor` shows what else is missing here\n"
    assert capsys.readouterr().err == expected


def test_a_backend_that_is_not_here_names_the_doctor(arguments, capsys):
    if backends()["cuda"].available:
        pytest.skip("all backends are here")
    assert main([*arguments, "--objective.backend", "cuda"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("mind: error: objective.backend cuda: ") and "`mind doctor`" in message


def test_it_works_where_the_system_does_not_tell_the_processors_of_a_process(monkeypatch, capsys):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert main(["doctor"]) == 0
    assert ", 12 processors for this process\n" in capsys.readouterr().out
    assert threads_of(3) == 4


def test_gpus_that_cuda_cannot_use_are_shown_with_the_reason(monkeypatch, capsys):
    def fails(index):
        raise RuntimeError("The NVIDIA driver on your system\nis too old")

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", fails)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^  GPU +(.*)$", shown, re.M) == [
        "2 GPUs that CUDA cannot use: The NVIDIA driver on your system is too old"
    ]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(13, "Permission denied", "/secret/cache"), "[Errno 13] Permission denied: '/secret/cache'"),
        (RuntimeError("Could not determine home directory."), "Could not determine home directory."),
    ],
)
def test_a_cache_that_cannot_be_found_is_told(error, told, monkeypatch, capsys):
    def fails(*_):
        raise error

    name = "mind.cli.doctor._existing" if isinstance(error, OSError) else "mind.files.Path.home"
    monkeypatch.delenv("MIND_CACHE", raising=False)
    monkeypatch.setattr(name, fails)
    assert main(["doctor"]) == 0
    expected = f"cannot be used: {told}; name another by MIND_CACHE"
    assert re.findall(r"^  cache +(.*)$", capsys.readouterr().out, re.M) == [expected]


def test_it_takes_no_options(capsys):
    assert main(["doctor", "--jsn"]) == 2
    assert "takes no options" in capsys.readouterr().err
