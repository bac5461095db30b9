"""The plan of an experiment: a JSON file, read into frozen dataclasses and fixed before anything runs.

student, data, evaluation   the same for every run
methods                     label -> how a student is trained, and the grid for tuning
seeds, budget, tuning       the number of runs, their length, and how configurations are chosen
reference, baselines        the claim that `mind compare` examines
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mind.config import EMBEDDED_STUDENT, WORD_PROBLEMS, DataConfig, StudentConfig, flat
from mind.display import meant, path_meant
from mind.errors import MindError, require
from mind.files import require_file
from mind.provenance import text_digest
from mind.typed_json import build, check_fields, read_json

PLANS = Path(__file__).with_name("plans")
"""The folder of the plans that come with the package, as NAME.json."""
BASE, BASE_MARKER = "base", "base-marker"
"""Names that replace a label for the untrained student: asked plainly, and asked with a line about the form of an
answer."""
OOD_PROBLEMS = f"{WORD_PROBLEMS}-ood"
GENERATED = (WORD_PROBLEMS, OOD_PROBLEMS)
"""Names that replace a file, for evaluation sets made by the built-in generator."""
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_NAME = re.compile(r"[\w][\w.-]{0,99}")
_OWN = re.compile(
    r"output|method|student\.(model|dtype|chat_template)"
    r"|data\.(?!(only|max_questions|shuffle_perspectives)$).*"
    r"|train\.(seed|epochs|max_steps|flops|trained_tokens)"
    r"|stages\.[^.]+\.(epochs|max_steps)|evaluation\.(?!batch_size$).*"
)
"""Options of a run that follow from other fields of the plan."""


@dataclass(frozen=True)
class MethodPlan:
    """How the students of a label are trained."""

    method: str
    """A method or preset of `mind train`."""
    options: dict = field(default_factory=dict, hash=False)
    """Options of the run, nested as in its config.json."""
    grid: dict = field(default_factory=dict, hash=False)
    """The values that tuning may choose, by the option's name: {"train.learning_rate": [1e-4, 3e-4]}. Without a grid
    the label is not tuned."""
    configurations: int | None = None
    """Number of configurations to try; None: as in `tuning`. For "the best perspective", use the whole grid of
    `single`."""

    def __post_init__(self) -> None:
        check_fields("methods", self)
        count = self.configurations
        require(count is None or count >= 1, f"methods: configurations is {count}: expected at least 1")
        for name, values in self.grid.items():
            listed = isinstance(values, list | tuple) and len(values) > 0
            require(listed, f"methods: grid {name} is {values!r:.60}: expected a list of values")


@dataclass(frozen=True)
class EvaluationSet:
    """Questions that every student is asked after training."""

    file: str
    """A file of questions; "word-problems" or "word-problems-ood" for generated ones, if `data.train` is
    generated too."""
    group: Literal["id", "ood"]
    """Whether they resemble the training questions ("id") or not ("ood"); `mind compare` averages over the sets of a
    group."""
    max_new_tokens: int = 200
    """Longest response, in tokens."""
    questions: int | None = None
    """Number of questions to ask, from the first; None: all."""
    primary: bool = True
    """Whether the claim covers this set."""

    def __post_init__(self) -> None:
        check_fields("evaluation", self)
        for name in ("questions", "max_new_tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"evaluation: {name} is {value}: expected at least 1")


@dataclass(frozen=True)
class BudgetPlan:
    """The budget C: what the training of a student may cost."""

    unit: Literal["flops", "trained_tokens"] = "flops"
    """Floating-point operations, or tokens with a backward pass, by the counters of a run (`mind.run.work`)."""
    amount: float | None = None
    """C. None: the cost of a run of `of`."""
    of: str | None = None
    """The label of a run that is done first, untuned and with the first seed, to measure its cost."""
    epochs: float = 1.0
    """The epochs of that run."""

    def __post_init__(self) -> None:
        check_fields("budget", self)
        require((self.amount is None) != (self.of is None), 'budget: give "amount" or "of", the label that sets it')
        require(self.amount is None or self.amount > 0, f"budget: amount is {self.amount}: expected a positive number")
        require(self.epochs > 0, f"budget: epochs is {self.epochs}: expected a positive number")


@dataclass(frozen=True)
class TuningPlan:
    """How the configuration of a label with a grid is chosen: by random search in which all values of an option are
    used equally often, with the same settings for all labels."""

    configurations: int = 12
    """Configurations to try per label, unless the label sets its own number; all, if the grid has fewer."""
    share: float = 1 / 3
    """Share of the budget C for each of them."""
    seed: int = 0
    """Seed of the draw and of the students' training."""
    max_new_tokens: int = 200
    """Longest response to a validation question, in tokens."""
    questions: int | None = None
    """Number of validation questions to ask, from the first; None: all."""

    def __post_init__(self) -> None:
        check_fields("tuning", self)
        for name in ("configurations", "questions", "max_new_tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"tuning: {name} is {value}: expected at least 1")
        require(0 < self.share <= 1, f"tuning: share is {self.share}: expected a number in (0, 1]")
        require(0 <= self.seed < 2**32, f"tuning: seed is {self.seed}: expected a number from 0 to 2**32 - 1")


@dataclass(frozen=True)
class Plan:
    """All settings that determine an experiment."""

    student: StudentConfig
    """The initial student of every run."""
    data: DataConfig
    """The training questions. `heldout` or `heldout_fraction` gives the validation questions, by which tuning
    chooses."""
    methods: dict[str, MethodPlan] = field(hash=False)
    """Label -> method."""
    evaluation: dict[str, EvaluationSet] = field(hash=False)
    """Name -> evaluation set."""
    budget: BudgetPlan
    title: str = "Experiment"
    """Title of its pages."""
    data_seed: int = 0
    """Seed of the generator and of the split into training and validation questions, which all runs share."""
    config: dict = field(default_factory=dict, hash=False)
    """Options of every run, nested as in its config.json; the options of a method override them."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Each method trains one student per seed."""
    tuning: TuningPlan = field(default_factory=TuningPlan)
    reference: str | None = None
    """The label of the method that the claim is about."""
    baselines: tuple[str, ...] = ()
    """The labels of the methods that it should beat."""
    base_marker: bool = False
    """Ask the untrained student a second time, with the line "End with a line '#### answer'.": it has never seen the
    marker, so without this line learning the form would count as learning to reason."""
    keep_students: bool = False
    """Keep the trained students after their answers are stored; otherwise only their records are kept."""

    def __post_init__(self) -> None:
        check_fields("", self)
        for what, names in (("methods", self.methods), ("evaluation", self.evaluation)):
            require(bool(names), f"{what} is empty: expected at least one")
            for name in names:
                require(
                    _NAME.fullmatch(name) is not None,
                    f"{what}: {name!r:.60} is no name for a folder: expected letters, digits, dots and dashes",
                )
        for name in (BASE, BASE_MARKER):
            require(name not in self.methods, f"methods: {name} is the untrained student, which is evaluated anyway")
        require(bool(self.seeds), "seeds is empty: expected at least one")
        twice = sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1})
        require(not twice, f"seeds has {', '.join(map(str, twice))} twice")
        require(all(0 <= seed < 2**32 for seed in self.seeds), "seeds: expected numbers from 0 to 2**32 - 1")
        self._check_labels()
        self._check_own_options()
        self._check_sets()

    def _check_labels(self) -> None:
        named = {"reference": [self.reference], "baselines": self.baselines, "budget.of": [self.budget.of]}
        for what, labels in named.items():
            for label in labels:
                known = label in (None, *self.methods) or (what == "baselines" and label == BASE)
                require(known, f"{what} is {label!r}: expected a label of the methods, {', '.join(self.methods)}")
        require(len(set(self.baselines)) == len(self.baselines), "baselines names a label twice")
        require(self.reference not in self.baselines, f"baselines names the reference, {self.reference}")

    def _check_own_options(self) -> None:
        given = {"config": flat(self.config)}
        given |= {f"methods.{label}.options": flat(one.options) for label, one in self.methods.items()}
        given |= {f"methods.{label}.grid": one.grid for label, one in self.methods.items()}
        for where, names in given.items():
            own = [name for name in names if _OWN.fullmatch(name)]
            require(not own, f"{where}: {', '.join(own)}: other fields of the plan say so for every run")

    def _check_sets(self) -> None:
        require(not self.data.evaluation, 'data.evaluation: the evaluation sets are the plan\'s "evaluation"')
        require(
            any(one.primary for one in self.evaluation.values()),
            "evaluation: no set is primary: expected at least one, which the claim is about",
        )
        files: dict[str, str] = {}
        for name, one in self.evaluation.items():
            require(one.file not in files, f"evaluation: {name} and {files.get(one.file)} are both {one.file}")
            files[one.file] = name
            generated = self.data.train == WORD_PROBLEMS
            require(
                one.file not in GENERATED or generated,
                f"evaluation: {name} is {one.file}, of the generator: data.train is {self.data.train}",
            )


