"""`mind data generate`: collects a teacher's answers in a folder, and continues where an earlier start stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from mind.config import flat
from mind.data.questions import Asked, load_questions, save_questions
from mind.data.sources import load_source
from mind.display import listed, number_of
from mind.errors import MindError, require
from mind.files import check_apart, check_new_folder
from mind.grading.type_counts import described_types
from mind.perspectives import KNOWLEDGE
from mind.records import Key, Question, Response
from mind.teacher.config import RECIPES, GenerateConfig
from mind.teacher.folder import DatasetFolder
from mind.teacher.job import JobReport, make_engine, reserve_bytes, run_job
from mind.teacher.journal import Journal, load_responses
from mind.teacher.judged import load_judged, stored_prompts
from mind.teacher.recipes import derived_requests, recipe_prompts, what_is_derived
from mind.teacher.requests import Request, load_prompts, teacher_requests
from mind.teacher.spending import Spending
from mind.typed_json import load_json, save_json, write_json

_DECIDING = (
    *(f"teacher.{name}" for name in ("model", "temperature", "top_p", "max_tokens", "seed", "extra_body")),
    *("samples", "knowledge", "show_answer", *RECIPES, "cuts"),
)
"""How the names of the options begin that decide what is asked; perspectives and questions are compared by content."""


def ask_teacher(config: GenerateConfig, tell: Callable[[str], None] = lambda _: None) -> JobReport:
    """Asks the teacher for the answers that the folder `config.output` (DatasetFolder) does not hold yet.

    `tell` gets lines that say what is asked of which teacher, before anything is sent. Verdicts that are out of date,
    because answers or gold answers have changed, are removed; `mind data judge` makes new ones. Raises MindError for
    bad input, before the folder is made, for a folder with answers to other requests, and if the job would overwrite a
    file that no job wrote or that it reads.
    """
    folder = DatasetFolder(Path(config.output))
    check_new_folder(folder.path)
    _check_files(folder, config)
    questions = load_source(config.questions)
    prompts, requests, asked = _what_is_asked(questions, config)
    spending = Spending(config.budget, config.prices.get(config.teacher.model))
    engine = make_engine(config.teacher, config.traffic, spending)
    folder.path.mkdir(parents=True, exist_ok=True)
    reserve = reserve_bytes(config.teacher, config.traffic)
    with Journal(folder.responses, reserve=reserve) as journal, Journal(folder.wasted, reserve=reserve) as wasted:
        stored = stored_answers(folder.responses, requests, lambda: _what_changed(folder, config, questions, prompts))
        if len(stored) < len(requests) or not _are_at(questions, folder.questions):
            folder.verdicts.unlink(missing_ok=True)  # they judged other answers, or used other gold answers
        save_questions(questions, folder.questions)
        save_json(config, folder.config)
        write_json(prompts, folder.prompts)
        tell(f"{asked}: {number_of(len(requests) - len(stored), 'request')} to {_whom(config)}")
        return run_job(requests, stored, engine, spending, journal, wasted, folder.failures)


def _check_files(folder: DatasetFolder, config: GenerateConfig) -> None:
    """Raises MindError if the job would overwrite a file that it reads, or that no job wrote."""
    origin = [] if config.origin is None else [*Path(config.origin).glob("*")]
    inputs = [path for path in (config.questions.path, config.prompts, *origin) if path is not None]
    for file in (folder.questions, folder.config, folder.prompts, folder.failures, folder.verdicts):
        check_apart(file, inputs)
        require(
            folder.responses.exists() or not file.exists(),
            f"{file}: exists already, in a folder without {folder.responses.name}: name another --output",
        )


def _are_at(questions: Sequence[Question], path: Path) -> bool:
    """Whether the file at `path` holds these questions."""
    return path.exists() and load_questions(path) == questions


def _what_is_asked(questions: Sequence[Question], config: GenerateConfig) -> tuple[dict[str, str], list[Request], str]:
    """The prompts by name, the requests, and the lines that describe them to the user."""
    if config.origin is not None:
        data = load_judged(Path(config.origin))
        prompts = recipe_prompts(config, data)
        derived = derived_requests(questions, data, prompts, config)
        told = f"--{config.recipe} {config.origin}: {what_is_derived(derived)}"
        return prompts, [one.request for one in derived], told
    prompts = load_prompts(config.perspectives, config.prompts, knowledge=config.knowledge)
    return prompts, list(teacher_requests(questions, prompts, config)), _told(questions, prompts, config)


def _told(questions: Sequence[Question], prompts: Mapping[str, str], config: GenerateConfig) -> str:
    repeated = sum(map(Asked().again, questions))
    note = f"; {repeated:,} of them ask what an earlier one asks" if repeated else ""
    perspectives = [name for name in prompts if name != KNOWLEDGE]
    counts = {"question": len(questions), "perspective": len(perspectives), "sample": config.samples}
    asked = " x ".join(number_of(count, noun) for noun, count in counts.items())
    asked += ", and the knowledge of each question" if config.knowledge else ""
    one = len(perspectives) == 1
    alone = " (training needs two per question: ask for another now or in a later start)" if one else ""
    return (
        f"{config.questions.path}: answer types: {described_types(questions)}{note}\n"
        f"perspectives: {', '.join(perspectives)}{alone}\n{asked}"
    )


def _whom(config: GenerateConfig) -> str:
    teacher = config.teacher
    return teacher.model if teacher.engine != "openai" else f"{teacher.model} at {teacher.base_url}"


def stored_answers(path: Path, requests: Iterable[Request], what_changed: Callable[[], str]) -> dict[Key, Response]:
    """The answers at `path` by key; raises MindError, with `what_changed`, for one that belongs to no request, or to a
    request that differs from the present one with its key."""
    digests = {request.key: request.digest for request in requests}
    stored = {}
    for response in load_responses(path):
        if digests.get(response.key) != response.request:
            other = "that belongs to another request" if response.key in digests else "which is not asked for"
            raise MindError(f"{path} has an answer to {response.key}, {other}: {what_changed()}; name a new --output")
        stored[response.key] = response
    return stored


def _what_changed(
    folder: DatasetFolder, config: GenerateConfig, questions: Sequence[Question], prompts: Mapping[str, str]
) -> str:
    """What is asked for in another way than at the folder's last start, in words."""
    try:
        was, now = (flat(dataclasses.asdict(some)) for some in (load_json(folder.config, GenerateConfig), config))
        named = {
            "perspectives": (stored_prompts(folder.prompts), prompts),
            "questions": tuple({one.id: one for one in some} for some in (load_questions(folder.questions), questions)),
        }
    except MindError as error:
        reason = str(error).partition("\n")[0]  # the first of several problems
        return f"what has changed is not known, since {reason}"
    options = [name for name in now if name.startswith(_DECIDING) and was.get(name) != now[name]]
    changed = [f"{name} was {was.get(name)} and is {now[name]}" for name in options]
    for what, (before, present) in named.items():
        if other := [name for name in before if name in present and before[name] != present[name]]:
            changed.append(f"{what} changed: {listed(other)}")
        if gone := [name for name in before if name not in present]:
            changed.append(f"{what} left out: {listed(gone)}")
    if not changed and config.origin is not None:
        return f"the answers in {config.origin}, or the verdicts on them, have changed"
    return "; ".join(changed) or f"{folder.config.name} and the files beside it do not say what has changed"
