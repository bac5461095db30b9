"""Recognizes an earlier evaluation by digests, so that all runs with the same untrained student can share one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mind.asking import AskingConfig
from mind.data.questions import question_row
from mind.errors import require
from mind.files import replacing_folder
from mind.provenance import text_digest
from mind.records import Question, TokenizedQuestion
from mind.run_folder import RunFolder
from mind.student.fingerprint import fingerprint, settings
from mind.student.model import causal_lm
from mind.typed_json import read_json

HELDOUT = "held-out"
LIMIT = "evaluation.max_new_tokens"


def evaluation_digests(
    model: Any,
    files: Mapping[str, Sequence[Question]],
    prompts: Mapping[str, Sequence[Sequence[int]]],
    config: AskingConfig,
    heldout: Sequence[TokenizedQuestion],
    perspectives: Sequence[str],
) -> dict[str, str]:
    """The digests (SHA-256), by name, of everything that the results of an evaluation by greedy generation depend on.

    Args:
        model: the student; adapters are left out, since new ones change nothing.
        files: the questions that are asked, by label.
        prompts: the token ids of their prompts, which include the effect of templates and of words before questions.
        config: the options.
        heldout: the questions whose NLL is measured, if any.
        perspectives: the names of their rationales.

    Returns:
        "student", "evaluation.max_new_tokens", "evaluation LABEL" for each of `files`, and "held-out".
    """
    student = causal_lm(model)
    weights = {
        name.replace(".base_layer.", "."): weight for name, weight in student.named_parameters() if ".lora_" not in name
    }
    told = [
        [list(one.prompt), sorted((perspectives[k], list(ids)) for k, ids in one.rationales.items()), list(one.suffix)]
        for one in heldout
    ]
    return {
        "student": _digest([fingerprint(weights), settings(student)]),
        LIMIT: _digest([config.max_new_tokens]),
        **{
            f"evaluation {label}": _digest([[question_row(one) for one in some], list(map(list, prompts[label]))])
            for label, some in files.items()
        },
        HELDOUT: _digest(told),
    }


def _digest(values: Iterable[Any]) -> str:
    return text_digest(json.dumps(list(values)))


@dataclass(frozen=True)
class FormerEvaluation:
    """An evaluation that `mind evaluate --output FILE` wrote, or a run before its training."""

    place: str
    result: Mapping[str, Any]
    responses: Path
    """The folder of the responses."""

    @staticmethod
    def read(place: str) -> FormerEvaluation:
        """Reads it from the file or the run folder `place`; raises MindError if that has no evaluation with digests."""
        path, expected = Path(place), "expected the FILE of `mind evaluate --output FILE`, or the folder of a run"
        if path.is_dir():
            folder = RunFolder(path)
            result, responses = folder.read_evaluation()["before"], folder.responses("before")
        else:
            result, responses = read_json(path), path.with_suffix(".responses")
        usable = isinstance(result, dict) and isinstance(result.get("digests"), dict)
        require(usable, f"evaluation.before {place}: holds no evaluation that can be known again: {expected}")
        return FormerEvaluation(place, result, responses)

    def check(self, digests: Mapping[str, str]) -> None:
        """Raises MindError for the first digest that differs from its own; held-out rationales may differ."""
        for name, digest in digests.items():
            if name == HELDOUT:
                continue
            known = self.result["digests"].get(name)
            require(known is not None, f"evaluation.before {self.place}: has no {name}")
            what = "another value of" if name == LIMIT else "another" if name == "student" else "other questions as"
            require(
                known == digest,
                f"evaluation.before {self.place}: is of {what} {name}: name one of the same, or leave it out",
            )
            if label := name.removeprefix("evaluation ") if name.startswith("evaluation ") else "":
                file = self.responses / f"{label}.jsonl"
                require(file.is_file(), f"evaluation.before {self.place}: its responses {file} are missing")

    def heldout(self, digests: Mapping[str, str]) -> Mapping[str, Any] | None:
        """Its held-out NLL; None if it has none, or one of other rationales."""
        same = self.result["digests"].get(HELDOUT) == digests[HELDOUT]
        return self.result.get("heldout") if same else None

    def give(self, labels: Iterable[str], responses: Path) -> dict[str, Any]:
        """Its accuracies by label; copies the responses into the folder `responses`, replacing existing ones."""
        labels = list(labels)
        responses.parent.mkdir(parents=True, exist_ok=True)
        with replacing_folder(responses) as partial:
            for label in labels:
                shutil.copyfile(self.responses / f"{label}.jsonl", partial / f"{label}.jsonl")
        return {label: self.result["files"][label] for label in labels}
