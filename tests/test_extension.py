"""The compiled libraries as the package sees them: why one is missing, and what `python -m mind_kernels` says."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mind_kernels import Availability, backend, backends, extension, linear_cross_entropy

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of libraries, empty; what is known of the real ones is forgotten meanwhile."""
    caches = (extension._problem, extension.build_record)
    monkeypatch.setenv("MIND_KERNELS_LIBRARIES", str(tmp_path))
    for name in ("mind_kernels._cpp", "mind_kernels._cuda"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def record(folder: Path, **libraries: dict) -> None:
    found = {f"mind_kernels.{name}": facts for name, facts in libraries.items()}
    (folder / "_build.json").write_text(json.dumps({"compiler": "g++ 12", "libraries": found}))


def test_a_library_that_was_not_built_gives_the_reason_of_its_build(folder):
    record(folder, _cpp={"built": False, "reason": "no C++ compiler"}, _cuda={"built": False, "reason": "no nvcc"})
    assert extension.unavailable("cpp") == "it was not built: no C++ compiler"
    assert extension.remedy("cpp").startswith("with torch, a C++ compiler there, install it again: pip install ")
    with pytest.raises(RuntimeError, match=r"mind_kernels._cpp: it was not built: no C\+\+ compiler; with torch"):
        extension.operators("cpp")


def test_a_copy_that_was_never_installed(folder):
    assert extension.unavailable("cpp") == "it was not built: this copy of mind_kernels was not installed"


def test_a_library_that_was_removed(folder):
    record(folder, _cpp={"built": True})
    assert extension.unavailable("cpp") == "it was not built: its file has been removed since"


def test_a_debug_build_has_one_library(folder, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    record(folder, _cpp={"built": True})
    assert extension.unavailable("cuda") == "it was not built: that build leaves it out"


def test_a_library_that_cannot_be_loaded(folder, monkeypatch):
    (folder / "_cpp.abi3.so").write_text("no library")
    assert extension.unavailable("cpp").startswith("_cpp.abi3.so cannot be loaded: ")
    assert extension.remedy("cpp").startswith("install it again: ")
    extension._problem.cache_clear()
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    assert extension.unavailable("cpp") == "_cpp.abi3.so needs torch 2.11 or later, and this is 2.9.1+cu128"


def test_libraries_that_are_left_alone(folder, monkeypatch):
    (folder / "_cpp.abi3.so").write_text("no library")
    monkeypatch.setenv("MIND_KERNELS_LIBRARIES", "none")
    assert extension.unavailable("cpp") == "MIND_KERNELS_LIBRARIES is 'none'"
    assert extension.remedy("cpp") == "unset it"


def test_the_package_is_where_the_libraries_are(monkeypatch):
    monkeypatch.setenv("MIND_KERNELS_LIBRARIES", "")
    assert extension._folder() == Path(extension.__file__).parent


def test_a_folder_of_libraries_that_is_none(folder, monkeypatch):
    monkeypatch.setenv("MIND_KERNELS_LIBRARIES", str(folder / "nowhere"))
    assert extension.unavailable("cpp") == (
        f"MIND_KERNELS_LIBRARIES is '{folder}/nowhere': expected 'none' or a folder"
    )


def test_a_variable_that_nothing_reads_is_told(folder, monkeypatch):
    monkeypatch.setenv("MIND_KERNELS_DISABLE_EXT", "1")
    with pytest.warns(UserWarning, match="^MIND_KERNELS_DISABLE_EXT is set, and nothing reads it: expected one of"):
        extension.unavailable("cpp")


def test_every_variable_is_documented():
    text = (ROOT / "docs" / "install.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    assert [name for name in extension.VARIABLES if f"`{name}`" not in text] == []


@pytest.mark.parametrize("built", [False, True])
def test_cuda_needs_a_cuda_build_of_torch(folder, monkeypatch, built):
    monkeypatch.setattr(torch.version, "cuda", None)
    if built:
        (folder / "_cuda.abi3.so").touch()
    assert extension.unavailable("cuda") == "this build of torch has no CUDA"
    remedy = backends()["cuda"].remedy
    assert remedy.startswith("install a CUDA build of torch") and ("pip install" in remedy) != built


def test_cuda_needs_a_device_that_it_was_compiled_for(folder, monkeypatch):
    record(folder, _cuda={"built": True, "architectures": ["sm_80", "sm_90a"]})
    monkeypatch.setattr(extension, "unavailable", lambda device: "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backends()["cuda"].reason == "no CUDA device is here"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert backends()["cuda"].reason == "it was not compiled for cuda:0, a Old of compute capability 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert backends()["cuda"].available


@pytest.mark.parametrize(
    ("names", "capability", "serves"),
    [
        (["sm_80"], (8, 0), True),
        (["sm_80"], (8, 9), True),
        (["sm_86"], (8, 0), False),
        (["sm_80"], (9, 0), False),
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),
        (["sm_100f"], (10, 3), True),
        (["compute_100"], (12, 0), True),
        (["compute_100"], (9, 0), False),
        ([], (8, 0), False),
        (["sm_80", "sm_90a", "sm_100", "compute_100"], (7, 5), False),
    ],
)
def test_which_gpus_an_architecture_serves(names, capability, serves):
    assert extension.serves(names, *capability) == serves


def test_the_compiled_backends_take_tensors_of_their_device(monkeypatch):
    monkeypatch.setattr(extension, "unavailable", lambda device: "")
    there = dataclasses.replace(backend.BACKENDS["cuda"], availability=lambda: Availability(True))
    monkeypatch.setitem(backend.BACKENDS, "cuda", there)
    operation = "linear_cross_entropy"
    assert not backend.BACKENDS["cpp"].takes("cuda")
    assert backend.resolve("cpp", torch.zeros(2, 3, device="meta"), operation) == "cpp"  # which gives shapes alone
    with pytest.raises(backend.BackendUnavailableError, match="'cuda' is not available on cpu: it needs CUDA tensors"):
        backend.resolve("cuda", torch.zeros(2, 3), operation)
    assert backend.resolve("cpp", torch.zeros(2, 3), operation) == "cpp"
    with pytest.raises(TypeError, match="dtype torch.float64: backend 'cpp' computes in float32, use 'torch'"):
        backend.resolve("cpp", torch.zeros(2, 3, dtype=torch.float64), operation)


def test_importing_the_package_imports_nothing_else():
    """Neither another package, torch apart, nor Dynamo, which takes a second."""
    code = """if True:
        import sys, torch
        before = set(sys.modules)
        import mind_kernels
        print(*sorted(set(sys.modules) - before))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {name for name in done.stdout.split() if name.split(".")[0] != "mind_kernels"} == set()


def test_the_choice_is_made_inside_torch_compile(folder):
    """Before the library was looked for: Dynamo must not trace that."""
    step = torch.compile(
        lambda hidden: linear_cross_entropy(hidden, torch.ones(5, 3), torch.tensor([1, 2])),
        fullgraph=True,
        backend="eager",
    )
    assert step(torch.zeros(2, 3)).item() == pytest.approx(torch.tensor(5.0).log().item())


def command(*arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mind_kernels", *arguments],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_table_without_any_library(tmp_path):
    lines = command(MIND_KERNELS_LIBRARIES=str(tmp_path)).splitlines()
    row = next(index for index, line in enumerate(lines) if line.startswith("cpp "))
    reason = "it was not built: this copy of mind_kernels was not installed"
    assert lines[row].split(maxsplit=3)[1:] == ["no", "CPU", reason]
    assert lines[row + 1].strip() == "to get it: pip install -e . in the source tree"
    assert any(line.split() == ["torch", torch.__version__] for line in lines)
    assert any(line.startswith("  cpu: ") for line in lines)


def test_the_table_as_json_agrees_with_this_process():
    report = json.loads(command("--json"))
    assert {name: found["available"] for name, found in report["backends"].items()} == {
        name: found.available for name, found in backends().items()
    }
    assert report["versions"]["torch"] == torch.__version__
    if not extension.unavailable("cpp"):
        assert report["versions"]["CPU kernels in use"] == extension.capability()
        assert report["libraries"]["mind_kernels._cpp"].startswith("built, capabilities baseline")


def test_a_capability_that_the_processor_lacks_is_told(tmp_path):
    if extension.unavailable("cpp"):
        pytest.skip(extension.unavailable("cpp"))
    report = json.loads(command("--json", MIND_KERNELS_CPU_CAPABILITY="mmx"))
    assert report["versions"]["CPU kernels in use"].startswith("none: MIND_KERNELS_CPU_CAPABILITY is 'mmx'")


def test_importing_the_package_does_not_import_dynamo():
    """It takes a second or two on top of torch's own import."""
    code = "import torch, sys; assert 'torch._dynamo' not in sys.modules, 'torch itself'; import mind_kernels; "
    code += "print([name for name in sys.modules if name.startswith('torch._dynamo')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
