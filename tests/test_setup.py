"""setup.py where tools are missing or fail, its MIND_KERNELS_BUILD setting, and the parts of build_tools."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from build_tools import architectures, incremental, libraries, pep517, settings, toolchain  # noqa: E402
from build_tools.settings import CPP, CUDA, MODES, PACKER, NotBuilt  # noqa: E402

VARIABLES = (
    "MIND_KERNELS_BUILD",
    "MIND_KERNELS_CUDA_ARCHS",
    "TORCH_CUDA_ARCH_LIST",
    "CUDA_HOME",
    "CUDA_PATH",
    "MAX_JOBS",
    "CXX",
    "CXXFLAGS",
    "LDFLAGS",
)
needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def build(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`setup.py build_ext` into a folder of its own, with a compiler that fails at once and no nvcc."""
    environment = os.environ | {"CXX": "false", "PATH": str(Path(shutil.which("false")).parent)} | variables
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    command = [sys.executable, "setup.py", "build_ext", *folders]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def closing_line(done: subprocess.CompletedProcess[str]) -> str:
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("mind-kernels:")]
    return line


def built(tmp_path: Path) -> list[str]:
    return [path.name for path in tmp_path.rglob("*") if path.is_file()]


def reasons(tmp_path: Path) -> dict[str, str]:
    record = json.loads((tmp_path / "lib/mind_kernels/_build.json").read_text())
    assert not any(facts["built"] for facts in record["libraries"].values())
    return {module: facts["reason"] for module, facts in record["libraries"].items()}


def test_without_a_compiler_the_build_goes_on_and_says_what_is_missing(tmp_path):
    done = build(tmp_path)
    assert done.returncode == 0, done.stderr
    line = closing_line(done)
    assert line.startswith("mind-kernels: built nothing; not built: cpp (false --version ended with status 1: ")
    assert line.endswith(": best-fit packing uses its Python twin: the same bins, more slowly)")
    assert built(tmp_path) == ["_build.json"]
    assert reasons(tmp_path)[CPP] == reasons(tmp_path)[PACKER] == "false --version ended with status 1"


def test_a_compiler_that_is_not_there(tmp_path):
    line = closing_line(build(tmp_path, CXX="no-such-compiler -x"))
    assert "cpp (CXX is 'no-such-compiler -x', which is not on PATH: " in line
    line = closing_line(build(tmp_path, CXX="", PATH=str(tmp_path)))
    assert "cpp (no C++ compiler: none of c++, g++, clang++ is on PATH, and CXX is not set: " in line
    assert "cuda (no CUDA compiler: nvcc is not on PATH, and CUDA_HOME is not set: " in line


def test_auto_is_the_default(tmp_path):
    assert build(tmp_path, MIND_KERNELS_BUILD="auto").stdout == build(tmp_path).stdout


@pytest.mark.parametrize(
    ("mode", "named"),
    [("require", [CPP, PACKER]), ("cpu", [CPP, PACKER]), ("cuda", [CPP, CUDA, PACKER])],
)
def test_what_a_mode_requires_and_cannot_build_is_an_error(tmp_path, mode, named):
    done = build(tmp_path, MIND_KERNELS_BUILD=mode)
    assert done.returncode != 0
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith(f"error: MIND_KERNELS_BUILD={mode} could not build {CPP}: false --version ended with ")
    assert [part.split(": ")[0] for part in error.partition("could not build ")[2].split("; ")] == named


def test_none_builds_nothing(tmp_path):
    done = build(tmp_path, MIND_KERNELS_BUILD="none")
    assert done.returncode == 0, done.stderr
    assert built(tmp_path) == ["_build.json"]
    assert set(reasons(tmp_path).values()) == {"MIND_KERNELS_BUILD is 'none'"}


@pytest.mark.parametrize("mode", ["auto", "none"])
def test_an_earlier_library_does_not_outlive_a_build_without_it(tmp_path, mode):
    older = tmp_path / "lib/mind_kernels/_cpp.abi3.so"
    older.parent.mkdir(parents=True)
    older.write_text("older")
    build(tmp_path, MIND_KERNELS_BUILD=mode)
    assert not older.exists()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "MIND_KERNELS_BUILD",
            "always",
            "MIND_KERNELS_BUILD is 'always': expected one of auto, none, cpu, cuda, require",
        ),
        ("MAX_JOBS", "many", "MAX_JOBS is 'many': expected a positive whole number"),
    ],
)
def test_an_unknown_setting_is_an_error(monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match=message):
        settings.mode_name() if variable == "MIND_KERNELS_BUILD" else settings.max_jobs()


