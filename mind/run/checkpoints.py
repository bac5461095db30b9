"""Writes and reads checkpoints: what they hold, and the checks before training continues from one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer, TrainerState
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from mind import processes
from mind.display import describe, listed, one_line
from mind.errors import MindError, NotFiniteError, require
from mind.files import saving
from mind.finite import not_finite
from mind.methods.method import Method, MethodContext
from mind.run.ending import Budget
from mind.run.metrics import StepMeter
from mind.run.replicated import Replicated
from mind.run.sharded import Sharded
from mind.run_folder import RunFolder


@contextmanager
def usable(checkpoint: str | Path | None) -> Iterator[None]:
    """Inside the block a checkpoint is read: any error in its files becomes a MindError that names it."""
    remedy = "without this folder --resume goes on from the checkpoint before it"
    try:
        yield
    except MindError as error:
        raise MindError(f"{checkpoint}: {error}; {remedy}") from None
    except Exception as error:  # torch, safetensors and the Trainer raise many kinds for a damaged file
        raise MindError(f"{checkpoint}: cannot be read: {one_line(describe(error), 400)}; {remedy}") from error


def check_trainer_state(checkpoint: Path) -> None:
    """Reads the trainer's state to check it: the Trainer itself would read it late, and trust it or fail with Python's
    own message.

    Raises MindError if it is not the state after a step.
    """
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    for name in ("global_step", "train_batch_size"):
        value = getattr(state, name)
        require(type(value) is int and value > 0, f"{TRAINER_STATE_NAME}: {name} is {value!r:.40}: expected at least 1")


def check_loaded(model: nn.Module, loaded: Any) -> None:
    """Raises MindError if the `loaded` weights are not all the weights of the model.

    Of parameters that share one tensor, such as a tied head, a checkpoint holds one.
    """
    tensors, missing = model.state_dict(keep_vars=True), set(loaded.missing_keys)
    there = {id(tensor) for name, tensor in tensors.items() if name not in missing}
    lost = [name for name in loaded.missing_keys if id(tensors[name]) not in there]
    for what, names in (("lacks weights", lost), ("has weights that the student has not", loaded.unexpected_keys)):
        require(not names, f"{what}: {listed(names)}")


class CheckpointedTrainer(Trainer):
    """transformers' Trainer with checkpoints that also hold what a method needs to go on and, if the student is divided
    among processes, the shards of each. It neither saves nor resumes numbers that are not finite."""

    context: MethodContext
    method: Method
    student: Replicated | Sharded
    folder: RunFolder
    meter: StepMeter
    budget: Budget | None
    _seconds_before: dict[str, float]

    def seconds(self) -> dict[str, float]:
        """The time spent so far, by name."""
        raise NotImplementedError

    def forget_optimizer(self) -> None:
        """Frees the optimizer's state, twice the size of the student, since no step comes after this."""
        _plain(self.optimizer).state.clear()

    def _require_finite_state(self, what: str) -> None:
        """Raises a NotFiniteError that begins with `what` if a weight or a number of the optimizer is not finite."""
        trained = {name: p for name, p in self.context.model.named_parameters() if p.requires_grad}
        optimizer = cast(torch.optim.Optimizer, self.optimizer)
        state = {name: optimizer.state.get(p, {}) for name, p in trained.items()}
        networks = {name: dict(network.named_parameters()) for name, network in self.method.networks().items()}
        bad = self.student.first(not_finite({"weights": trained, "optimizer": state, **networks}))
        if bad is not None:
            raise NotFiniteError(f"{what} {bad} is not finite")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the student into a checkpoint. mind.run.finish saves the student of a finished run."""
        if isinstance(self.student, Sharded):
            self.student.save(Path(cast(str, output_dir)), _plain(self.optimizer))
        else:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if isinstance(self.student, Sharded):  # the optimizer's state is saved with the weights
            if self.args.should_save:
                torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_NAME)
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._require_finite_state("after it")
        checkpoint = self.folder.checkpoint(self.state.global_step)
        state = self.method.state_dict()  # raises if it is not finite
        with saving(checkpoint):
            super()._save_checkpoint(model, trial)
        processes.wait()  # each process writes its random state there before the checkpoint is complete
        if self.args.should_save:
            progress = {"meter": self.meter.state_dict(), "seconds": self.seconds()}
            if self.budget is not None:
                progress["spent"] = self.budget.spent
            self.folder.write_progress(checkpoint, progress)
            self.folder.save_method(state, self.method.networks(), checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint = Path(resume_from_checkpoint)
        with usable(checkpoint):
            check_trainer_state(checkpoint)
            if isinstance(self.student, Sharded):
                self.student.load_weights(checkpoint)
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            self.method.load_state_dict(self.folder.read_method(checkpoint))
            progress = self.folder.read_progress(checkpoint)
            if progress:  # older versions did not write it
                self.meter.load_state_dict(progress["meter"])
                self._seconds_before = progress["seconds"]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with usable(checkpoint):
            if isinstance(self.student, Sharded) and checkpoint is not None:
                self.student.load_optimizer(Path(checkpoint), _plain(self.optimizer))
                schedule = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
                cast(Any, self.lr_scheduler).load_state_dict(schedule)
            else:
                super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is not None:
                self._require_finite_state("of its numbers")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with usable(checkpoint):
            super()._load_rng_state(checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raises an error if loaded weights do not match, where the Trainer only warns."""
        check_loaded(self.context.model, load_result)


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer without Accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)
