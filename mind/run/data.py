"""Loads the questions of a run: from files, or from the built-in generator."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mind import word_problems
from mind.config import WORD_PROBLEMS, DataConfig, MindConfig
from mind.data.overlap import WORDS, Leaks, leaks_of
from mind.data.problems import Faults
from mind.data.questions import TO_COMPARE, asked_in, load_questions, split_heldout
from mind.display import number_of
from mind.errors import require
from mind.evaluation.labels import asked_questions, evaluation_labels
from mind.grading.type_counts import described_types
from mind.progress import tell
from mind.provenance import text_digest
from mind.records import Question


@dataclass(frozen=True)
class RunData:
    """The questions of a run: for training, for the held-out NLL, and for the accuracy by label."""

    train: list[Question]
    heldout: list[Question]
    evaluation: dict[str, list[Question]]
    leaks: Mapping[str, Leaks] = field(default_factory=dict)
    """What the training questions have in common with those of evaluation files, by label (only labels with something
    in common); includes training questions that were left out because of it."""

    @property
    def measured(self) -> dict[str, list[Question]]:
        """The sets of questions on which the student is measured, by the name that messages use."""
        return {"held-out": self.heldout} | {f"evaluation {label}": some for label, some in self.evaluation.items()}


def load_data(config: MindConfig) -> RunData:
    """Reads, or generates, every question that the configuration names; raises MindError for bad input."""
    faults = Faults()
    run_data = _word_problems(config) if config.data.train == WORD_PROBLEMS else _from_files(config, faults)
    files = evaluation_labels(config.data.evaluation, taken=run_data.evaluation)
    for label, file in files.items():
        run_data.evaluation[label] = faults.attempt(load_questions, file)
    faults.check()
    train = run_data.train[: config.data.max_questions]
    evaluation = {
        label: asked_questions(label, some, config.evaluation.questions) for label, some in run_data.evaluation.items()
    }
    # Generated questions are not checked: they share their words with the training questions, with other numbers.
    found = leaks_of(train, {label: evaluation[label] for label in files})
    return replace(
        run_data,
        train=without_leaks(train, found, config.data),
        heldout=run_data.heldout[: config.evaluation.heldout_questions],
        evaluation=evaluation,
        leaks=found,
    )


def without_leaks(train: list[Question], found: Mapping[str, Leaks], data: DataConfig) -> list[Question]:
    """The training questions; if `data.leaks` is "drop", without those that share text with evaluation questions."""
    leaking = set().union(*(one.training for one in found.values()))
    if data.leaks == "keep" or not leaking:
        return train
    told = "; ".join(f"{label}: {described_leaks(one)}" for label, one in found.items())
    require(data.leaks == "drop", f"data.leaks is error, and training questions give away evaluation questions: {told}")
    left = [question for question in train if question.id not in leaking]
    require(bool(left), f"data.leaks is drop, and none of the {len(train)} training questions is left: {told}")
    tell(
        f"{len(leaking)} of {number_of(len(train), 'training question')} are left out (data.leaks): {told}",
        of_results=True,
    )
    return left


def described_leaks(found: Leaks) -> str:
    """The leaks in words: "3 training questions have 13 words in a row of 2 of its questions"."""
    training, test = len(found.training), len(found.test)
    share = "shares" if training == 1 else "share"
    return f"{number_of(training, 'training question')} {share} {WORDS} words in a row with {test} of its questions"


def trained_on(questions: Sequence[Question], data: DataConfig) -> list[Question]:
    """The training questions; with `data.only`, those that have a rationale of that perspective, with its rationales
    only, right and wrong.

    With `data.shuffle_perspectives`, the names of the perspectives are first permuted within each question. Raises
    MindError if no question has a rationale of `data.only`.
    """
    if data.shuffle_perspectives is not None:
        questions = [_dealt_anew(question, data.shuffle_perspectives) for question in questions]
    if data.only is None:
        return list(questions)
    chosen = [
        replace(
            question,
            rationales=rationales,
            wrong_rationales=tuple(one for one in question.wrong_rationales if one.perspective == data.only),
        )
        for question in questions
        if (rationales := tuple(one for one in question.rationales if one.perspective == data.only))
    ]
    require(
        bool(chosen),
        f"data.only is {data.only}: none of the {len(questions)} training questions has such a rationale",
    )
    if len(chosen) < len(questions):
        tell(
            f"{len(chosen)} of {len(questions)} questions are used: the others have no rationale of {data.only}",
            of_results=True,
        )
    return chosen


def _dealt_anew(question: Question, seed: int) -> Question:
    """The question with the names permuted among its rationales, and likewise among its wrong ones. The result depends
    only on the seed and the question's id, not on which other questions there are."""
    names = [rationale.perspective for rationale in question.rationales]
    dealt = random.Random(text_digest(f"{seed} {question.id}")).sample(names, len(names))
    new = dict(zip(names, dealt, strict=True))
    return replace(
        question,
        rationales=tuple(replace(one, perspective=new[one.perspective]) for one in question.rationales),
        wrong_rationales=tuple(
            replace(one, perspective=new.get(one.perspective, one.perspective)) for one in question.wrong_rationales
        ),
    )


