"""Names the files in the folder of a run, and reads and writes them."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mind.errors import MindError, require
from mind.files import (
    check_new_folder,
    json_rows,
    lock,
    naming,
    parse_object,
    read_object,
    replacing,
    replacing_file,
    replacing_folder,
    require_file,
    saving,
)
from mind.typed_json import read_json, save_json, write_json

if TYPE_CHECKING:
    from torch import nn

METHOD_STATE = "calibration.pt"
"""The state of the run's method, named after MIND's calibrator. The last file written of a checkpoint."""
PROGRESS = "progress.json"
"""The trainer's own state: the metrics since the last line, and the time spent so far."""
MARK = ".seen"
"""A file that a launch of several processes creates for a moment (mind/run/owner.py)."""
_CONFIGURED = {"output", "student", "data", "train"}
"""Keys that the configuration of every run has; the config.json of a model does not."""
_OURS = {"written_by": "mind train"}
"""An entry in the header of the networks that a run writes, to distinguish them from other files of that kind."""


@dataclass(frozen=True, init=False)
class RunFolder(os.PathLike[str]):
    """The folder of one run, which need not exist yet. `os.fspath` and `Path` accept it as a path."""

    path: Path

    def __init__(self, path: str | os.PathLike[str]) -> None:
        object.__setattr__(self, "path", Path(path))

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> Path:
        """The configuration, as JSON."""
        return self.path / "config.json"

    @property
    def inputs(self) -> Path:
        """Digests of what the run reads: a resumed run must read the same (mind/run/resume.py)."""
        return self.path / "inputs.json"

    @property
    def starts(self) -> Path:
        """A list with one object per start of the run: "date" (UTC), "command" and "versions" of packages."""
        return self.path / "starts.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per line: "phase" is "warmup" (before the student trains) or "train", which has a "step".
        "work", if present, counts tokens by kind (mind/run/work.py)."""
        return self.path / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        """{"before": ..., "after": ...}: held-out NLL and accuracy around training, null if not measured yet."""
        return self.path / "evaluation.json"

    @property
    def status(self) -> Path:
        """Times, sizes and memory peaks; only a finished run has it."""
        return self.path / "status.json"

    @property
    def report(self) -> Path:
        """The report, one self-contained page."""
        return self.path / "report.html"

    @property
    def student(self) -> Path:
        """The trained model and its tokenizer, as transformers' from_pretrained loads them."""
        return self.path / "student"

    @property
    def adapter(self) -> Path:
        """If the run uses LoRA, the trained adapter alone, as peft's from_pretrained loads it."""
        return self.path / "adapter"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def latent(self) -> Path:
        """The output of `mind latent --output RUN/latent`, which the report shows."""
        return self.path / "latent"

    @property
    def begun(self) -> tuple[int, int] | None:
        """A value that identifies the run that began here and differs for each run; None without a run."""
        if not self._holds_run():
            return None
        found = self.config.stat()
        return found.st_ino, found.st_mtime_ns

    @property
    def finished(self) -> bool:
        """Whether the run is finished: its student is saved and its record complete."""
        return self.status.exists() and self.student.exists()  # older versions saved the student last

    @property
    def stages(self) -> list[RunFolder]:
        """The earlier stages that have begun, in order; each is a run."""
        named = ((re.fullmatch(r"([0-9]+)-.+", path.name), path) for path in self.path.glob("stages/*"))
        return [RunFolder(path) for _, path in sorted((int(name[1]), path) for name, path in named if name)]

    def stage(self, number: int, name: str) -> RunFolder:
        """The folder of an earlier stage; `number` counts from 1."""
        return RunFolder(self.path / "stages" / f"{number}-{name}")

    @property
    def knowledge(self) -> Path:
        """The knowledge base of method nesycd: the training questions that its student got wrong, with their rules."""
        return self.path / "knowledge.jsonl"

    def responses(self, when: Literal["before", "after"]) -> Path:
        """The folder of the responses behind the accuracies, one JSONL file per evaluation file."""
        return self.path / "responses" / when

    def read_responses(self, when: Literal["before", "after"]) -> dict[str, list[dict[str, Any]]]:
        """The rows of these files by the label of their evaluation file; empty if there are none."""
        files = sorted(self.responses(when).glob("*.jsonl"))
        return {file.stem: [row for _, row in json_rows(file)] for file in files}

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after `step` optimizer steps, named as transformers names it."""
        return self.path / f"checkpoint-{step}"

    def checkpoints(self) -> dict[int, Path]:
        """The complete checkpoints by step, in order, without any that a crash left unfinished."""
        return {step: folder for step, folder in self._all_checkpoints() if (folder / METHOD_STATE).exists()}

    def _all_checkpoints(self) -> list[tuple[int, Path]]:
        """Also unfinished ones, but no copies under another name, such as checkpoint-best."""
        named = ((re.fullmatch(r"checkpoint-([0-9]+)", path.name), path) for path in self.path.glob("checkpoint-*"))
        return sorted((int(name[1]), path) for name, path in named if name is not None)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block, the folder (made if missing) belongs to this process alone; a kill frees it too.

        Raises MindError if another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path, os.O_RDONLY)
        try:
            lock(folder, f"{self.path}: another process trains there now; name another --output")
            yield
        finally:
            os.close(folder)

    def start(self, config: Any, inputs: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Makes the folder and writes `inputs` (plain JSON) and then the configuration (a dataclass), which marks the
        folder as a run's. With `overwrite`, an existing run is removed first.

        Raises MindError as `check_free`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.check_free(overwrite=overwrite)
        self._remove_run()
        self.write_inputs(inputs)
        save_json(config, self.config)

    def written(self) -> list[Path]:
        """Everything that a run writes, which `overwrite` removes; the configuration is last, so that after a kill the
        folder still counts as a run."""
        names = (self.inputs, self.starts, self.metrics, self.evaluation, self.status, self.report)
        names += (self.student, self.adapter, self.tensorboard, self.path / "responses", self.path / "stages")
        names += (self.path / METHOD_STATE, self.knowledge, self.latent)
        checkpoints = (folder for _, folder in self._all_checkpoints())
        networks = filter(_is_network, self.path.glob("*.safetensors"))
        return [*names, *checkpoints, *networks, self.config]

    def weights(self) -> list[Path]:
        """The large files of a run, which its record does not need: checkpoints (even unfinished ones), the adapter
        and, last, the student."""
        large = [*(folder for _, folder in self._all_checkpoints()), self.adapter, self.student]
        return [folder for folder in large if folder.exists()]

    def _remove_run(self) -> None:
        for path in self.written():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def write_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Replaces inputs.json in one step."""
        write_json(inputs, self.inputs)

    def read_inputs(self) -> dict[str, Any]:
        """The content of inputs.json; empty for a run of an older version."""
        inputs = read_object(self.inputs) if os.path.lexists(self.inputs) else {}
        for name, entry in inputs.items():
            known = isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
            require(known, f'{self.inputs}: {name}: expected an object with "sha256", a text')
        return inputs

    def append_start(self, start: Mapping[str, Any]) -> None:
        """Adds a start to the known ones, in one step."""
        write_json([*self.read_starts(), start], self.starts)

    def read_starts(self) -> list[dict[str, Any]]:
        """The starts so far, in order; empty for a run of an older version."""
        starts = read_json(self.starts) if os.path.lexists(self.starts) else []
        known = isinstance(starts, list) and all(isinstance(start, dict) for start in starts)
        require(known, f"{self.starts}: expected a JSON list of objects")
        return starts

    def begin_metrics(self, after: int = 0) -> None:
        """Removes the metrics of steps after step `after`, which come again; with after = 0, all metrics."""
        kept = list(self._metrics_until(after)) if after else []
        with replacing(self.metrics) as file:
            file.writelines(kept)

    def check_free(self, *, overwrite: bool = False) -> None:
        """Raises MindError if the path holds anything other than an empty folder or, with `overwrite`, a run; also if
        no folder can be made or written to there."""
        check_new_folder(self.path)
        if self._holds_run():
            remedy = "name another --output, continue it with --resume, or write over it with --overwrite"
            require(overwrite, f"{self.path}: already holds a run; {remedy}")
        elif self.path.exists():
            of_a_killed_start = (self.inputs.name, ".inputs.json.partial", ".config.json.partial", MARK)
            others = [path for path in self.path.iterdir() if path.name not in of_a_killed_start]
            require(not others, f"{self.path}: exists and is not an empty folder; name another --output")

    def _holds_run(self) -> bool:
        """Whether config.json exists and belongs to a run."""
        try:
            return self.read_config().keys() >= _CONFIGURED
        except MindError:
            return False

    def check_resumable(self) -> None:
        """Raises MindError if the folder holds no run."""
        require(self.config.exists(), f"{self.path}: there is no run to resume ({self.config.name} is missing)")

    def way_back(self) -> str:
        """Says from where a stopped run continues, for its message."""
        for folder in (self, *reversed(self.stages)):
            stage = "" if folder is self else f" of stage {folder.path.name.partition('-')[2]}"
            if steps := folder.checkpoints():
                return f"--resume goes on from step {max(steps)}{stage}, the last one saved"
            if stage and folder.finished:
                return f"--resume goes on from the end{stage}"
        return "no step is saved yet, so --resume starts from the beginning"

    def read_config(self) -> dict[str, Any]:
        """The configuration as plain JSON; `mind.methods.load_run_config` gives it its types. Raises MindError."""
        return read_object(self.config)

    def append_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds one line per row, in one write."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with naming(self.metrics), self.metrics.open("a") as file:
            file.write(text)

    def _metrics_until(self, last_step: int) -> Iterator[str]:
        for _, row in metric_rows(self.metrics):
            if row is not None and (row["phase"] != "train" or row["step"] <= last_step):
                yield json.dumps(row) + "\n"

    def read_evaluation(self) -> dict[str, Any]:
        """{"before": ..., "after": ...}; each is None if it was not measured."""
        nothing = {"before": None, "after": None}
        return nothing | (read_object(self.evaluation) if os.path.lexists(self.evaluation) else {})

    def write_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Replaces evaluation.json in one step."""
        write_json(evaluation, self.evaluation)

    def take_evaluation(self, other: RunFolder, when: Literal["before", "after"]) -> None:
        """Copies the evaluation of another run, with its responses, as the evaluation of this run before training."""
        if (responses := other.responses(when)).is_dir():
            self.responses("before").parent.mkdir(exist_ok=True)
            with replacing_folder(self.responses("before")) as partial:
                shutil.copytree(responses, partial, dirs_exist_ok=True)
        self.write_evaluation(self.read_evaluation() | {"before": other.read_evaluation()[when]})

    def read_status(self) -> dict[str, Any]:
        """The content of status.json; empty for an unfinished run."""
        return read_object(self.status) if os.path.lexists(self.status) else {}

    def reopen(self, config: Any, inputs: Mapping[str, Any]) -> None:
        """Continues a finished run with a configuration of more steps, and with the matching `inputs`.

        Until the new configuration is written, the inputs match the old one too: a kill may come between.
        """
        self.status.unlink(missing_ok=True)
        self.write_evaluation(self.read_evaluation() | {"after": None})
        former = self.read_inputs().get("options", inputs["options"])
        self.write_inputs({**inputs, "options": {**inputs["options"], "former": former["sha256"]}})
        save_json(config, self.config)

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Replaces status.json in one step."""
        write_json(status, self.status)

    def write_progress(self, checkpoint: Path, progress: Mapping[str, Any]) -> None:
        """Writes the trainer's own state into a checkpoint; plain JSON."""
        write_json(progress, checkpoint / PROGRESS)

    def read_progress(self, checkpoint: Path) -> dict[str, Any]:
        """The result of `write_progress`; empty for a checkpoint of an older version."""
        file = checkpoint / PROGRESS
        return read_object(file) if os.path.lexists(file) else {}

    def save_method(
        self, state: Mapping[str, Any], networks: Mapping[str, nn.Module], checkpoint: Path | None = None
    ) -> None:
        """Writes what the method needs to go on, into a checkpoint or, if that is None, beside the trained student.

        These are the weights of each network as NAME.safetensors and then, in one step, `state` (anything that
        torch.load reads with weights_only=True), which marks a checkpoint as complete.
        """
        import torch
        from safetensors.torch import save

        folder = self.path if checkpoint is None else checkpoint
        for name, network in networks.items():
            weights = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
            file = folder / f"{name}.safetensors"
            with saving(file), replacing_file(file) as partial:
                partial.write_bytes(save(weights, _OURS))
        with saving(folder / METHOD_STATE), replacing_file(folder / METHOD_STATE) as partial:
            torch.save(dict(state), partial)

    @staticmethod
    def read_method(checkpoint: Path) -> dict[str, Any]:
        """The `state` that `save_method` wrote into a complete checkpoint, with its tensors on the CPU."""
        import torch

        return torch.load(checkpoint / METHOD_STATE, map_location="cpu", weights_only=True)


def metric_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The lines of a metrics.jsonl with their numbers, without blank ones; None for the last if a kill cut it short.

    Raises a MindError with the line for any other line that is not a JSON object with a phase and, in training, a step.
    """
    lines = require_file(path).read_bytes().split(b"\n")
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = parse_object(where, text)
        except MindError:
            if number < len(lines):
                raise
            yield number, None
            return
        phase, step = row.get("phase"), row.get("step")
        require(phase in ("warmup", "train"), f'{where}: expected an object with "phase" "warmup" or "train"')
        counted = isinstance(step, int | float) and math.isfinite(step)
        require(phase == "warmup" or counted, f"{where}: a train line needs a number as its step")
        yield number, row


def _is_network(file: Path) -> bool:
    """Whether `save_method` wrote this file of weights."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return False
    try:
        with safe_open(file, framework="numpy") as weights:
            return (weights.metadata() or {}).items() >= _OURS.items()
    except (SafetensorError, OSError):
        return False
