"""Finds the students of an analysis, experts and null experts, in the folders of their runs, and checks that they
match."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from mind.config import MindConfig, StudentConfig, flat
from mind.data.questions import asked_in, load_questions, question_row
from mind.display import listed, number_of
from mind.errors import MindError, require
from mind.latent.config import LatentConfig
from mind.methods import load_run_config
from mind.provenance import file_digest, text_digest
from mind.records import Question
from mind.run.data import load_data
from mind.run.resume import input_entry
from mind.run_folder import RunFolder

OF_EACH = ("output", "data.only", "data.shuffle_perspectives", "train.seed")
"""Options that distinguish the experts of an analysis."""
_PLACES = ("student.model", "data.train", "data.heldout")
"""Entries of inputs.json whose digests are compared."""
_WITHOUT_EFFECT = (
    *("student.attention", "data.evaluation", "data.generated_evaluation", "data.generated_ood", "train.pack_length"),
    *("train.share_prompts", "train.gradient_checkpointing", "train.compile", "train.shard", "train.save_steps"),
    *("train.log_steps", "train.report_to", "objective.backend"),
)
"""Options that only change how the same student is computed, or what is measured."""
FEWEST_QUESTIONS = 3
"""The fewest questions: the mixture needs as many points as it has components."""
WANTED_QUESTIONS = 100
"""With fewer questions the intervals are wide."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: RunFolder
    config: MindConfig

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def is_null(self) -> bool:
        """Whether the names of the perspectives were shuffled within each question."""
        return self.config.data.shuffle_perspectives is not None

    @property
    def identity(self) -> str:
        """A digest that identifies this run and this training of it."""
        return text_digest("".join(file_digest(file) for file in (self.folder.inputs, self.folder.status)))

    @property
    def weights(self) -> str:
        """A digest of the weights before its training."""
        return self.folder.read_inputs()["weights"]["sha256"]

    @property
    def base(self) -> StudentConfig:
        """The student before its training, in float32."""
        return dataclasses.replace(self.config.student, dtype="float32", lora=False)

    @property
    def student(self) -> StudentConfig:
        """The student after its training, adapters merged, in float32."""
        return dataclasses.replace(self.base, model=str(self.folder.student), chat_template=None)


@dataclass(frozen=True)
class Group:
    """Experts, or null experts: one run for each seed and perspective."""

    seeds: tuple[int, ...]
    runs: tuple[tuple[Run, ...], ...]
    """By seed (E), and by perspective (K) in the order of the configuration."""

    def __len__(self) -> int:
        return sum(map(len, self.runs))


@dataclass(frozen=True)
class Students:
    """Everything that is analyzed."""

    perspectives: tuple[str, ...]
    experts: Group
    null: Group | None
    """None if there are no null experts."""
    others: tuple[Run, ...]
    """Runs whose samples are examined."""
    questions: tuple[Question, ...]

    @property
    def base(self) -> StudentConfig:
        """The untrained student of all runs."""
        return self.experts.runs[0][0].base


def read_students(config: LatentConfig) -> Students:
    """The students that `config` names, and the questions.

    Raises MindError for a folder that is not a finished run of method single; for runs that differ in more than
    perspective and seed; for a perspective and seed without a run, or with two; for null experts whose perspectives
    were shuffled with different seeds; for too few questions, for one that lacks a rationale in some perspective, and
    for one that a run was trained on.
    """
    runs = [_read_run(path) for path in config.runs]
    require(bool(runs), "no run is named: expected the folders of experts, `mind train --method single`")
    for run in runs:
        require(
            run.config.method == "single",
            f"{run.folder.path}: its method is {run.config.method}: expected single; --coverage takes other runs",
        )
    others = [_read_run(path) for path in config.coverage]
    first = runs[0]
    for run in runs[1:]:
        _check_alike(run, first)
    for run in others:
        _check_student(run, first)
    perspectives = first.config.data.perspectives
    experts = _group([run for run in runs if not run.is_null], perspectives, "expert")
    require(experts is not None, "all runs are of null experts (data.shuffle_perspectives): expected experts, too")
    null = _group([run for run in runs if run.is_null], perspectives, "null expert")
    assert experts is not None
    dealt = sorted({seed for run in runs if (seed := run.config.data.shuffle_perspectives) is not None})
    require(
        len(dealt) < 2,
        f"the null experts have data.shuffle_perspectives {listed([str(seed) for seed in dealt])}: expected one seed, "
        "so that those of one name share their data as experts do",
    )
    questions = _read_questions(config.questions, perspectives)
    _check_unseen(config.questions, questions, [*runs, *others])
    return Students(perspectives, experts, null, tuple(others), tuple(questions))


def _read_run(path: str) -> Run:
    folder = RunFolder(path)
    require(folder.begun is not None, f"{path}: no folder of a run of `mind train`")
    run = Run(folder, load_run_config(folder.config))
    require(folder.finished, f"{path}: the run did not come to its end: `mind train --output {path} --resume`")
    inputs = folder.read_inputs()
    require(
        {"data.train", "weights"} <= inputs.keys(),
        f"{folder.inputs}: the digests of its data and its student are missing: an older version began this run",
    )
    return run


