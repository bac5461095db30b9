"""Makes requests about answers that were judged: for right or wrong twins, shorter versions, and other continuations.

Each recipe starts from a folder that was generated and judged, its origin, and fills a folder of its own, which is
judged and filtered like any other. Nothing is written into the origin.

"dual": EDIT (arXiv 2405.19737) learns from two rationales that differ only in the decisive steps. A wrong answer is
rectified: the teacher is told the gold answer. A right one is corrupted, after a few examples of a right and a wrong
response. The authors' hint does not show the wrong rationale, and relies on the same examples leading to a similar one;
ours shows it, since the purpose is to change little.

"rewrite": LiteCoT (arXiv 2505.19716) rewrites rationales in fewer words, since small students learn less from long
ones.

"prefix": the teacher continues beginnings of right answers. With the first paragraph alone, this is the "first thought"
that agent distillation (arXiv 2505.17612) puts before its teacher's own text. With several cuts, of which a filter then
keeps the shortest right answer, it resembles Retro-Search (arXiv 2504.04383), which cuts where a long thought turns to
another. Ours cuts at paragraphs, lines or sentences, since short rationales have no such turns.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from mind.answer_line import rationale_of, suffix
from mind.data.sources import SourceConfig
from mind.display import number_of
from mind.errors import MindError, require
from mind.grading.answers import is_correct
from mind.records import Key, Question, Response, Verdict
from mind.student.tokenization import question_text
from mind.teacher.completion import is_finished
from mind.teacher.config import RECIPES, GenerateConfig
from mind.teacher.folder import DatasetFolder
from mind.teacher.judged import JudgedData
from mind.teacher.requests import Request, chat_request, last_line, own_prompts, user_turn

Made = Literal["rectified", "corrupted", "rewritten", "continued", "outdated"]
"""How an answer was made from an earlier one; "outdated" if the earlier answer is gone or has changed."""

DUAL_TEMPERATURE = 0.2
"""EDIT's examples, for both of its prompts."""

RECTIFY = """\
You are a teacher who corrects solutions. You receive a question, its correct answer, and a response that arrives at \
a wrong one. Write the response again so that it arrives at the correct answer. Find the steps where it goes wrong and \
set these right, together with what follows from them. Keep all else word for word: its manner, its order, its layout, \
and each step that is right already. Check every computation. Write as somebody who solves the question for the first \
time: mention neither another response nor an error in it, nor that the answer was given. Write the response alone."""

CORRUPT = """\
You write wrong responses, from which students learn to tell decisive steps. You receive a question and a right \
response. Write the response again with one plausible mistake in a step that decides the answer, such as a wrong \
operation, a fact that is mixed up or a condition that is overlooked. Let the rest follow from the mistake, so that \
the response arrives at another answer than the right one. Keep all else word for word: its manner, its order and its \
layout. Do not point to the mistake. Write the response alone. Three examples:

Question:
A baker fills 6 trays with 12 rolls each and sells 50 of the rolls. How many rolls are left?

Right response:
First count all rolls: 6 trays of 12 make 6 * 12 = 72. Then 50 of them are sold, so 72 - 50 = 22 are left.
#### 22

Wrong response:
First count all rolls: 6 trays of 12 make 6 * 12 = 72. Then 50 more of them are baked, so 72 + 50 = 122 are left.
#### 122

Question:
Which of these floats on water?
(A) an iron nail
(B) a dry cork
(C) a pebble

Right response:
What floats is lighter than the water that it pushes aside. Iron and stone are heavier than water, and cork is \
lighter. So the cork floats.
#### B

Wrong response:
What floats is smaller than the water that it pushes aside. Cork and stone are thicker than a nail, and the nail is \
the smallest. So the nail floats.
#### A

Question:
Is every square a rectangle?

Right response:
A rectangle is a figure with four right angles. A square has four right angles. So every square is a rectangle.
#### yes

Wrong response:
A rectangle is a figure with sides of two lengths. A square has sides of one length. So no square is a rectangle.
#### no"""

REWRITE = """\
You are a teacher who shortens solutions. You receive a question and a response. Say the same reasoning in as few \
words as a learner can follow. Keep each step that the answer depends on, with its computation or argument, and the \
manner of the response: a plan stays a plan, questions stay questions, a comparison stays a comparison. Leave out \
repetitions, detours that lead nowhere, second checks, and remarks about the work. Add nothing, and check that each \
step still follows from those before it. Mention no other response. Write the shorter response alone."""

