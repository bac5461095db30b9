"""The extension list. build_tools compiles it; docs/install.md says what for, and which variables steer it."""

import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).parent))  # an isolated build does not look in this folder

from build_tools.commands import BuildExtensions, BuildPython, MindDistribution


def sources(*patterns: str) -> list[str]:
    return sorted(path for pattern in patterns for path in glob(pattern))


# The first two use Python's limited API and LibTorch's stable ABI. pybind11's module does not, so a wheel is for one
# version of Python; it is for every torch from 2.11 on, which matters more: a user changes torch more often.
EXTENSIONS = [
    Extension("mind_kernels._cpp", sources("csrc/*.cpp", "csrc/cpu/*.cpp"), py_limited_api=True),
    Extension("mind_kernels._cuda", sources("csrc/*.cpp", "csrc/cuda/*.cpp", "csrc/cuda/*.cu"), py_limited_api=True),
    Extension("mind._packer", ["csrc/host/packer.cpp"]),
]

setup(
    ext_modules=EXTENSIONS, distclass=MindDistribution, cmdclass={"build_ext": BuildExtensions, "build_py": BuildPython}
)
