"""Installs the package in every supported way, each in a fresh environment, and tests what was installed.

    python tests/install_matrix.py [--quick] [--torch OTHER_PYTHON] [--keep]

Run it with the Python of an environment that has torch, the other dependencies and pytest (`make install-matrix`).
A fresh environment is a new virtual environment into which that one's packages are hard-linked, mind-kernels left out:
for pip and for the build it is one where they have been installed, and torch is not fetched for each of a dozen cases.
Compilers are found through PATH alone, so PATH holds links to the tools that a case is to have and nothing else. All
cases build in one copy of the source tree, one after the other: what one leaves must not get into a later one. Only
--quick also copies the objects that `make test` has just compiled, from nothing, in an environment of its own. The
tests run from a copy of tests/ and build_tools/, which they import, outside the source tree: everything else that they
import is the installed package's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from install_environments import Environment, Failure, fresh_environment, workplace

# In an environment with torch alone: each loss and its gradients with each backend that is there.
LOSSES = """
import torch, mind_kernels as m
torch.manual_seed(0)
weight, target, teacher = torch.randn(50, 8), torch.arange(6), torch.randn(50, 12)
losses = {
    "cross_entropy": lambda h, w, **k: m.linear_cross_entropy(h, w, target, **k),
    "sparse": lambda h, w, **k: m.linear_cross_entropy(h, w, target, gradient_threshold=2**-8, **k),
    "log_prob": lambda h, w, **k: m.linear_log_prob(h, w, target, **k).log_prob.sum(),
    "pairwise_jsd": lambda h, w, **k: m.linear_pairwise_jsd(h.view(2, 3, 8), w, torch.ones(2, 3, 3), **k),
    "mind_loss": lambda h, w, **k: m.linear_mind_loss(
        h, w, target, torch.full((6,), 1 / 6), torch.arange(6).view(2, 3), torch.ones(2, 3, 3), **k),
    "divergence": lambda h, w, **k: m.linear_divergence(h, w, torch.randn(6, 12), teacher, **k),
}
for name, loss in losses.items():
    for backend in ("auto", "torch", "reference"):
        hidden = torch.ones(6, 8).mul(torch.arange(6)[:, None]).requires_grad_()
        head = weight.clone().requires_grad_()
        value = loss(hidden, head, backend=backend)
        value.backward()
        assert value.isfinite() and hidden.grad.isfinite().all() and head.grad.isfinite().all(), (name, backend)
