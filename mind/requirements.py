"""The packages of the application, which the losses alone do without: the extra `train`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mind.errors import MindError

PACKAGES = {
    "accelerate": "accelerate",
    "huggingface_hub": "transformers",
    "jinja2": "jinja2",
    "markupsafe": "jinja2",
    "math_verify": "math-verify",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "openai": "openai",
    "psutil": "psutil",
    "rich": "rich",
    "safetensors": "safetensors",
    "tensorboard": "tensorboard",
    "text_to_num": "text2num",
    "tqdm": "tqdm",
    "transformers": "transformers",
    "tyro": "tyro",
    "yaml": "pyyaml",
}
"""The names that they are imported by -> those that pip installs them by."""


class MissingPackageError(MindError, ImportError):
    """A package of the extra `train` is not installed; the message says how to install it."""


@contextmanager
def application_packages() -> Iterator[None]:
    """Inside, the import of a package of the extra `train` that is not installed raises MissingPackageError.

    Every other ImportError is a bug, and passes.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        message = f"mind needs the package {PACKAGES[error.name]}: pip install 'mind-kernels[train]'"
        raise MissingPackageError(message, name=error.name) from None
