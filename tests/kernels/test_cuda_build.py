"""nvcc compiles every CUDA kernel for GPUs that are not here, without spills, and the library loads without one."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from bench import kernel_resources
from tests import cuda_emulator

SOURCES = cuda_emulator.SOURCES
NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc, of the CUDA toolkit, is not on the PATH")
needs_filter = pytest.mark.skipif(shutil.which("c++filt") is None, reason="c++filt, of binutils, is not on the PATH")

PTXAS = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN4mind4cuda6kernelIfLb1EEEvi' for 'sm_80'
ptxas info    : Function properties for _ZN4mind4cuda6kernelIfLb1EEEvi
    {} bytes stack frame, {} bytes spill stores, {} bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 644 bytes smem, 464 bytes cmem[0]
ptxas info    : Compile time = 1.000 ms
"""
# In a process of its own: a build of torch without CUDA lacks one function of the library, which is given to it here.
LOAD = """
import ctypes, importlib.machinery, importlib.util, sys
import torch
stream, library = sys.argv[1:]
if torch.version.cuda is None:
    ctypes.CDLL(stream, mode=ctypes.RTLD_GLOBAL)
loader = importlib.machinery.ExtensionFileLoader("_cuda", library)
loader.exec_module(importlib.util.module_from_spec(importlib.util.spec_from_file_location("_cuda", loader=loader)))
operators = torch.ops.mind_kernels_cuda
rows = "row_kernel_", "count", "entries", "background", "shard_sums", "shard_gradient_", "shard_count", "gather_rows"
for name in (*rows, "pair_divergences", "mixture_divergences"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"mind_kernels_cuda::{name}", "CUDA"), name
try:
    pairs = torch.zeros(1, 2, 2)
    operators.pair_divergences(torch.zeros(1, 2, 3), pairs, torch.ones(1, 2) > 0, pairs.clone(), None)
except NotImplementedError as error:
    assert "with arguments from the 'CPU' backend" in str(error)
else:
    raise AssertionError("CPU tensors were taken")
"""


@pytest.fixture(scope="module")
def resources():
    tool = SOURCES.parents[1] / "build_tools" / "cuda_resources.py"
    spec = importlib.util.spec_from_file_location("cuda_resources", tool)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compiled(resources, tmp_path_factory):
    """The usage of all kernels, and the folder of their object files and PTX."""
    folder = tmp_path_factory.mktemp("cuda_objects")
    return resources.measure(resources.sources(), nvcc=NVCC, objects=folder), folder


@pytest.mark.nightly
@needs_nvcc
@needs_filter
def test_no_kernel_spills(resources, compiled):
    usages, _ = compiled
    print(resources.table(usages))
    assert [usage for usage in usages if usage.fault] == []
    for architecture in resources.ARCHITECTURES:
        files = {usage.file for usage in usages if usage.architecture == architecture}
        assert files == {file.name for file in resources.sources()} - {"launch.cu"}, architecture  # it has no kernel


@pytest.mark.nightly
@needs_nvcc
@needs_filter
def test_the_table_of_the_repository_is_that_of_these_kernels(compiled):
    usages, folder = compiled
    version = kernel_resources.nvcc_version()
    found = list(kernel_resources.of_cuda(usages, kernel_resources.launch_bounds(folder), version))
    stored = [row for row in kernel_resources.read() if row["compiler"].startswith("nvcc")]
    if {row["compiler"] for row in stored} == {version}:  # another compiler's registers are another table
        assert found == stored, "stale: python -m bench.kernel_resources --output bench/results --overwrite"
    else:
        assert [(row["kernel"], row["sm"]) for row in found] == [(row["kernel"], row["sm"]) for row in stored]


@pytest.mark.nightly
@needs_nvcc
@needs_filter
@pytest.mark.skipif(bool(cuda_emulator.UNAVAILABLE), reason=cuda_emulator.UNAVAILABLE)
def test_the_library_loads_and_registers_its_operators(compiled, tmp_path):
    flags = [*cuda_emulator.OPERATOR_FLAGS, "-DPy_LIMITED_API=0x030B0000", "-isystem", sysconfig.get_path("include")]
    objects = [cuda_emulator.compile_one(file, flags, tmp_path) for file in cuda_emulator.HOST_SOURCES]
    library = tmp_path / "_cuda.abi3.so"
    cuda_emulator.run(
        [
            NVCC,
            "-shared",
            *map(str, [*objects, *compiled[1].glob("*.o")]),
            "-o",
            str(library),
            f"-L{Path(torch.__file__).parent / 'lib'}",
            "-Xlinker",
            "--no-as-needed",
            "-ltorch",
            "-Xlinker",
            "--as-needed",
            "-ltorch_cpu",
            "-lc10",
        ]
    )
    stream = tmp_path / "stream.c"
    stream.write_text("int aoti_torch_get_current_cuda_stream(int d, void** out) { (void)d; *out = 0; return 0; }")
    cuda_emulator.run([cuda_emulator.COMPILER, "-x", "c", "-shared", "-fPIC", str(stream), "-o", f"{stream}.so"])
    result = subprocess.run([sys.executable, "-c", LOAD, f"{stream}.so", str(library)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.nightly
@needs_nvcc
@needs_filter
@pytest.mark.parametrize(
    "name, kernels, count, stores",
    [
        ("rows", r"row_kernel", 12, True),
        ("count", r"\dcount_kernel", 12, False),
        ("count", r"shard_count_kernel", 6, False),
        ("shards", r"shard_sums_kernel", 12, False),
        ("shards", r"shard_gradient_kernel", 12, True),
        ("entries", r"entries_kernel", 6, False),
        ("background", r"background_kernel", 6, False),
        ("gather", r"gather_kernel\w*Lb1E", 3, True),
        ("groups", r"gradient_kernelILi4E", 1, True),
        ("groups", r"normalizer_kernelILi4E", 1, False),
    ],
)
def test_accesses_of_16_bytes(name, kernels, count, stores, compiled):
    """The compiler may take a vector apart, which costs bandwidth and no test sees: PTX shows it."""
    ptx = (compiled[1] / f"{name}.compute_90a.ptx").read_text()
    found = [part for part in ptx.split(".entry ")[1:] if re.search(kernels, part.split("(")[0])]
    assert len(found) == count
    for kernel in found:
        assert re.search(r"ld\.global\S*\.v4", kernel)
        assert bool(re.search(r"st\.global\S*\.v4", kernel)) == stores


@needs_filter
@pytest.mark.parametrize("numbers, fault", [((0, 0, 0), ""), ((8, 4, 12), "spills"), ((104, 0, 0), "uses the stack")])
def test_faults_are_seen(resources, numbers, fault):
    clean, usage = resources.parse("kernel.cu", PTXAS.format(0, 0, 0) + PTXAS.format(*numbers).replace("80'", "90a'"))
    assert (usage.kernel, usage.architecture) == ("kernel<float, true>", "sm_90a")
    assert (usage.registers, usage.shared_bytes, usage.spill_bytes) == (40, 644, sum(numbers[1:]))
    assert usage.fault == fault and not clean.fault
    assert ("sm_90a" in resources.table([clean, usage]).splitlines()[-1]) == bool(fault)


@needs_nvcc
def test_a_source_that_does_not_compile_is_shown(resources, tmp_path):
    (tmp_path / "broken.cu").write_text("__global__ void kernel() { undeclared(); }")
    with pytest.raises(resources.CompileError, match=r"nvcc.*broken.cu(.|\n)*undeclared"):
        resources.measure([tmp_path / "broken.cu"], ["sm_90a"], NVCC)