def read_plan(source: str) -> tuple[Plan, Path]:
    """The plan in a file, or a plan of the package by its name, and the folder to which its paths are relative.

    Raises a MindError with the field if it is not a plan.
    """
    path = Path(source)
    if not path.exists() and (PLANS / f"{source}.json").is_file():
        path = PLANS / f"{source}.json"
    if not path.exists():
        near = meant(source, packaged()) or path_meant(path)
        raise MindError(f"{source}: no such file, and no plan of the package: {', '.join(packaged())}{near}")
    return build(Plan, read_json(path), str(path)), path.parent


def packaged() -> list[str]:
    """The names of the plans that come with the package."""
    return sorted(file.stem for file in PLANS.glob("*.json"))


def located(plan: Plan, folder: Path, variables: Mapping[str, str]) -> Plan:
    """The plan with resolved file names: variables ${NAME} are replaced. Relative names refer to `folder` or, if they
    begin with a variable, to the working directory, where the user typed its value.

    Raises MindError for a variable without a value, a value that nothing reads, and a missing file.
    """
    template = plan.student.chat_template
    uses = _uses(plan)
    missing = [f"--set {name}=... for {', '.join(texts)}" for name, texts in uses.items() if name not in variables]
    require(not missing, f"variables of the plan have no value: {'; '.join(missing)}")
    unread = sorted(set(variables) - set(uses))
    require(not unread, f"--set {', '.join(unread)}: the plan has no such variable")

    def filled(text: str) -> str:
        return _VARIABLE.sub(lambda match: variables[match[1]], text)

    def place(text: str) -> str:
        return os.path.abspath(("" if _VARIABLE.match(text) else folder) / Path(filled(text)))

    def file(text: str) -> str:
        return text if text in GENERATED else str(require_file(place(text)))

    def student(text: str) -> str:
        name, there = filled(text), place(text)
        return name if name == EMBEDDED_STUDENT or not os.path.isdir(there) else there

    return dataclasses.replace(
        plan,
        student=dataclasses.replace(
            plan.student,
            model=student(plan.student.model),
            chat_template=template if template in (None, "plain") else file(template),
        ),
        data=dataclasses.replace(
            plan.data,
            train=file(plan.data.train),
            heldout=None if plan.data.heldout is None else file(plan.data.heldout),
        ),
        evaluation={name: dataclasses.replace(one, file=file(one.file)) for name, one in plan.evaluation.items()},
    )


def _uses(plan: Plan) -> dict[str, list[str]]:
    """The texts of the plan that name a variable, by the variable."""
    files = [plan.data.train, plan.data.heldout, *(one.file for one in plan.evaluation.values())]
    uses: dict[str, list[str]] = {}
    for text in filter(None, (plan.student.model, plan.student.chat_template, *files)):
        for name in dict.fromkeys(_VARIABLE.findall(text)):
            uses.setdefault(name, []).append(text)
    return uses


def plan_hash(plan: Plan, digests: Mapping[str, str]) -> str:
    """The SHA-256 of the plan's canonical JSON, in which digests of the questions replace their files."""
    whole = {"plan": json_of(plan), "inputs": dict(digests)}
    return text_digest(json.dumps(whole, sort_keys=True, separators=(",", ":")))


def json_of(plan: Plan) -> dict[str, Any]:
    """The plan as JSON: with lists instead of tuples."""
    return json.loads(json.dumps(dataclasses.asdict(plan)))


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """The fields in which two plans in JSON differ."""
    first, second = flat(one), flat(other)
    for name in dict.fromkeys([*first, *second]):
        if first.get(name) != second.get(name):
            yield name
