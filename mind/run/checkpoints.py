"""What a checkpoint must be to go on from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from mind.display import describe, listed, one_line
from mind.errors import MindError, require


@contextmanager
def usable(checkpoint: str | Path | None) -> Iterator[None]:
    """Inside, a checkpoint is read: whatever is wrong with its files becomes a MindError that names it."""
    remedy = "without this folder --resume goes on from the checkpoint before it"
    try:
        yield
    except MindError as error:
        raise MindError(f"{checkpoint}: {error}; {remedy}") from None
    except Exception as error:  # whatever torch, safetensors and the Trainer raise for a file that is damaged
        raise MindError(f"{checkpoint}: cannot be read: {one_line(describe(error), 400)}; {remedy}") from error


def check_trainer_state(checkpoint: Path) -> None:
    """Reads what the Trainer itself reads too late to say more than what Python says, and believes.

    Raises MindError if it is not the state after a step.
    """
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    for name in ("global_step", "train_batch_size"):
        value = getattr(state, name)
        require(type(value) is int and value > 0, f"{TRAINER_STATE_NAME}: {name} is {value!r:.40}: expected at least 1")


def check_loaded(model: nn.Module, loaded: Any) -> None:
    """Raises MindError if the weights that were `loaded` into the model are not all of its own.

    What is one tensor with another, such as a tied head, is saved once.
    """
    tensors, missing = model.state_dict(keep_vars=True), set(loaded.missing_keys)
    there = {id(tensor) for name, tensor in tensors.items() if name not in missing}
    lost = [name for name in loaded.missing_keys if id(tensors[name]) not in there]
    for what, names in (("lacks weights", lost), ("has weights that the student has not", loaded.unexpected_keys)):
        require(not names, f"{what}: {listed(names)}")
