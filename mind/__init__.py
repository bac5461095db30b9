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

`train` does what the command `mind train` does, `MindConfig` holds its options, `METHODS` maps names to training
methods, and `RunFolder` reads the files of a run. All of them need the extra `train` (pip install
'mind-kernels[train]'). They are imported at their first use, which raises a MindError if the extra is not installed.
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


if not TYPE_CHECKING:  # a type checker would take this function to mean that every name exists

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from mind.requirements import application_packages

        with application_packages():
            return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
