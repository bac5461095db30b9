"""How each library is compiled and linked."""

from __future__ import annotations

import os
import shlex
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import architectures, toolchain
from .incremental import Library, Translation
from .settings import CPP, CUDA, MODES, PACKER, NotBuilt, mode_name

# One library serves every Python from 3.11 on, and those of operators every torch from 2.11 on.
LIMITED_API = "-DPy_LIMITED_API=0x030B0000"
STABLE = ("-DTORCH_TARGET_VERSION=0x020b000000000000", LIMITED_API)
SUFFIX = ".abi3.so"

# A host compiler's: no -march=native, since a wheel goes elsewhere. Contraction is gcc's default and not clang's.
COMMON = ("-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi")
# Extra flags of the CPU library for each kind of build; all but the first are for developers and never installed.
VARIANTS = {
    "release": ("-O3",),
    "debug": ("-O0", "-g", "-D_GLIBCXX_ASSERTIONS"),
    "coverage": ("-O1", "-g", "--coverage", "-fprofile-update=atomic"),
    "tsan": ("-O1", "-g", "-fsanitize=thread"),
    "asan": (
        "-O1",
        "-g",
        "-fno-omit-frame-pointer",
        "-D_GLIBCXX_ASSERTIONS",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ),
}
# The kernels are compiled once for each; csrc/cpu/dispatch.cpp chooses one when the library is loaded.
CAPABILITIES = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"),
}


@dataclass(frozen=True)
class Recipe:
    library: Library
    facts: dict[str, Any] = field(default_factory=dict)  # for the record of the build


def recipe(module: str, sources: list[str], variant: str = "release", namespace: str = "mind_kernels") -> Recipe:
    """Raises NotBuilt where a tool or header that the library needs is missing."""
    if module == CPP:
        return _cpp(sources, variant, namespace)
    return _cuda(sources, namespace) if module == CUDA else _packer(sources)


def capabilities(machine: str) -> dict[str, tuple[str, ...]]:
    """The kernels' instruction sets, with their flags, for a compiler's target."""
    return CAPABILITIES if machine.startswith("x86_64") else {"baseline": ()}


def _cpp(sources: list[str], variant: str, namespace: str) -> Recipe:
    compiler, torch = toolchain.find_compiler(), toolchain.find_torch()
    sets = capabilities(compiler.machine)
    flags = ("-std=c++20", *VARIANTS[variant], *COMMON, *STABLE, *_cxxflags())
    command, includes = (*compiler.command, *flags), _includes(torch)
    dispatch = ("-DMIND_HAS_X86",) if "avx2" in sets else ()
    translations = []
    for source in sources:
        if os.path.basename(source) == "kernels.cpp":
            translations += [
                Translation(source, (*command, f"-DMIND_CAPABILITY={name}", *extra), includes, name)
                for name, extra in sets.items()
            ]
        else:
            extra = (*dispatch, *_registration(source, f"{namespace}_cpp"))
            translations.append(Translation(source, (*command, *extra), includes))
    library = Library(
        CPP,
        tuple(translations),
        (*command, *_shared()),
        (*_torch_libraries(torch), *_ldflags()),
        (compiler.version, torch.version, sys.version),
    )
    return Recipe(library, {"capabilities": list(sets), "flags": list(flags), "torch_headers": torch.version})


def _packer(sources: list[str]) -> Recipe:
    compiler = toolchain.find_compiler()
    flags = ("-std=c++17", "-O3", *COMMON, LIMITED_API, *_cxxflags())
    command, includes = (*compiler.command, *flags), _system(sysconfig.get_path("include"))
    translations = tuple(Translation(source, command, includes) for source in sources)
    library = Library(PACKER, translations, (*command, *_shared()), _ldflags(), (compiler.version, sys.version))
    return Recipe(library, {"flags": list(flags)})