PROMPTS: dict[str, dict[str, str]] = {
    "dual": {"rectify": RECTIFY, "corrupt": CORRUPT},
    "rewrite": {"rewrite": REWRITE},
}
"""Recipe -> its prompts, by the names under which --prompts replaces them; --prefix uses the prompts of the
perspectives."""

_BREAKS = tuple(map(re.compile, (r"\n[ \t]*\n\s*", r"\n\s*", r"(?<=[.!?])\s+")))
"""Breaks between paragraphs, lines and sentences."""
_MARK = re.compile(r"\W*+(?:\d{1,3}+)?\W*+")
"""Text between two breaks that says nothing: the number of a list item ("1. "), or only signs."""


class Origin(NamedTuple):
    """An answer that a recipe starts from."""

    question: Question
    response: Response
    verdict: Verdict

    @property
    def key(self) -> Key:
        return self.response.key

    @property
    def right(self) -> bool:
        return self.verdict.verdict == "right"

    @property
    def answer(self) -> str | None:
        """The gold answer, or the wrong one that it states; None if it states none."""
        return self.question.answer if self.right else self.verdict.extracted

    @property
    def rationale(self) -> str:
        """The text before its answer line."""
        if self.right:
            return rationale_of(self.response.text, lambda stated: is_correct(stated, self.question))
        return rationale_of(self.response.text, lambda stated: stated == self.verdict.extracted)

    @property
    def whole(self) -> str:
        """Its rationale with the answer line that training appends."""
        return f"{self.rationale}{suffix(str(self.answer))}"


class MadeFrom(NamedTuple):
    """What an answer was made from."""

    made: Made
    origin: Key | None
    """The key of the earlier answer; None if the answer is not available."""


class Derived(NamedTuple):
    """A request about an earlier answer."""

    request: Request
    made: Made
    origin: Key


def recipe_defaults(origin: GenerateConfig, recipe: str, folder: str) -> GenerateConfig:
    """The configuration of a recipe about the answers in `folder`: the same teacher, with the recipe's settings."""
    temperature = DUAL_TEMPERATURE if recipe == "dual" else origin.teacher.temperature
    return dataclasses.replace(
        origin,
        questions=SourceConfig(str(DatasetFolder(Path(folder)).questions)),
        teacher=dataclasses.replace(origin.teacher, temperature=temperature),
        perspectives=None,
        prompts=None,
        samples=1,
        show_answer=False,
        knowledge=False,
        cuts=1,
        **dict.fromkeys(RECIPES) | {recipe: folder},
    )


def recipe_prompts(config: GenerateConfig, data: JudgedData) -> dict[str, str]:
    """The prompts of the recipe by name; `config.prompts` may replace some of them. Raises MindError for other
    names."""
    own = {} if config.prompts is None else own_prompts(config.prompts)
    prompts, names = _prompts_of(config, data)
    unknown = [name for name in own if name not in names]
    require(
        not unknown,
        f"{config.prompts}: --{config.recipe} asks with no prompt {', '.join(unknown)}: expected {', '.join(names)}",
    )
    return prompts | own


def _prompts_of(config: GenerateConfig, data: JudgedData) -> tuple[dict[str, str], Collection[str]]:
    """The recipe's own prompts, and the names to use: for --prefix, those of the answers in `data`."""
    if config.recipe != "prefix":
        prompts = PROMPTS[str(config.recipe)]
        return prompts, prompts.keys()
    there = dict.fromkeys(response.key.perspective for response in data.responses)
    names = [name for name in there if config.perspectives is None or name in config.perspectives]
    return {name: prompt for name, prompt in data.prompts.items() if name in names}, names


def derived_requests(
    questions: Sequence[Question], data: JudgedData, prompts: Mapping[str, str], config: GenerateConfig
) -> list[Derived]:
    """The requests about the answers of `data` to `questions`, in the order of the answers.

    Questions that only `data` has are left out. Raises MindError for a question that `data` asks in other words or with
    another gold answer, for an answer without a verdict, for a perspective of `config` that `data` lacks, and if
    nothing is left to ask.
    """
    ask = {"dual": _dual, "rewrite": _rewrite, "prefix": _prefix}[str(config.recipe)]
    derived = [one for origin in _origins(questions, data, config) for one in ask(origin, prompts, config)]
    require(bool(derived), f"--{config.recipe} {config.origin}: it has no answer to the questions that this can use")
    return derived


def what_is_derived(derived: Sequence[Derived]) -> str:
    """The requests in words: "12 answers to be rectified, 30 answers to be corrupted"."""
    counts = Counter(one.made for one in derived)
    return ", ".join(f"{number_of(count, 'answer')} to be {made}" for made, count in sorted(counts.items()))