def test_an_unknown_mode_ends_setup_py(tmp_path):
    done = build(tmp_path, MIND_KERNELS_BUILD="always")
    assert done.returncode != 0
    assert "expected one of auto, none, cpu, cuda, require" in done.stderr


def test_every_mode_requires_only_what_it_tries():
    for mode in MODES.values():
        assert set(mode.required) <= set(mode.tried)


CODES = frozenset(["sm_80", "sm_90", "sm_100", "sm_120"])


def test_architectures(monkeypatch):
    assert architectures.architectures(CODES) == ["sm_80", "sm_90a", "sm_100", "compute_100"]
    assert architectures.architectures(frozenset(["sm_80", "sm_90"])) == ["sm_80", "sm_90a", "compute_90"]
    with pytest.raises(NotBuilt, match="nvcc compiles for none of sm_80, sm_90a, sm_100"):
        architectures.architectures(frozenset(["sm_52"]))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 12.0+PTX")
    assert architectures.architectures(CODES) == ["sm_80", "sm_120", "compute_120"]
    monkeypatch.setenv("MIND_KERNELS_CUDA_ARCHS", "9.0a;9.0a")
    assert architectures.architectures(CODES) == ["sm_90a"]
    assert architectures.gencode(["sm_90a", "compute_100"]) == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100,code=compute_100",
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Hopper", "MIND_KERNELS_CUDA_ARCHS has 'Hopper': expected numbers such as 8.0, 9.0a or 10.0"),
        ("8.0;7.0", "MIND_KERNELS_CUDA_ARCHS has '7.0', which this nvcc does not compile for"),
    ],
)
def test_an_architecture_that_cannot_be_had(monkeypatch, value, message):
    monkeypatch.setenv("MIND_KERNELS_CUDA_ARCHS", value)
    with pytest.raises(NotBuilt, match=message):
        architectures.architectures(CODES)


def test_only_x86_has_more_than_the_baseline():
    assert list(libraries.capabilities("x86_64-linux-gnu")) == ["baseline", "avx2", "avx512"]
    assert libraries.capabilities("aarch64-linux-gnu") == {"baseline": ()}


def fake_torch(folder: Path, version: str, cuda: str | None = None) -> None:
    (folder / "torch/include/torch/csrc/stable").mkdir(parents=True)
    (folder / "torch/include/torch/csrc/stable/library.h").touch()
    lines = ["__all__ = []", f"__version__ = '{version}'", f"cuda: Optional[str] = {cuda!r}", ""]
    (folder / "torch/version.py").write_text("\n".join(lines))


@pytest.fixture
def hidden_torch(monkeypatch, tmp_path):
    """As in pip's isolated build: torch cannot be imported, and sysconfig names the environment's folder."""
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(toolchain, "_sees_system_packages", lambda: False)
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda name, **_: str(tmp_path))
    return tmp_path


def test_an_isolated_build_finds_the_environments_torch(hidden_torch):
    with pytest.raises(NotBuilt, match="the headers of torch 2.11 or later were not found in"):
        toolchain.find_torch()
    fake_torch(hidden_torch, "2.13.0+cpu")
    assert toolchain.find_torch() == toolchain.Torch(hidden_torch / "torch", "2.13.0+cpu", cuda="")


def test_an_older_torch_is_named(hidden_torch):
    fake_torch(hidden_torch, "2.9.1")
    with pytest.raises(NotBuilt, match="torch 2.9.1 is too old: its headers are used from 2.11 on"):
        toolchain.find_torch()


def test_torch_is_found_without_isolation():
    import torch

    found = toolchain.Torch(Path(torch.__file__).parent, torch.__version__, torch.version.cuda or "")
    assert toolchain.find_torch() == found
    assert Path(sysconfig.get_path("purelib"), "torch") in toolchain.torch_folders()


@pytest.mark.parametrize(
    ("mode", "torch_cuda", "compiled"),
    [
        ("auto", None, False),
        ("auto", "13.0", True),
        ("cuda", None, True),
        ("require", None, True),
    ],
)
def test_cuda_beside_a_cpu_build_of_torch_only_if_it_is_asked_for(
    hidden_torch, monkeypatch, mode, torch_cuda, compiled
):
    fake_torch(hidden_torch, "2.13.0", torch_cuda)
    monkeypatch.setenv("MIND_KERNELS_BUILD", mode)
    monkeypatch.setattr(toolchain, "find_compiler", lambda: toolchain.Compiler(("g++",), "g++ 12", "x86_64-linux-gnu"))
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: toolchain.Nvcc("nvcc", "13.0", hidden_torch, CODES))
    (hidden_torch / "lib64").mkdir()
    (hidden_torch / "lib64/libcudart_static.a").touch()
    if compiled:
        assert libraries.recipe(CUDA, ["rows.cu"]).facts["nvcc"] == "13.0"
    else:
        with pytest.raises(NotBuilt, match="^torch 2.13.0 has no CUDA; MIND_KERNELS_BUILD=cuda builds it all the same"):
            libraries.recipe(CUDA, ["rows.cu"])


