"""setuptools' commands: build_ext compiles by `incremental`, and fails only if MIND_KERNELS_BUILD says so."""

from __future__ import annotations

from pathlib import Path

from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, OptionError

from . import incremental, libraries, record, toolchain
from .settings import CPP, CUDA, MODES, NotBuilt, max_jobs, mode_name


class BuildExtensions(build_ext):
    user_options = [
        *build_ext.user_options,
        ("variant=", None, f"one of {', '.join(libraries.VARIANTS)}; another than the first is the CPU library alone"),
        ("namespace=", None, "of the operators, for a library that is loaded beside others (build_tools/hub.py)"),
    ]

    def initialize_options(self) -> None:
        super().initialize_options()
        self.variant = "release"
        self.namespace = "mind_kernels"

    def finalize_options(self) -> None:
        if self.variant not in libraries.VARIANTS:
            raise OptionError(f"--variant is {self.variant!r}: expected one of {', '.join(libraries.VARIANTS)}")
        # pip's editable installs name a temporary folder as the one for objects, through the command "build".
        self.objects = Path(self.build_temp or "build/objects")
        super().finalize_options()

    def run(self) -> None:
        extensions = [e for e in self.extensions if self.variant == "release" or e.name == CPP]
        outcomes = [self._build(extension) for extension in extensions]
        for folder in self._folders():
            record.write(folder / record.FILE, outcomes)
        print(record.line(outcomes), flush=True)
        self._require(outcomes)

    def _build(self, extension: Extension) -> record.Outcome:
        files = [folder / self.get_ext_filename(extension.name) for folder in self._folders()]
        for file in files:  # one for a single version of Python, as 0.1.0 had, which would be imported in its place
            for other in file.parent.glob(f"{file.name.removesuffix(libraries.SUFFIX)}.cpython-*"):
                other.unlink()
        try:
            if extension.name not in MODES[mode_name()].tried:
                raise NotBuilt(f"MIND_KERNELS_BUILD is {mode_name()!r}")
            recipe = libraries.recipe(extension.name, extension.sources, self.variant, self.namespace)
            built = incremental.build(recipe.library, self.objects / self.variant / extension.name, max_jobs())
        except NotBuilt as error:
            for file in files:  # an earlier build's: of older source, not to be packed or imported any more
                file.unlink(missing_ok=True)
            return record.Outcome(extension.name, reason=str(error))
        for file in files:
            incremental.install(built, file)
        return record.Outcome(extension.name, facts=recipe.facts)

    def _require(self, outcomes: list[record.Outcome]) -> None:
        mode = MODES[mode_name()]
        required = {CPP} if self.variant != "release" else set(mode.required)
        if mode.cuda_required_with_nvcc and _has_nvcc():
            required.add(CUDA)
        missing = [
            f"{outcome.module}: {outcome.reason}"
            for outcome in outcomes
            if outcome.reason and outcome.module in required
        ]
        if missing:
            raise CompileError(f"MIND_KERNELS_BUILD={mode_name()} could not build {'; '.join(missing)}")

    def _folders(self) -> list[Path]:
        """Where the libraries go: to be packed, and into the source tree for an editable install."""
        return [Path(self.build_lib), *([Path(".")] if self.inplace else [])]

    def get_ext_filename(self, name: str) -> str:
        return name.replace(".", "/") + libraries.SUFFIX

    def get_outputs(self) -> list[str]:
        names = [self.get_ext_filename(extension.name) for extension in self.extensions] + [record.FILE]
        return [str(path) for name in names if (path := Path(self.build_lib, name)).is_file()]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {path: str(Path(path).relative_to(self.build_lib)) for path in self.get_outputs()}


class BuildPython(build_py):
    def run(self) -> None:
        super().run()
        if not self.distribution.has_ext_modules():  # `build` then leaves build_ext out: it writes the record
            command = self.get_finalized_command("build_ext")
            assert isinstance(command, BuildExtensions)
            command.inplace = command.inplace or self.editable_mode
            self.run_command("build_ext")


class MindDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        """A wheel without any library serves every platform."""
        return mode_name() != "none"


def _has_nvcc() -> bool:
    try:
        return bool(toolchain.nvcc_command())
    except NotBuilt:
        return False
