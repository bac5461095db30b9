"""What is asked of a teacher: question x perspective x sample, each a request with a key and a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mind.answer_line import ANSWER_MARKER
from mind.errors import MindError
from mind.files import parse_object
from mind.perspectives import PERSPECTIVES
from mind.records import Key, Question
from mind.student.tokenization import question_text
from mind.teacher.config import GenerateConfig, TeacherConfig

MAX_DETAIL_CHARACTERS = 300


@dataclass(frozen=True)
class Request:
    """One chat completion: the `messages` and how to sample their answer."""

    id: str
    """Of the question."""
    perspective: str
    sample: int
    digest: str
    """Of all that decides the answer: the model's name, the messages and the sampling parameters."""
    messages: tuple[dict[str, str], ...]
    """{"role", "content"} each."""
    max_tokens: int
    temperature: float | None
    top_p: float | None
    seed: int | None

    @property
    def key(self) -> Key:
        return self.id, self.perspective, self.sample


@dataclass(frozen=True)
class Failure:
    """A request that was given up on. It is asked again by the next start."""

    id: str
    perspective: str
    sample: int
    reason: str
    """A short phrase to count by: "status 500", "time-out", "empty answer"."""
    detail: str
    attempts: int


def teacher_requests(
    questions: Sequence[Question], prompts: Mapping[str, str], config: GenerateConfig
) -> Iterator[Request]:
    """The requests of a data set, question by question, so that a job that stops early leaves whole questions."""
    for question in questions:
        user = user_turn(question, show_answer=config.show_answer)
        for perspective, prompt in prompts.items():
            messages = ({"role": "system", "content": prompt}, {"role": "user", "content": user})
            for sample in range(config.samples):
                yield chat_request(config.teacher, (question.id, perspective, sample), messages)


def chat_request(teacher: TeacherConfig, key: Key, messages: tuple[dict[str, str], ...]) -> Request:
    """A request with the teacher's sampling parameters and, where it has a seed, one of the request's own."""
    # One seed for all would make the samples of a prompt copies of one another.
    seed = None if teacher.seed is None else int(_hash([teacher.seed, *key])[:7], 16)
    sampling = {
        "max_tokens": teacher.max_tokens,
        "temperature": teacher.temperature,
        "top_p": teacher.top_p,
        "seed": seed,
    }
    return Request(*key, _hash([teacher.model, list(messages), sampling])[:16], messages, **sampling)


def user_turn(question: Question, *, show_answer: bool) -> str:
    """The question as the student sees it, how to end, and the gold answer where the teacher may see it."""
    what = "the label of the right choice" if question.choices else "the final answer"
    lines = [question_text(question), ""]
    if show_answer:
        lines.append(
            f"The correct answer is {question.answer}. Reason as somebody who has to find it, and do not "
            "mention that it was given."
        )
    lines.append(f'End with a line that holds "{ANSWER_MARKER} " and {what}, and nothing else.')
    return "\n".join(lines)


def load_prompts(perspectives: Sequence[str], path: str | None) -> dict[str, str]:
    """The prompt of each perspective: the paper's manners in our words, and what the JSON file at `path` says instead.

    Raises MindError for a file that is not an object of texts, and for a perspective without a prompt.
    """
    prompts = {name: perspective.prompt for name, perspective in PERSPECTIVES.items()}
    if path is not None:
        if not Path(path).is_file():
            raise MindError(f"{path}: no such file")
        for name, prompt in parse_object(path, Path(path).read_bytes()).items():
            if not isinstance(prompt, str) or not prompt.strip():
                raise MindError(f"{path}: the prompt of {name} is not a text")
            prompts[name] = prompt
    if missing := [name for name in perspectives if name not in prompts]:
        raise MindError(
            f"no prompt for the perspective {missing[0]}: those with one are {', '.join(prompts)}; "
            "give yours in a JSON file of {perspective: prompt} as --prompts"
        )
    return {name: prompts[name] for name in perspectives}


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def one_line(text: str) -> str:
    """`text` as the detail of a failure: without line breaks, and not long."""
    return " ".join(text.split())[:MAX_DETAIL_CHARACTERS]


def name_of(key: Key) -> str:
    """How messages call the answer with this key."""
    question, perspective, sample = key
    return f"sample {sample} of {perspective} for question {question}"


def text_digest(text: str) -> str:
    """SHA-256 of `text`, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _hash(value: object) -> str:
    return text_digest(json.dumps(value, sort_keys=True))
