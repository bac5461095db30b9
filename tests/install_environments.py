"""The fresh environments of install_matrix.py: how one is made, what is installed in it and what is run there."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = "build/objects"
PACKAGES = Path(sysconfig.get_path("purelib"))
# Variables that steer a build, Python or the tests; a case sets its own.
STEERING = ("MIND_", "PYTHON", "CUDA", "TORCH_", "CC", "CXX", "CFLAGS", "LDFLAGS", "MAX_JOBS", "NVCC_")
HOST_TOOLS = ("c++", "g++", "gcc", "cc", "as", "ld", "ld.bfd", "ar", "sh")
# A fast selection: the row kernels with their gradient, the kernels of groups, and the packer.
TESTS = (
    "tests/kernels/test_linear_cross_entropy.py",
    "tests/kernels/test_linear_pairwise_jsd.py",
    "tests/mind/test_bin_packing.py",
)


class Failure(Exception):
    pass


@dataclass
class Workplace:
    folder: Path
    source: Path  # a copy of the source tree
    outside: Path  # holds copies of tests/ and build_tools/ and nothing else of the source
    bare: Path  # a PATH without compilers
    host: Path  # with the C++ compiler
    cuda: Path | None  # with that and nvcc; None where there is no nvcc


@dataclass
class Environment:
    """A fresh virtual environment, and what a case does with it."""

    place: Workplace
    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin/python")

    @property
    def packages(self) -> Path:
        script = "import sysconfig; print(sysconfig.get_path('purelib'))"
        return Path(self.run("-c", script, path=self.place.bare).strip())

    def run(
        self,
        *arguments: str,
        path: Path,
        cwd: Path | None = None,
        fails: bool = False,
        stderr: int = subprocess.PIPE,
        **variables: str,
    ) -> str:
        """The output of this environment's Python; `fails`: it must end with an error, and may not otherwise."""
        keep = {name: value for name, value in os.environ.items() if not name.startswith(STEERING)}
        done = subprocess.run(
            [self.python, *arguments],
            cwd=cwd or self.place.folder,
            env=keep | {"PATH": str(path)} | variables,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        if (done.returncode != 0) != fails:
            print(done.stdout, done.stderr or "")
            raise Failure(f"{' '.join(arguments)} ended with status {done.returncode}")
        return done.stdout

    def pip_install(self, *arguments: str, path: Path, fails: bool = False, **variables: str) -> str:
        """All that pip prints: what a build prints is on standard error."""
        command = ["-m", "pip", "install", "-v", *arguments]
        return self.run(*command, path=path, cwd=self.place.source, fails=fails, stderr=subprocess.STDOUT, **variables)

    def check(self, *built: str, path: Path | None = None, inside: Path | None = None, **variables: str) -> None:
        """The package says that it has exactly these libraries, and the kernel tests pass with its backends."""
        path = path or self.place.bare
        file = self.run("-c", "import mind_kernels; print(mind_kernels.__file__)", path=path).strip()
        if (inside or self.folder) not in Path(file).parents:
            raise Failure(f"the tests would import {file}, which is not in {inside or self.folder}")
        cpp = self.check_report(*built, path=path, **variables)
        self._test(cpp, "mind._packer" in built, path, variables)

    def check_report(self, *built: str, path: Path, **variables: str) -> bool:
        """The package says that it has exactly these libraries; whether backend `cpp` is one of them."""
        report = json.loads(self.run("-m", "mind_kernels", "--json", path=path, **variables))
        has = {name for name, line in report["libraries"].items() if line.startswith("built")}
        if has != set(built):
            raise Failure(f"built are {sorted(has)}, expected {sorted(built)}: {report['libraries']}")
        cpp = report["backends"]["cpp"]
        if cpp["available"] != ("mind_kernels._cpp" in built) or not (cpp["available"] or cpp["remedy"]):
            raise Failure(f"backend 'cpp' is reported as {cpp}")
        return cpp["available"]

    def _test(self, cpp: bool, packer: bool, path: Path, variables: dict[str, str]) -> None:
        backend = "cpp" if cpp else "not cpp and not triton and not cuda"
        chosen = f"matches and float32 and {backend} or packing or packer"
        if not packer:
            variables = variables | {"MIND_KERNELS_BUILD": "none"}  # which the packer's tests read, and take its twin
        options = ["-q", "-p", "no:cacheprovider", "-c", "pytest.ini", "-k", chosen]
        done = self.run("-m", "pytest", *options, *TESTS, path=path, cwd=self.place.outside, **variables)
        print("   ", done.strip().splitlines()[-1])


def workplace(folder: Path, *, with_objects: bool) -> Workplace:
    """`with_objects`: the copy of the source tree has the compiled objects that this one has."""
    source, outside = folder / "source", folder / "outside"
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    if with_objects and (ROOT / OBJECTS).exists():
        shutil.copytree(ROOT / OBJECTS, source / OBJECTS)
    for name in ("tests", "build_tools"):
        shutil.copytree(source / name, outside / name)
    (outside / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu\n    slow\n")
    return Workplace(
        folder,
        source,
        outside,
        tools(folder / "bare"),
        tools(folder / "host", *HOST_TOOLS),
        tools(folder / "cuda", *HOST_TOOLS, "nvcc", "rm", "cat") if shutil.which("nvcc") else None,
    )


def tools(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return folder


def fresh_environment(place: Workplace, name: str, torch_alone: bool = False) -> Environment:
    environment = Environment(place, place.folder / f"environment-{name}")
    venv.create(environment.folder, symlinks=True)
    folder = environment.packages
    entries = [PACKAGES / part for part in parts_of("torch", "pip")] if torch_alone else PACKAGES.iterdir()
    for entry in entries:
        if not entry.name.startswith(("mind", "__editable__", "__pycache__", "_distutils_hack.pth")):
            link(entry, folder / entry.name)
    return environment


def parts_of(*names: str) -> set[str]:
    """The files and folders of these packages, and of what they require, in the folder of packages."""
    parts, waiting, seen = set(), list(names), set()
    while waiting:
        if (name := waiting.pop()) in seen:
            continue
        seen.add(name)
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # of another platform or version of Python
            continue
        parts |= {file.parts[0] for file in package.files or () if file.parts[0] != ".."}
        needed = [requirement for requirement in package.requires or () if "extra ==" not in requirement]
        waiting += [re.match(r"[\w.-]+", requirement)[0] for requirement in needed]
    return parts


def link(source: Path, target: Path) -> None:
    """Hard links where the file system allows, else copies: pip may replace a package without harm to the source."""

    def one(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    if source.is_dir():
        shutil.copytree(source, target, copy_function=one)
    else:
        one(str(source), str(target))