def _origins(questions: Sequence[Question], data: JudgedData, config: GenerateConfig) -> Iterator[Origin]:
    """The finished answers that are not empty, question by question."""
    asked = {question.id: question for question in data.questions}
    for question in questions:
        require(
            asked.get(question.id, question) == question,
            f"{config.origin}: question {question.id} is another one there: name its own questions, or generate anew",
        )
    known = {question.id for question in questions}
    answers: dict[str, list[Origin]] = {name: [] for name in known}
    for response in sorted(data.responses, key=lambda one: one.key):
        if response.key.question in known:
            if response.key not in data.verdicts:
                raise MindError(f"{config.origin}: {response.key} has no verdict: run `mind data judge` on it again")
            verdict = data.verdicts[response.key]
            answers[response.key.question].append(Origin(asked[response.key.question], response, verdict))
    there = dict.fromkeys(origin.key.perspective for of_one in answers.values() for origin in of_one)
    if missing := [name for name in config.perspectives or () if name not in there]:
        raise MindError(f"{config.origin} has no answers in the perspective {', '.join(missing)}")
    for question in questions:
        for origin in answers[question.id]:
            wanted = config.perspectives is None or origin.key.perspective in config.perspectives
            if wanted and is_finished(origin.response) and origin.answer is not None and origin.rationale:
                yield origin


def _dual(origin: Origin, prompts: Mapping[str, str], config: GenerateConfig) -> Iterator[Derived]:
    question = origin.question
    if origin.right:
        name, made, hint = "corrupt", "corrupted", ""
    elif origin.verdict.verdict == "wrong":
        name, made, hint = "rectify", "rectified", f"The correct answer is {question.answer}.\n\n"
    else:
        return
    given, wanted = ("Right", "Wrong") if origin.right else ("Wrong", "Right")
    user = (
        f"Question:\n{question_text(question)}\n\n{hint}{given} response:\n{origin.whole}\n\n"
        f"{last_line(question)}\n\n{wanted} response:"
    )
    yield from _asked(origin, made, prompts[name], user, config)


def _rewrite(origin: Origin, prompts: Mapping[str, str], config: GenerateConfig) -> Iterator[Derived]:
    if origin.right:
        user = (
            f"Question:\n{question_text(origin.question)}\n\nResponse:\n{origin.whole}\n\n"
            f"{last_line(origin.question)}\n\nShorter response:"
        )
        yield from _asked(origin, "rewritten", prompts["rewrite"], user, config)


def _prefix(origin: Origin, prompts: Mapping[str, str], config: GenerateConfig) -> Iterator[Derived]:
    if not origin.right:
        return
    perspective = origin.key.perspective
    require(perspective in prompts, f"--prefix {config.origin}: no prompt for {perspective}: give one by --prompts")
    user = user_turn(origin.question, show_answer=False)
    for cut, beginning in enumerate(beginnings(origin.rationale, config.cuts)):
        yield from _asked(origin, "continued", prompts[perspective], user, config, beginning, cut)


def beginnings(text: str, count: int) -> list[str]:
    """At most `count` beginnings of `text`, spread evenly, the shortest first, each with the white space after it. They
    end with a paragraph or, if there are too few, with a line or a sentence, but not with the number of the next list
    item; none is the whole text."""
    ends = [_ends(text, between) for between in _BREAKS]
    enough = next((found for found in ends if len(found) >= count), max(ends, key=len))
    chosen = min(count, len(enough))
    return [text[: enough[number * len(enough) // chosen]] for number in range(chosen)]


def _ends(text: str, between: re.Pattern[str]) -> list[int]:
    """The positions after the breaks of `text` that have some text before them."""
    ends, start = [], 0
    for match in between.finditer(text):
        if not _MARK.fullmatch(text, start, match.end()):
            ends.append(match.end())
        start = match.end()
    return ends


def _asked(
    origin: Origin, made: Made, system: str, user: str, config: GenerateConfig, beginning: str = "", cut: int = 0
) -> Iterator[Derived]:
    messages = ({"role": "system", "content": system}, {"role": "user", "content": user})
    for sample in range(config.samples):
        # Numbers the samples of one answer after another, so that a key always belongs to the same answer as long as
        # the number of samples stays the same.
        number = (origin.key.sample * config.cuts + cut) * config.samples + sample
        key = origin.key._replace(sample=number)
        yield Derived(chat_request(config.teacher, key, messages, beginning), made, origin.key)
