"""`mind doctor`: shows what this machine has for training and for the losses, what is missing, and how to install it.

It must work if anything is missing, so it imports the rest of the package only when it needs it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mind import processes
from mind.cli.terminal import say
from mind.display import number_of, one_line
from mind.requirements import EXTRAS, PACKAGES

COLUMN = 23
OFFLINE = "HF_HUB_OFFLINE"
KEY = "OPENAI_API_KEY"


def doctor() -> int:
    """Prints the findings; returns exit status 1 if the losses or `mind train` cannot work."""
    say(versions())
    say(f"{platform.system()} {platform.machine()}, {processes.processors()} processors for this process")
    trains = _application()
    _extras()
    computes = _losses()
    _environment()
    return 0 if trains and computes else 1


def versions() -> str:
    """The versions that a bug report should contain."""
    names = ("torch", "transformers")
    found = [f"Python {platform.python_version()}", *(f"{name} {_version(name)}" for name in names)]
    return ", ".join([f"mind {_version('mind-kernels')}", *found])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _application() -> bool:
    """Reports on the packages of the extra `train`; returns whether they are installed."""
    missing = sorted({package for name, package in PACKAGES.items() if not _found(name)})
    _title("the command mind")
    if missing:
        _line("not complete", f"missing: {', '.join(missing)}")
        _remedy("pip install 'mind-kernels[train]'")
    else:
        _line("complete", "all packages of the extra `train` are installed")
    return not missing


def _extras() -> None:
    _title("extras")
    for name, extra in EXTRAS.items():
        missing = [module for module in extra.modules if not _found(module)]
        _line(name, f"{'no' if missing else 'yes':<5}{extra.purpose}")
        if missing:
            _remedy(extra.remedy or f"pip install 'mind-kernels[{name}]'")


def _losses() -> bool:
    """Reports on the backends of the losses; returns whether there is any."""
    _title("backends of the losses (python -m mind_kernels says more)")
    try:
        import torch

        from mind_kernels import backends
    # a torch that cannot be loaded, such as one for another CUDA version, raises OSError
    except (ImportError, OSError) as error:
        _line("none", f"PyTorch cannot be loaded: {one_line(str(error), 200)}")
        _remedy("pip install torch")
        return False
    for name, found in backends().items():
        _line(name, "yes" if found.available else f"no   {found.reason}")
        if found.remedy:
            _remedy(found.remedy)
    _gpus(torch.cuda)
    return True


def _gpus(cuda: Any) -> None:
    """Lists the GPUs by name. The driver may count GPUs that CUDA cannot use, such as with a driver that is too old."""
    found = cuda.device_count()
    try:
        for index in range(found):
            _line(f"cuda:{index}", cuda.get_device_name(index))
    except (RuntimeError, AssertionError) as error:  # AssertionError: CUDA has fewer than the driver counts
        _line("GPU", f"{number_of(found, 'GPU')} that CUDA cannot use: {one_line(str(error), 200)}")
    else:
        if not cuda.is_available():
            _line("GPU", "PyTorch finds none: everything runs on the CPU")


def _environment() -> None:
    from mind.files import cache_folder

    _title("environment")
    offline = os.environ.get(OFFLINE, "")
    away = offline.upper() in ("1", "ON", "YES", "TRUE")
    online = "a model or data set that is named is downloaded once"
    _line("Hugging Face Hub", f"{OFFLINE}={offline}: nothing is downloaded" if away else online)
    _line("API key of a teacher", f"{KEY} is {'set' if os.environ.get(KEY) else 'not set'}")
    try:
        folder = cache_folder()
        free = shutil.disk_usage(_existing(folder)).free / 2**30
        _line("cache", f"{folder}, {free:,.0f} GiB free")
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home directory
        _line("cache", f"cannot be used: {one_line(str(error), 200)}; name another by MIND_CACHE")


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def _found(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _title(text: str) -> None:
    say(f"\n{text}")


def _line(name: str, text: str) -> None:
    say(f"  {name:<{COLUMN}}{text}")


def _remedy(command: str) -> None:
    say(f"{'':<{COLUMN + 7}}to get it: {command}")
