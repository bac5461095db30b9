"""Combines judged folders of the same questions: those of several teachers, and answers that were made from others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mind.errors import require
from mind.records import Key, Question, Response, Verdict
from mind.teacher.judged import JudgedData, load_judged
from mind.teacher.recipes import Derived, Made, MadeFrom, derived_requests

MADE: Mapping[str, Made] = {"rewrite": "rewritten", "prefix": "continued"}
"""Recipe -> what it makes, for recipes whose answers can be filtered without the answers that they were made from."""


@dataclass(frozen=True)
class Pool:
    """Folders with all their answers, each with a unique key: the samples of further folders get higher numbers."""

    folders: Sequence[JudgedData]
    """The first one has the questions."""
    responses: Sequence[Response]
    verdicts: Mapping[Key, Verdict]
    places: Mapping[Key, tuple[str, Key]]
    """Key -> the folder's path, and the key in it."""
    made: Mapping[Key, MadeFrom]
    """The answers that were made from others."""

    @property
    def questions(self) -> Sequence[Question]:
        return self.folders[0].questions


def load_pool(path: str, also: Sequence[str]) -> Pool:
    """The answers in the folder `path` and in further ones.

    Raises MindError as `load_judged`, for a folder that is given twice, for a further one with other questions, and for
    one whose answers were all made from others than those of `path`.
    """
    paths = [path, *also]
    resolved = [Path(one).resolve() for one in paths]
    twice = [one for number, one in enumerate(paths) if resolved[number] in resolved[:number]]
    require(not twice, f"{', '.join(twice)}: the same folder comes twice")
    folders = [load_judged(Path(one)) for one in paths]
    first = folders[0]
    require(
        first.config.recipe != "dual",
        f"{path}: its answers are twins of those of {first.config.origin}: name that folder, and this one as --also",
    )
    responses: list[Response] = []
    verdicts: dict[Key, Verdict] = {}
    places: dict[Key, tuple[str, Key]] = {}
    made: dict[Key, MadeFrom] = {}
    for name, data in zip(paths, folders, strict=True):
        _check_questions(name, data, path, first)
        start = 1 + max((response.key.sample for response in responses), default=-1)
        how = _made(name, data, path, first)
        for response in data.responses:
            key = response.key._replace(sample=start + response.key.sample)
            responses.append(dataclasses.replace(response, key=key))
            places[key] = name, response.key
            if response.key in how:
                made[key] = how[response.key]
            if response.key in data.verdicts:
                verdicts[key] = dataclasses.replace(data.verdicts[response.key], key=key)
    return Pool(folders, responses, verdicts, places, made)


def _check_questions(name: str, data: JudgedData, path: str, first: JudgedData) -> None:
    known = {question.id: question for question in first.questions}
    other = [question.id for question in data.questions if known.get(question.id) != question]
    require(not other, f"--also {name}: question {', '.join(other[:1])} is not in {path}, or is another one there")


def _made(name: str, data: JudgedData, path: str, first: JudgedData) -> dict[Key, MadeFrom]:
    """How the answers of a folder were made from those of the first folder; if it is the first one itself, from
    others."""
    if data.config.recipe is None:
        return {}
    if data is first:
        made = MADE[data.config.recipe]
        return {response.key: MadeFrom(made, None) for response in data.responses}
    current = _current_requests(data, first)
    made = {}
    for response in data.responses:
        one = current.get(response.key)
        if one is not None and one.request.digest == response.request:
            made[response.key] = MadeFrom(one.made, one.origin)
        else:
            made[response.key] = MadeFrom("outdated", None)
    require(
        not made or any(how.made != "outdated" for how in made.values()),
        f"--also {name}: its answers were made from those of {data.config.origin}, and none of these is in {path}: "
        "name that folder first, or generate anew if its answers or verdicts have changed",
    )
    return made


def _current_requests(data: JudgedData, first: JudgedData) -> dict[Key, Derived]:
    """The requests that the recipe of `data` would now make about the answers of `first`."""
    there = {response.key.perspective for response in first.responses}
    asked = tuple(sorted({response.key.perspective for response in data.responses} & there))
    if not asked:
        return {}
    config = dataclasses.replace(data.config, perspectives=asked)
    return {one.request.key: one for one in derived_requests(data.questions, first, data.prompts, config)}
