"""Loads vLLM in this process, for teachers and for students that are evaluated."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mind.display import describe
from mind.errors import MindError, MissingError
from mind.hub import send_nothing_unasked


class EngineEndedError(MindError):
    """vLLM's engine, which has a process of its own, is gone, or lacks memory."""

    @classmethod
    def of(cls, error: Exception) -> EngineEndedError:
        """From what vLLM raised."""
        return cls(f"vLLM ended with {describe(error)}")


def engine_package(name: str, extra: str) -> ModuleType:
    """The package, or a module of it; if it cannot be imported, raises a MindError that names the extra with it."""
    send_nothing_unasked()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingError(f"engine {extra} needs {name} ({error}): pip install 'mind-kernels[{extra}]'") from error


def load_engine(vllm: ModuleType, model: str, options: Mapping[str, Any]) -> Any:
    """vLLM's engine for the model, a name or a folder, with these engine arguments.

    Raises MindError if vLLM cannot load the model.
    """
    try:
        return vllm.LLM(model, **options)
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # the second if its process does not start
        names = ", ".join(options) or "none"  # not their values: one may be a token of the Hub
        raise MindError(f"vLLM cannot load {model} with engine options ({names}): {error}") from error
