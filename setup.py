"""The extension list, and a build that never fails an install for want of a compiler.

MIND_KERNELS_BUILD=auto     build what can be built, say what was not and why (the default; pip shows it with -v)
                   none     build no extension
                   require  a build that fails is an error
"""

import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

MODES = ("auto", "none", "require")
MODE = os.environ.get("MIND_KERNELS_BUILD", "auto")
if MODE not in MODES:
    raise SystemExit(f"MIND_KERNELS_BUILD is {MODE!r}: expected one of {', '.join(MODES)}")

COMPILE_ARGS = ["-O3", "-std=c++17", "-fvisibility=hidden"] if os.name == "posix" else ["/O2", "/std:c++17", "/EHsc"]
EXTENSIONS = [
    Extension("mind._packer", ["csrc/host/packer.cpp"], language="c++", extra_compile_args=COMPILE_ARGS),
]
WITHOUT = {"mind._packer": "best-fit packing uses its Python twin: the same bins, more slowly"}


class BuildExtensions(build_ext):
    def run(self) -> None:
        self.skipped: list[Extension] = []
        try:
            super().run()
        except BaseError as error:  # no compiler for this platform: raised before any extension is tried
            for extension in self.extensions:
                self._skip(extension, error)
        if self.inplace:  # an earlier build's file is of older source: not to be imported any more
            for extension in self.skipped:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)

    def build_extension(self, extension: Extension) -> None:
        try:
            import pybind11  # a build requirement; missing only where build isolation is switched off

            extension.include_dirs.append(pybind11.get_include())
            super().build_extension(extension)
        except (BaseError, CCompilerError, ImportError, OSError) as error:
            self._skip(extension, error)

    def _skip(self, extension: Extension, error: Exception) -> None:
        if MODE == "require":
            raise error
        print(f"mind-kernels: {extension.name} was not built ({error}): {WITHOUT[extension.name]}", flush=True)
        extension.optional = True  # setuptools then does not look for the file
        self.skipped.append(extension)


setup(ext_modules=[] if MODE == "none" else EXTENSIONS, cmdclass={"build_ext": BuildExtensions})
