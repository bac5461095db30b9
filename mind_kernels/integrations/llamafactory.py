"""The fused cross-entropy in LLaMA-Factory, by another command for the same YAML file.

    python -m mind_kernels.integrations.llamafactory train run.yaml

It replaces `llamafactory-cli train` for pretraining and supervised finetuning. On several GPUs start it by torchrun,
since processes that LLaMA-Factory starts would not use this module:

    torchrun --nproc-per-node 8 -m mind_kernels.integrations.llamafactory train run.yaml
"""

from __future__ import annotations

import os
import sys
from typing import Any

from llamafactory.extras import misc  # pyright: ignore[reportMissingImports]
from llamafactory.model import loader  # pyright: ignore[reportMissingImports]
from llamafactory.train import tuner  # pyright: ignore[reportMissingImports]

from mind_kernels.integrations.signature import expect
from mind_kernels.integrations.transformers import fuse

_COMMAND = "-m mind_kernels.integrations.llamafactory train"
# Switches of LLaMA-Factory that train in other processes, or with code that is not replaced here.
_OTHER_CODE = ("USE_V1", "USE_RAY", "USE_MCA", "USE_KT")
_OTHER_LOSSES = ("use_asft_loss", "use_dft_loss", "use_eaft_loss")


class _FusedLoading:
    """Replaces init_adapter, which prepares a loaded model for training."""

    def __init__(self, original: Any) -> None:
        self._original = original
        self.models = 0

    def __call__(self, config: Any, model: Any, model_args: Any, finetuning_args: Any, is_trainable: bool) -> Any:
        model = self._original(config, model, model_args, finetuning_args, is_trainable)
        if not is_trainable:
            return model
        others = [name for name in _OTHER_LOSSES if getattr(finetuning_args, name)]
        if finetuning_args.stage not in ("pt", "sft") or others:
            found = ", ".join(others) or f"stage {finetuning_args.stage}"
            raise ValueError(
                f"{found}: another loss than the cross-entropy of the next token, which is all that is fused: use "
                "llamafactory-cli"
            )
        self.models += 1
        return fuse(model)


def main() -> None:
    """Trains, with the command line of `llamafactory-cli` in sys.argv.

    Raises:
        ImportError: LLaMA-Factory is not installed, or its function has other arguments than expected here.
        ValueError: a stage or an option with another loss.
        SystemExit: another command than `train`; processes or code in which this module has no effect.
    """
    if sys.argv[1:2] != ["train"]:
        sys.exit(f"expected: python {_COMMAND} FILE.yaml")
    for name in _OTHER_CODE:
        if misc.is_env_enabled(name):
            sys.exit(f"{name} is set, which trains with other code than what is fused here: use llamafactory-cli")
    processes = max(misc.get_device_count(), 1)
    if (processes > 1 or misc.is_env_enabled("FORCE_TORCHRUN")) and "LOCAL_RANK" not in os.environ:
        sys.exit(f"expected: torchrun --nproc-per-node {processes} {' '.join([_COMMAND, *sys.argv[2:]])}")
    del sys.argv[1]
    loading = install()
    tuner.run_exp()
    if not loading.models:
        sys.exit("LLaMA-Factory trained without the function that is replaced here: the loss was its own")


def install() -> _FusedLoading:
    """Makes LLaMA-Factory fuse the models that it loads for training; raises ImportError as `main` does."""
    names = ("config", "model", "model_args", "finetuning_args", "is_trainable")
    if not isinstance(loader.init_adapter, _FusedLoading):
        expect("llamafactory", loader, "init_adapter", *names)
        loader.init_adapter = _FusedLoading(loader.init_adapter)
    return loader.init_adapter


if __name__ == "__main__":
    main()