def described_data(data: RunData) -> str:
    """The number of questions per set and answer type, in words: "training: 700 number; held-out: 70 number"."""
    sets = {"training": data.train} | data.measured
    return "questions by answer type: " + "; ".join(f"{name}: {described_types(some)}" for name, some in sets.items())


def warn_of_overlap(data: RunData, config: DataConfig) -> None:
    """Warns for each set that measures the student how many of its questions are also training questions.

    `mind.data.questions.Asked` says which questions are the same. If further questions leak (`data.leaks`) and are
    kept, a warning says that too.
    """
    for name, questions in data.measured.items():
        if count := len(asked_in(questions, data.train)):
            warnings.warn(
                f"{name}: {count} of {len(questions)} questions are among the training questions, so results on "
                "them say nothing about new ones",
                RuntimeWarning,
                stacklevel=4,
            )
    for label, found in data.leaks.items():
        if config.leaks == "keep" and len(found.test) > len(asked_in(data.evaluation[label], data.train)):
            warnings.warn(
                f"evaluation {label}: {described_leaks(found)}, so results on those say little about new ones; "
                "--data.leaks drop leaves out what gives them away",
                RuntimeWarning,
                stacklevel=4,
            )


def _from_files(config: MindConfig, faults: Faults) -> RunData:
    data = config.data
    load = functools.partial(
        load_questions,
        perspectives=data.perspectives,
        require_rationales=True,
        minimum_rationales=_fewest_rationales(config.method),
    )
    questions = faults.attempt(load, data.train)
    if data.heldout is not None:
        return RunData(questions, faults.attempt(load, data.heldout), {})
    if not questions:  # `faults` already has the reason
        return RunData([], [], {})
    train, heldout = faults.attempt(_divided, questions, config) or ([], [])
    return RunData(train, heldout, {})


def _divided(questions: Sequence[Question], config: MindConfig) -> list[list[Question]]:
    """The training questions and the held-out ones."""
    data = config.data
    require(
        len(questions) > 1,
        f"{data.train}: there is one question, and one is held out of training: add more, "
        "or name a file of held-out ones as --data.heldout",
    )
    return list(split_heldout(questions, data.heldout_fraction, config.train.seed))


def _fewest_rationales(method: str) -> int:
    """The number of right rationales that a question needs. Other methods than the default load PyTorch, which is not
    needed to find faults in the data of the default one."""
    if method == MindConfig().method:
        return TO_COMPARE
    from mind.methods import method_class

    return method_class(method).fewest_rationales


def _word_problems(config: MindConfig) -> RunData:
    data, seed = config.data, config.train.seed
    generate = functools.partial(word_problems.generate, perspectives=data.perspectives, levels=data.generated_levels)
    train = generate(data.generated_questions, 3 * seed, families=data.generated_families)
    other = functools.partial(generate, distinct=True, families=data.generated_families)
    heldout = other(data.generated_heldout, 3 * seed + 1, apart_from=train)
    evaluation = {"word-problems": other(data.generated_evaluation, 3 * seed + 2, apart_from=[*train, *heldout])}
    if data.generated_ood:
        unseen = word_problems.other_families(data.generated_levels, data.generated_families)
        evaluation["word-problems-ood"] = generate(data.generated_ood, 3 * seed + 2, families=unseen, distinct=True)
    return RunData(train, heldout, evaluation)