def _check_alike(run: Run, first: Run) -> None:
    """Raises MindError unless two experts differ only in perspective and seed."""
    _check_student(run, first)
    own, other = (flat(dataclasses.asdict(some.config)) for some in (run, first))
    free = {*OF_EACH, *_PLACES, *_WITHOUT_EFFECT}
    for name, value in own.items():
        require(
            value == other[name] or name in free or name.startswith("evaluation."),
            f"{run.folder.path}: {name} is {value}, and {other[name]} in {first.folder.path}: experts differ in "
            "perspective and seed alone",
        )
    if run.seed == first.seed:
        digests = [some.folder.read_inputs()["data.train"]["sha256"] for some in (run, first)]
        require(
            digests[0] == digests[1],
            f"{run.folder.path}: its training questions are not those of {first.folder.path}: experts of one seed "
            "train on the same",
        )


def _check_student(run: Run, first: Run) -> None:
    """Raises MindError unless two runs began with the same student."""
    # with LoRA on only one side, the weights would have other names
    lora = run.config.student.lora == first.config.student.lora
    names = [some.config.student.model for some in (run, first)]
    require(
        run.weights == first.weights if lora else names[0] == names[1],
        f"{run.folder.path}: it began with the student {names[0]}, and {first.folder.path} with {names[1]}, whose "
        "weights are others: expected runs of one student",
    )
    perspectives = [some.config.data.perspectives for some in (run, first)]
    require(
        perspectives[0] == perspectives[1],
        f"{run.folder.path}: data.perspectives is {', '.join(perspectives[0])}, and {', '.join(perspectives[1])} in "
        f"{first.folder.path}: expected the same in the same order",
    )


def _group(runs: Sequence[Run], perspectives: Sequence[str], kind: str) -> Group | None:
    """The runs by seed and perspective; None if there are none."""
    found: dict[tuple[int, str], Run] = {}
    for run in runs:
        place = (run.seed, str(run.config.data.only))
        require(
            place not in found,
            f"{run.folder.path} and {found.get(place, run).folder.path} are both the {kind} of perspective {place[1]} "
            f"with train.seed {place[0]}: name one of them",
        )
        found[place] = run
    seeds = tuple(sorted({seed for seed, _ in found}))
    grid = list(product(seeds, perspectives))
    missing = [f"{name} with train.seed {seed}" for seed, name in grid if (seed, name) not in found]
    require(not missing, f"there is no {kind} of {listed(missing)}: expected a run for each perspective and seed")
    return Group(seeds, tuple(tuple(found[seed, name] for name in perspectives) for seed in seeds)) if seeds else None


def _read_questions(path: str, perspectives: Sequence[str]) -> list[Question]:
    questions = [
        dataclasses.replace(
            question, rationales=tuple(one for one in question.rationales if one.perspective in perspectives)
        )
        for question in load_questions(path, require_rationales=True, minimum_rationales=1)
    ]
    short = [question for question in questions if len(question.rationales) < len(perspectives)]
    if short:
        there = {one.perspective for one in short[0].rationales}
        lacking = [name for name in perspectives if name not in there]
        raise MindError(
            f"{path}: {number_of(len(short), 'question')} without a rationale in every perspective, first "
            f"{short[0].id}, which lacks {listed(lacking)}"
        )
    require(
        len(questions) >= FEWEST_QUESTIONS,
        f"{path}: {number_of(len(questions), 'question')}: expected at least {FEWEST_QUESTIONS}, and better "
        f"{WANTED_QUESTIONS}",
    )
    return questions


def _check_unseen(path: str, questions: Sequence[Question], runs: Sequence[Run]) -> None:
    """Raises MindError if a run was trained on one of the questions, or if its data have changed since."""
    trained: dict[str, Sequence[Question]] = {}
    for run in runs:
        entry: Mapping[str, str] = run.folder.read_inputs()["data.train"]
        if entry["sha256"] not in trained:
            trained[entry["sha256"]] = _training_questions(run, entry)
        seen = asked_in(questions, trained[entry["sha256"]])
        require(
            not seen,
            f"{path}: {len(seen)} of {number_of(len(questions), 'question')} are among those that {run.folder.path} "
            f"was trained on, first {seen[0].id if seen else ''}: expected held-out ones",
        )


def _training_questions(run: Run, entry: Mapping[str, str]) -> Sequence[Question]:
    data = run.config.data
    if data.leaks != "drop":  # then the evaluation files decide what was trained on; else they need not be there
        data = dataclasses.replace(data, evaluation=())
    questions = load_data(dataclasses.replace(run.config, data=data)).train
    require(
        input_entry(data.train, map(question_row, questions))["sha256"] == entry["sha256"],
        f"{data.train} has changed since {run.folder.path} was trained on it: whether it was trained on the questions "
        "cannot be told; restore it",
    )
    return questions