"""
# How long mind_kernels takes above torch; whatever else it imports has to be torch's or Python's.
IMPORT = """
import sys, time, torch
before, start = set(sys.modules), time.perf_counter()
import mind_kernels
seconds = time.perf_counter() - start
others = {name.partition(".")[0] for name in set(sys.modules) - before}
assert others <= {"mind_kernels", "torch"} | sys.stdlib_module_names, others
print(seconds)
"""
IMPORT_SECONDS = 0.3  # it took 0.13 to 0.17 on a busy machine
# A compiled module is loaded from a file, in a Python without the package's requirements.
PACKER = """
import array, importlib.util, sys
spec = importlib.util.spec_from_file_location("_packer", sys.argv[1])
packer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(packer)
bins = array.array("q", [0, 0, 0])
packer.best_fit_decreasing(array.array("q", [3, 5, 5]), 8, bins)
print(*bins)
"""
COLD_MINUTES = 4  # that a first build may take on two cores


ALL = ("mind_kernels._cpp", "mind._packer")


def with_a_compiler(env: Environment) -> None:
    started = time.monotonic()
    output = env.pip_install(".", path=env.place.host)
    seconds = time.monotonic() - started
    print(f"    {seconds:.0f} s; {closing_line(output)}")
    if seconds > 60 * COLD_MINUTES:
        raise Failure(f"that is more than {COLD_MINUTES} minutes")
    env.check(*ALL)


def with_both(env: Environment) -> None:
    if env.place.cuda is None:
        print("    left out: there is no nvcc on this machine")
        return
    started = time.monotonic()
    output = env.pip_install(".", path=env.place.cuda, MIND_KERNELS_BUILD="cuda")
    print(f"    {time.monotonic() - started:.0f} s; {closing_line(output)}")
    env.check(*ALL, "mind_kernels._cuda")


def nvcc_and_a_cpu_build_of_torch(env: Environment) -> None:
    """The CUDA library, which could not be loaded there, is compiled only if it is asked for."""
    torch_cuda = env.run("-c", "import torch; print(torch.version.cuda or '')", path=env.place.bare).strip()
    if env.place.cuda is None or torch_cuda:
        print("    left out: there is no nvcc on this machine, or torch is a CUDA build")
        return
    output = env.pip_install(".", path=env.place.cuda)
    if "cuda (torch " not in closing_line(output):
        raise Failure(f"the build ends with {closing_line(output)}")
    env.check(*ALL)


def with_neither(env: Environment) -> None:
    print(f"    {closing_line(env.pip_install('.', path=env.place.bare))}")
    env.check()


def without_isolation(env: Environment) -> None:
    env.pip_install(".", "--no-build-isolation", path=env.place.host)
    env.check(*ALL)


def editable(env: Environment) -> None:
    """The second install compiles the changed source and nothing else; a failing one leaves no library behind."""
    source = env.place.source
    env.pip_install("-e", ".", path=env.place.host)
    env.check(*ALL, inside=source)
    changed = source / "csrc/cpu/dispatch.cpp"
    text = changed.read_text()
    changed.write_text(text + "// changed\n")
    compiled = [line for line in env.pip_install("-e", ".", path=env.place.host).splitlines() if " -c csrc/" in line]
    if len(compiled) != 1 or "dispatch.cpp" not in compiled[0]:
        raise Failure(f"a change of {changed.name} compiled {compiled}")
    changed.write_text("#error broken\n")
    env.pip_install("-e", ".", path=env.place.host)
    env.check("mind._packer", inside=source)
    changed.write_text(text)


def from_the_sdist(env: Environment) -> None:
    """What `make dist` makes: the archive, and the wheel that is built from it, which every later Python takes."""
    command = ["-m", "build", "--no-isolation", "--outdir", str(env.folder / "dist"), "."]
    env.run(*command, path=env.place.host, cwd=env.place.source, MIND_KERNELS_BUILD="cpu")
    (archive,), (wheel,) = ((env.folder / "dist").glob(ending) for ending in ("*.tar.gz", "*.whl"))
    print(f"    {archive.name}: {archive.stat().st_size:,} bytes, {wheel.name}: {wheel.stat().st_size:,} bytes")
    if "-cp311-abi3-" not in wheel.name:
        raise Failure(f"the wheel is {wheel.name}")
    env.pip_install(str(wheel), path=env.place.bare)
    env.check(*ALL)
    check_packer_in_later_pythons(env)
    env.run("-m", "pip", "uninstall", "-q", "-y", "mind-kernels", path=env.place.bare)
    env.pip_install(str(archive), path=env.place.host)
    env.check(*ALL)


def check_packer_in_later_pythons(env: Environment) -> None:
    """The packer, which needs no torch, in every later Python of this machine, as the stable ABI promises."""
    (library,) = (env.packages / "mind").glob("_packer.abi3.so")
    for name in ("python3.12", "python3.13", "python3.14"):
        if python := shutil.which(name):
            done = subprocess.run([python, "-c", PACKER, library], capture_output=True, text=True)
            if done.returncode == 127:  # a launcher of pyenv that has no such Python
                continue
            if done.returncode or done.stdout.split() != ["0", "1", "0"]:
                raise Failure(f"the packer in {name}: {done.stdout}{done.stderr}")
            print(f"    the packer works in {name}, too")


def required_without_a_compiler(env: Environment) -> None:
    output = env.pip_install(".", path=env.place.bare, fails=True, MIND_KERNELS_BUILD="require")
    expected = "MIND_KERNELS_BUILD=require could not build mind_kernels._cpp: no C++ compiler"
    (line,) = {line.strip() for line in output.splitlines() if expected in line}
    print(f"    {line}")


def switched_off(env: Environment) -> None:
    """A wheel without libraries serves every platform; a compiled one can be told to leave its libraries alone."""
    wheel = build_wheel(env, path=env.place.host, MIND_KERNELS_BUILD="none")
    if not wheel.name.endswith("-py3-none-any.whl"):
        raise Failure(f"the wheel is {wheel.name}")
    env.pip_install(str(wheel), path=env.place.bare)
    env.check()


def disabled_at_run_time(env: Environment) -> None:
    env.pip_install(".", path=env.place.host)
    report = json.loads(env.run("-m", "mind_kernels", "--json", path=env.place.bare, MIND_KERNELS_LIBRARIES="none"))
    if report["backends"]["cpp"]["reason"] != "MIND_KERNELS_LIBRARIES is 'none'":
        raise Failure(f"backend 'cpp' is reported as {report['backends']['cpp']}")


def beside_torch_alone(env: Environment) -> None:
    """torch is all that the losses need: nothing else is installed, and nothing else is imported, quickly."""
    before = packages(env)
    env.pip_install(".", path=env.place.host)
    if packages(env) - before != {"mind-kernels"} or before - packages(env):
        raise Failure(f"pip changed {sorted(packages(env) ^ before)}")
    env.check_report(*ALL, path=env.place.bare)
    env.run("-c", LOSSES, path=env.place.bare)
    seconds = min(float(env.run("-c", IMPORT, path=env.place.bare)) for _ in range(3))
    print(f"    imported {seconds:.3f} s after torch")
    if seconds > IMPORT_SECONDS:
        raise Failure(f"that is more than {IMPORT_SECONDS} s")
    line = subprocess.run(
        [env.folder / "bin/mind", "train"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if line.returncode != 2 or "pip install 'mind-kernels[train]'" not in line.stdout or line.stdout.count("\n") != 1:
        raise Failure(f"mind ended with status {line.returncode} and {line.stdout!r}")


def packages(env: Environment) -> set[str]:
    listed = env.run("-m", "pip", "list", "--format=json", path=env.place.bare)
    return {package["name"] for package in json.loads(listed)}


def with_another_torch(env: Environment, other: str) -> None:
    """The wheel, built against this environment's torch, used beside another one."""
    path = env.place.cuda or env.place.host
    wheel = build_wheel(env, path=path, MIND_KERNELS_BUILD="require")
    target = env.folder / "target"
    env.run("-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel), path=env.place.bare)
    script = (
        "import torch, mind_kernels; from mind_kernels import extension, linear_cross_entropy as f\n"
        "h, w, t = torch.randn(9, 8), torch.randn(50, 8), torch.arange(9)\n"
        "print(torch.__version__, mind_kernels.__file__, 'cuda:', extension.unavailable('cuda') or 'loaded')\n"
        "for k in ({}, {'gradient_threshold': 2**-8}):\n"
        "    torch.testing.assert_close(f(h, w, t, backend='cpp', **k), f(h, w, t, backend='reference', **k))"
    )
    done = subprocess.run(
        [other, "-c", script],
        cwd=env.folder,
        env=os.environ | {"PYTHONPATH": str(target)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print("   ", wheel.name, "under torch", done.stdout.strip())
    if done.returncode != 0:
        raise Failure(f"{other} ended with status {done.returncode}")


def build_wheel(env: Environment, path: Path, **variables: str) -> Path:
    command = ["-m", "pip", "wheel", "-q", "--no-deps", "-w", str(env.folder / "dist"), "."]
    env.run(*command, path=path, cwd=env.place.source, **variables)
    (wheel,) = (env.folder / "dist").glob("*.whl")
    return wheel


CASES: dict[str, Callable[[Environment], None]] = {
    "a: a C++ compiler and no nvcc": with_a_compiler,
    "b: both, for CUDA": with_both,
    "c: neither": with_neither,
    "d: --no-build-isolation": without_isolation,
    "e: editable": editable,
    "f: make dist: the wheel, the sdist": from_the_sdist,
    "g: MIND_KERNELS_BUILD=require without a compiler": required_without_a_compiler,
    "h: MIND_KERNELS_BUILD=none": switched_off,
    "i: MIND_KERNELS_LIBRARIES=none": disabled_at_run_time,
    "k: nvcc and a CPU build of torch": nvcc_and_a_cpu_build_of_torch,
    "l: torch alone": beside_torch_alone,
}
QUICK = "acgl"


def closing_line(output: str) -> str:
    (line,) = {line.strip() for line in output.splitlines() if line.strip().startswith("mind-kernels: built")}
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick",
        dest="only",
        action="store_const",
        const=QUICK,
        help=f"cases {QUICK} alone, with the objects of build/",
    )
    parser.add_argument("--only", metavar="LETTERS", help="these cases alone")
    parser.add_argument("--torch", metavar="PYTHON", help="of an environment with another torch: tries the wheel there")
    parser.add_argument("--keep", action="store_true", help="leave the folder of environments and builds")
    options = parser.parse_args()
    cases = {name: case for name, case in CASES.items() if name[0] in (options.only or name)}
    if options.torch and "j" in (options.only or "j"):
        cases["j: the wheel beside another torch"] = lambda env: with_another_torch(env, options.torch)
    folder = Path(tempfile.mkdtemp(prefix="install_matrix_"))
    failed = []
    try:
        place = workplace(folder, with_objects=options.only == QUICK)
        for name, case in cases.items():
            print(name, flush=True)
            environment = fresh_environment(place, name[0], torch_alone=case is beside_torch_alone)
            try:
                case(environment)
            except Failure as error:
                failed.append(name)
                print(f"    FAILED: {error}", flush=True)
            if not options.keep:
                shutil.rmtree(environment.folder)
    finally:
        print(f"left in {folder}") if options.keep else shutil.rmtree(folder)
    print(*failed, f"install_matrix: {len(cases) - len(failed)} passed, {len(failed)} failed", sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
