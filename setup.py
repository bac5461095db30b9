"""The extension list. build_tools compiles it; docs/install.md says what for, and which variables steer it."""

import sys
import sysconfig
from glob import glob
from pathlib import Path

from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).parent))  # an isolated build does not look in this folder

from build_tools.commands import BuildExtensions, BuildPython, MindDistribution
from build_tools.long_description import long_description


def sources(*patterns: str) -> list[str]:
    return sorted(path for pattern in patterns for path in glob(pattern))


# All use Python's limited API, and the first two LibTorch's stable ABI: a wheel is for every Python from 3.11 and every
# torch from 2.11 on.
EXTENSIONS = [
    Extension("mind_kernels._cpp", sources("csrc/*.cpp", "csrc/cpu/*.cpp"), py_limited_api=True),
    Extension("mind_kernels._cuda", sources("csrc/*.cpp", "csrc/cuda/*.cpp", "csrc/cuda/*.cu"), py_limited_api=True),
    Extension("mind._packer", ["csrc/host/packer.cpp"], py_limited_api=True),
]

# A free-threaded Python has no limited API: there nothing is compiled, and the wheel is for that Python.
LIMITED = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"py_limited_api": "cp311"}

setup(
    ext_modules=EXTENSIONS,
    distclass=MindDistribution,
    cmdclass={"build_ext": BuildExtensions, "build_py": BuildPython},
    options={"bdist_wheel": LIMITED},
    long_description=long_description(),
    long_description_content_type="text/markdown",
)