def _cuda(sources: list[str], namespace: str) -> Recipe:
    nvcc = toolchain.find_nvcc()  # first, since it is missing more often than the others
    compiler, torch = toolchain.find_compiler(), toolchain.find_torch()
    if not (torch.cuda or MODES[mode_name()].asks_for_cuda):
        raise NotBuilt(f"torch {torch.version} has no CUDA; MIND_KERNELS_BUILD=cuda builds it all the same")
    names = architectures.architectures(nvcc.codes)
    device_flags = (
        "-std=c++17",
        "-O3",
        "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
        *architectures.gencode(names),
    )
    host_flags = ("-std=c++20", "-O2", *COMMON, *STABLE, "-DUSE_CUDA", *_cxxflags())
    # A compiler behind a launcher, such as "ccache g++", is no host compiler for nvcc: it then takes its default.
    host = ("-ccbin", *compiler.command) if len(compiler.command) == 1 else ()
    device = (nvcc.command, *device_flags, *host)
    threads = ("--threads", os.environ.get("NVCC_THREADS") or "1")
    command = (*compiler.command, *host_flags)
    translations = tuple(
        Translation(source, device, threads)
        if source.endswith(".cu")
        else Translation(source, (*command, *_registration(source, f"{namespace}_cuda")), _includes(torch))
        for source in sources
    )
    # libtorch_cuda.so has the current stream. A CPU build of torch lacks it, and such a build's headers serve too:
    # libtorch.so is named instead, which brings it in if there is one.
    link_with = (
        f"-L{torch.folder / 'lib'}",
        "-Wl,--no-as-needed",
        "-ltorch",
        "-Wl,--as-needed",
        *_torch_libraries(torch),
        f"-L{_cudart_folder(nvcc)}",
        "-lcudart_static",
        "-ldl",
        "-lrt",
        "-lpthread",
        *_ldflags(),
    )
    library = Library(
        CUDA,
        translations,
        (*command, *_shared()),
        link_with,
        (compiler.version, nvcc.version, torch.version, sys.version),
    )
    return Recipe(
        library,
        {"architectures": names, "nvcc": nvcc.version, "torch_headers": torch.version, "flags": list(device_flags)},
    )


def _registration(source: str, namespace: str) -> tuple[str, ...]:
    """For the one source that registers the operators."""
    return (f"-DMIND_NAMESPACE={namespace}",) if os.path.basename(source) == "binding.cpp" else ()


def _cudart_folder(nvcc: toolchain.Nvcc) -> Path:
    for folder in (nvcc.toolkit / "lib64", *sorted(nvcc.toolkit.glob("targets/*/lib")), nvcc.toolkit / "lib"):
        if (folder / "libcudart_static.a").is_file():
            return folder
    raise NotBuilt(f"the CUDA toolkit in {nvcc.toolkit} has no libcudart_static.a")


def _includes(torch: toolchain.Torch) -> tuple[str, ...]:
    include = torch.folder / "include"
    return _system(str(include), str(include / "torch/csrc/api/include"), sysconfig.get_path("include"))


def _system(*folders: str) -> tuple[str, ...]:
    return tuple(word for folder in folders for word in ("-isystem", folder))


def _torch_libraries(torch: toolchain.Torch) -> tuple[str, ...]:
    """By name alone, without a path to look in at run time: they are those of the torch that is imported already."""
    return (f"-L{torch.folder / 'lib'}", "-ltorch_cpu", "-lc10")


def _shared() -> tuple[str, ...]:
    # On macOS Python's own symbols are looked up when the library is loaded.
    return ("-bundle", "-undefined", "dynamic_lookup") if sys.platform == "darwin" else ("-shared",)


def _cxxflags() -> tuple[str, ...]:
    return tuple(shlex.split(os.environ.get("CXXFLAGS", "")))


def _ldflags() -> tuple[str, ...]:
    return tuple(shlex.split(os.environ.get("LDFLAGS", "")))
