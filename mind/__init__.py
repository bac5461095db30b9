"""MIND: capability-aware multi-perspective chain-of-thought distillation (arXiv 2601.03717).

    import mind
    from mind.config import DataConfig, StudentConfig

    config = mind.MindConfig(
        output="runs/mine",
        method="mind",
        student=StudentConfig(model="Qwen/Qwen2.5-0.5B-Instruct"),
        data=DataConfig(train="mine.jsonl", evaluation=("test.jsonl",)),
    )
    folder = mind.train(config)
    folder.read_evaluation()["after"]["heldout"]["nll"]

`train` is what the command `mind train` runs, `MindConfig` its options, `METHODS` the training methods by name and
`RunFolder` what a run leaves behind. They need the extra `train` (pip install 'mind-kernels[train]') and are imported
when they are first used; without the extra that raises a MindError.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mind.config import MindConfig
    from mind.methods import METHODS
    from mind.run.train import train
    from mind.run_folder import RunFolder
    from mind_kernels import __version__ as __version__

_MODULES = {
    "METHODS": "mind.methods",
    "MindConfig": "mind.config",
    "RunFolder": "mind.run_folder",
    "__version__": "mind_kernels",
    "train": "mind.run.train",
}

__all__ = ["METHODS", "MindConfig", "RunFolder", "train"]


if not TYPE_CHECKING:  # which would believe that every name is here

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from mind.requirements import application_packages

        with application_packages():
            return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
