"""Makes the requests to a teacher: question x perspective x sample, each with a key and a digest."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mind.answer_line import ANSWER_MARKER
from mind.data.fields import text_of, whole_text
from mind.data.problems import Problems
from mind.display import meant
from mind.errors import MindError, require
from mind.files import parse_object, read_object
from mind.grading import answer_type
from mind.perspectives import KNOWLEDGE, KNOWLEDGE_PROMPT, PAPER_PERSPECTIVES, PERSPECTIVES
from mind.provenance import text_digest
from mind.records import Key, Question, Response
from mind.student.tokenization import question_text
from mind.teacher.config import MAX_PERSPECTIVES, GenerateConfig, ModelConfig
from mind.typed_json import described

MAX_DETAIL_CHARACTERS = 500
"""Longest `Failure.detail`."""


@dataclass(frozen=True)
class Request:
    """One chat completion: the `messages` and how to sample their answer."""

    key: Key
    digest: str
    """Digest of all that decides the answer: the model's name, the messages and the sampling parameters."""
    messages: tuple[dict[str, str], ...]
    """{"role", "content"} each."""
    max_tokens: int
    temperature: float | None
    top_p: float | None
    seed: int | None
    beginning: str = ""
    """The beginning of the answer, including the white space at its end. The last message, the assistant's, holds the
    same without that white space, and the answer continues it."""

    def whole(self, text: str) -> str:
        """The complete answer, given the model's `text`: with the beginning, which some servers repeat."""
        said = self.beginning.rstrip()
        if text.startswith(said):
            return text
        return said + text if text[:1].isspace() else self.beginning + text


@dataclass(frozen=True)
class Failure:
    """A request that was given up. The next start asks it again."""

    key: Key
    reason: str
    """A short phrase, by which failures are counted: "status 500", "time-out", "empty answer"."""
    detail: str
    """One line, at most MAX_DETAIL_CHARACTERS long."""
    attempts: int

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}: {self.detail}"


@dataclass(frozen=True)
class Wasted:
    """An attempt that gave no answer but may have been paid for, as wasted.jsonl holds it: its tokens, and its text."""

    key: Key
    reason: str
    """The reason of the failure or of the next attempt."""
    prompt_tokens: int
    completion_tokens: int
    counted: bool
    """False if the server did not say: then these are the largest possible numbers."""
    created: str
    text: str = ""
    """What the model had said until then."""
    reasoning: str | None = None
    """What it had thought until then, if the server returns it."""


Outcome = Response | Failure | Wasted


def teacher_requests(
    questions: Sequence[Question], prompts: Mapping[str, str], config: GenerateConfig
) -> Iterator[Request]:
    """The requests of a data set, question by question, so that a job that stops early has complete questions.

    The request for general rules shows only the question, and is made once: rules made with the gold answer would give
    it away, and no answer is wanted.
    """
    for question in questions:
        turn = user_turn(question, show_answer=config.show_answer)
        for perspective, prompt in prompts.items():
            user, samples = (question_text(question), 1) if perspective == KNOWLEDGE else (turn, config.samples)
            messages = ({"role": "system", "content": prompt}, {"role": "user", "content": user})
            for sample in range(samples):
                yield chat_request(config.teacher, Key(question.id, perspective, sample), messages)


def chat_request(model: ModelConfig, key: Key, messages: tuple[dict[str, str], ...], beginning: str = "") -> Request:
    """A request with the model's sampling parameters; if the model has a seed, the request gets its own seed derived
    from it.

    If `beginning` is given, the answer continues it.
    """
    messages = (*messages, {"role": "assistant", "content": beginning.rstrip()}) if beginning else messages
    # With one seed for all, the samples of a prompt would be copies of one another.
    seed = None if model.seed is None else int(_json_digest([model.seed, *key])[:7], 16)
    sampling = {"max_tokens": model.max_tokens, "temperature": model.temperature, "top_p": model.top_p, "seed": seed}
    extra = parse_object("extra_body", model.extra_body.encode())
    digest = _json_digest([model.model, list(messages), sampling, *([extra] if extra else [])])[:16]
    return Request(key, digest, messages, model.max_tokens, model.temperature, model.top_p, seed, beginning)


def user_turn(question: Question, *, show_answer: bool) -> str:
    """The question as the student sees it, how to end the answer and, with `show_answer`, the gold answer."""
    lines = [question_text(question), ""]
    if show_answer:
        lines.append(
            f"The correct answer is {question.answer}. Reason as somebody who has to find it, and do not "
            "mention that it was given."
        )
    return "\n".join([*lines, last_line(question)])


def last_line(question: Question) -> str:
    """The instruction that asks for the last line of an answer."""
    return f'End with a line that holds "{ANSWER_MARKER} " and {answer_type(question).request}, and nothing else.'


def load_prompts(perspectives: Sequence[str] | None, path: str | None, *, knowledge: bool = False) -> dict[str, str]:
    """The prompt of each perspective: from PERSPECTIVES, unless the JSON file at `path` has another.

    If `perspectives` is None, they are those of the file or, without a file, the paper's. With `knowledge` the prompt
    KNOWLEDGE follows, in the wording of the file if it has one. A warning names prompts of the file that are not asked
    for. Raises MindError for a file that is not an object of texts, and for a perspective without a prompt.
    """
    own = {} if path is None else own_prompts(path)
    prompts = {name: perspective.prompt for name, perspective in PERSPECTIVES.items()} | own
    asked = tuple(name for name in own if name != KNOWLEDGE) or PAPER_PERSPECTIVES
    asked = asked if perspectives is None else perspectives
    if missing := [name for name in asked if name not in prompts]:
        raise MindError(
            f"no prompt for the perspective {', '.join(missing)}: those with one are {', '.join(prompts)}"
            f"{meant(missing[0], prompts)}; give yours in a JSON file of {{perspective: prompt}} as --prompts"
        )
    if knowledge:
        prompts, asked = {KNOWLEDGE: KNOWLEDGE_PROMPT} | prompts, (*asked, KNOWLEDGE)
    if unused := [name for name in own if name not in asked]:
        why = "--knowledge is not given" if unused == [KNOWLEDGE] else "--perspectives leaves them out"
        warnings.warn(
            f"{path}: not asked for, as {why}: {', '.join(unused)}",
            RuntimeWarning,
            stacklevel=2,
        )
    return {name: prompts[name] for name in asked}


def own_prompts(path: str) -> dict[str, str]:
    """The prompts of a file by name; raises MindError unless it is an object of texts."""
    prompts = read_object(path)
    require(1 <= len(prompts) <= MAX_PERSPECTIVES, f"{path}: {len(prompts)} prompts: expected 1 to {MAX_PERSPECTIVES}")
    problems = Problems(path)
    read = [problems.attempt(path, _prompt, path, name, prompt) for name, prompt in prompts.items()]
    problems.check([prompt for prompt in read if prompt is not None])
    return prompts


def _prompt(path: str, name: str, prompt: Any) -> str:
    """`prompt`; raises MindError for a name that training would refuse later, after all answers are paid for."""
    require(
        bool(name.strip()) and name.isprintable(),
        f"{path}: a perspective is named {described(name)}: expected a name that can be printed",
    )
    return whole_text(path, name, text_of(path, name, prompt))


def _json_digest(value: object) -> str:
    return text_digest(json.dumps(value, sort_keys=True))
