"""Hugging Face's `kernels` loads what build_tools.hub writes, and the losses are those of their definitions."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# tests/kernels is a folder, which `import kernels` finds too.
pytest.importorskip("kernels.load", reason="kernels is not installed (make integrations)")

from kernels._rust import Digest, DigestAlgorithm, Metadata

from build_tools import hub

LOSSES = Path(__file__).parents[1] / "hub_losses.py"
COMPILED = f"torch-stable-abi211-cpu-{platform.machine()}-linux"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "repository"
    compiled = ["--compile", "cpu"] if shutil.which("c++") else []
    assert hub.main([str(folder), *compiled]) == 0
    return folder


def run(*command: str, **variables: str) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRITON_INTERPRET": "1"} | variables
    done = subprocess.run([sys.executable, "-W", "ignore", *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("beside", [False, True])
def test_losses_are_their_definitions(repository, beside, record):
    """Of the variant that is chosen for this machine, and of the other two in the same process."""
    build = repository / "build"
    folders = [str(folder) for folder in (repository, build / "torch-cpu", build / "torch-cuda")]
    if not (build / COMPILED).exists():
        folders.pop(0)  # it would be torch-cpu again
    flags = ["--loader", "kernels", *["--beside"] * beside]
    lines = run(str(LOSSES), *folders, *flags, PYTHONPATH=str(hub.ROOT)).splitlines()
    assert len(lines) == len(folders) + beside
    assert ("cpp" in lines[beside].split()) == (build / COMPILED).exists()
    what = "all losses" + ", beside an installed mind_kernels" * beside
    record("kernels", "1", what)


def test_get_kernel(repository):
    """The line that a user writes, with this folder for a repository of the Hub."""
    code = (
        "from kernels import get_kernel; print(get_kernel('org/mind-kernels', version=0).linear_cross_entropy.__name__)"
    )
    assert run("-c", code, LOCAL_KERNELS=f"org/mind-kernels={repository}") == "linear_cross_entropy\n"


def test_metadata_and_digests_are_those_of_kernels(repository):
    folders = list((repository / "build").iterdir())
    assert len(folders) >= 2
    for folder in folders:
        metadata = Metadata.read_from_file(folder / "metadata.json")
        assert metadata.id == json.loads((folder / "metadata.json").read_text())["id"]
        metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, folder))