@pytest.mark.parametrize("hook", [pep517.get_requires_for_build_wheel, pep517.get_requires_for_build_editable])
def test_torch_is_a_build_requirement_only_where_there_is_none(hidden_torch, monkeypatch, hook):
    monkeypatch.setattr(pep517.build_meta, hook.__name__, lambda config_settings: ["of setuptools"])
    compiler = toolchain.Compiler(("g++",), "g++ 12", "x86_64-linux-gnu")
    monkeypatch.setattr(toolchain, "find_compiler", lambda: compiler)
    assert hook() == ["of setuptools", "torch>=2.11"]
    monkeypatch.setenv("MIND_KERNELS_BUILD", "none")
    assert hook() == ["of setuptools"]
    monkeypatch.delenv("MIND_KERNELS_BUILD")
    fake_torch(hidden_torch, "2.11.0")
    assert hook() == ["of setuptools"]


def test_torch_is_no_build_requirement_without_a_compiler(hidden_torch, monkeypatch):
    monkeypatch.setenv("PATH", str(hidden_torch))
    assert pep517.torch_requirement() == []


def test_the_source_archive_needs_no_torch():
    assert pep517.get_requires_for_build_sdist is pep517.build_meta.get_requires_for_build_sdist


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Two sources, one of which includes a header."""
    monkeypatch.chdir(tmp_path)
    Path("number.h").write_text("#define NUMBER 1\n")
    Path("one.cpp").write_text('#include "number.h"\nint one() { return NUMBER; }\n')
    Path("two.cpp").write_text("int two() { return 2; }\n")

    def make(*flags: str, version: str = "1", unmarked: tuple[str, ...] = ()) -> incremental.Library:
        command = ("g++", "-fPIC", *flags)
        translations = tuple(incremental.Translation(name, command, unmarked) for name in ("one.cpp", "two.cpp"))
        return incremental.Library("numbers", translations, ("g++", "-shared"), (), (version,))

    return make


def compiled(capfd, library: incremental.Library) -> list[str]:
    """The sources that a build of it compiles."""
    capfd.readouterr()
    incremental.build(library, Path("objects"), 2)
    lines = capfd.readouterr().out.splitlines()
    return sorted(line.partition(" -c ")[2].split()[0] for line in lines if " -c " in line)


@needs_a_compiler
def test_only_what_changed_is_compiled(library, capfd):
    assert compiled(capfd, library()) == ["one.cpp", "two.cpp"]
    assert compiled(capfd, library()) == []
    os.utime("two.cpp")  # a later time, the same contents
    assert compiled(capfd, library()) == []
    Path("number.h").write_text("#define NUMBER 2\n")
    assert compiled(capfd, library()) == ["one.cpp"]
    assert compiled(capfd, library(unmarked=("-I", "elsewhere"))) == []
    assert compiled(capfd, library("-O1")) == ["one.cpp", "two.cpp"]
    assert compiled(capfd, library("-O1", version="2")) == ["one.cpp", "two.cpp"]


@needs_a_compiler
def test_a_failed_compilation_names_the_error_and_leaves_nothing(library, capfd):
    compiled(capfd, library())
    Path("number.h").write_text("#error no number\n")
    with pytest.raises(NotBuilt, match=r"number.h:1:2: error: #error no number"):
        incremental.build(library(), Path("objects"), 2)
    assert not Path("objects/one.cpp.o").exists()
    Path("number.h").write_text("#define NUMBER 1\n")
    assert compiled(capfd, library()) == ["one.cpp"]


@needs_a_compiler
def test_a_missing_header_makes_an_object_stale(library, capfd):
    compiled(capfd, library())
    Path("number.h").unlink()
    with pytest.raises(NotBuilt, match="number.h: No such file"):
        incremental.build(library(), Path("objects"), 2)


def test_dependencies_of_a_make_rule():
    assert incremental.dependencies("a.o: a.cpp \\\n b\\ c.h \\\n d.h\n") == ["a.cpp", "b c.h", "d.h"]


def test_installing_replaces_the_file_and_leaves_the_old_one_to_its_readers(tmp_path):
    (tmp_path / "new").write_text("new")
    old = tmp_path / "folder/library"
    old.parent.mkdir()
    old.write_text("old")
    with old.open() as reader:
        incremental.install(tmp_path / "new", old)
        assert reader.read() == "old"
    assert old.read_text() == "new"
    assert built(old.parent) == ["library"]
