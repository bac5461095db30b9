"""Reads a model's reply: the answer, or why there is none and whether another attempt may give one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mind.answer_line import ANSWER_MARKER, split_thoughts
from mind.display import one_line, whole_characters
from mind.records import Response

STOP, LENGTH, UNKNOWN = "stop", "length", "unknown"
FINISHED = frozenset({STOP, "eos", "eos_token", "stop_sequence", "end_turn", "complete", "completed"})
"""Names that servers use for an answer that the model ended itself."""
CUT_OFF = frozenset(
    {
        LENGTH,
        "max_tokens",
        "max_output_tokens",
        "max_completion_tokens",
        "max_new_tokens",
        "max_length",
        "model_length",
        "model_context_window_exceeded",
    }
)
"""Names that servers use for an answer that reached the token limit."""
BROKEN = re.compile("error|abort|cancel|time_?out|preempt|closed|insufficient")
"""Words in the names that servers use for an answer that they broke off; another attempt may reach its end."""
FILTERED = frozenset(
    {"content_filter", "safety", "recitation", "blocked", "refusal", "sensitive", "prohibited_content"}
)
QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_MOST_TOKENS = 2**53
"""Larger numbers are not plausible token counts."""
_MAX_NAME = 40
_MAX_DEPTH = 8
"""How deep parts of a message may be nested."""
_Kind = Literal["text", "thought", "refusal"]
_PART_FIELDS = ("text", "thinking", "reasoning", "content", "value", "summary", "refusal")
"""Keys under which a part has its text, or further parts."""
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
"""Keys under which a message has its thoughts, as a text or as parts; if several are present they say the same, and the
first is used."""


@dataclass(eq=False)
class Problem(Exception):
    """Why an attempt gave no answer."""

    reason: str
    """A short phrase, by which problems are counted."""
    detail: str
    retry: bool = True
    ends_job: bool = False
    wait: float | None = None
    """Seconds that the server asks the client to wait."""
    tokens: tuple[int | None, int | None] | None = None
    """Tokens of prompt and reply, if the attempt may have been paid for; an entry is None if the server does not
    count."""
    text: str = ""
    """What the model had said, if it said something: it was paid for."""
    reasoning: str | None = None
    """What it had thought, as in `Completion`."""


@dataclass(frozen=True)
class Completion:
    """An answer; its text is empty if the thoughts took all the tokens."""

    text: str
    finish_reason: str
    """STOP, LENGTH, UNKNOWN if the server gives none, or the server's own name for an end that we do not know."""
    reasoning: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


def is_finished(response: Response) -> bool:
    """Whether the model ended this answer itself; if the server does not say, or by a name that we do not know, whether
    the last line is an answer."""
    if _reason(response.finish_reason) in FINISHED:
        return True
    last = response.text.rstrip().rpartition("\n")[2]
    return not is_cut_off(response) and bool(last.partition(ANSWER_MARKER)[2].strip())


def is_cut_off(response: Response) -> bool:
    """Whether the server says that this answer lacks its end."""
    reason = _reason(response.finish_reason)
    return reason in CUT_OFF | FILTERED or BROKEN.search(reason) is not None


def read_completion(body: Mapping[str, Any]) -> Completion:
    """The answer in the body of a chat completion; raises Problem if there is none."""
    tokens = _tokens(body.get("usage"))
    told = tokens if tokens != (None, None) else None
    if body.get("error") or not isinstance(body.get("choices"), list):
        raise _error_in_body(body, told)
    if not body["choices"]:
        raise Problem("empty answer", '"choices" is empty', tokens=told)
    choice = body["choices"][0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise Problem("malformed answer", "the first choice has no message", tokens=told)
    said: dict[str, list[str]] = {kind: [] for kind in get_args(_Kind)}
    for kind, text in _parts(message.get("content")):
        said[kind].append(text)
    if isinstance(message.get("refusal"), str):
        said["refusal"].append(message["refusal"])
    text = "".join(said["text"])
    thoughts = next((message[name] for name in _THOUGHTS if message.get(name)), None)
    reasoning = "\n".join(filter(None, [*(thought for _, thought in _parts(thoughts)), *said["thought"]])) or None
    if error := choice.get("error") or message.get("error"):
        raise _without_answer("ended by error", words_of(error), tokens, text, reasoning)
    if not text.strip() and said["refusal"]:
        words = "\n".join(said["refusal"])
        raise _without_answer("refused by the model", words, tokens, text, reasoning, retry=False)
    model = body.get("model")
    return completed(
        text,
        choice.get("finish_reason"),
        tokens,
        reasoning=reasoning,
        model=whole_characters(model) if isinstance(model, str) else None,
    )


def completed(
    text: str,
    finish_reason: Any,
    tokens: tuple[int | None, int | None],
    *,
    reasoning: str | None = None,
    model: str | None = None,
) -> Completion:
    """The answer that a model gave as `text`; raises Problem if it was broken off or is empty.

    An end by a name that we do not know is no reason to discard an answer: the name is kept with it. Text between marks
    of thought goes to `reasoning`. If the thoughts used up all the tokens, the result is an answer that was cut off,
    with an empty text: asking again would cost the same.
    """
    reason = _reason(finish_reason)
    name = one_line(reason, _MAX_NAME)
    text, thoughts = split_thoughts(text)
    reasoning = "\n".join(filter(None, (reasoning, thoughts))) or None
    is_known = reason in FINISHED | CUT_OFF | {UNKNOWN}
    is_broken = not is_known and BROKEN.search(reason) is not None
    if reason in FILTERED:
        detail = f"finish_reason is {reason}"
        raise _without_answer("refused by the content filter", detail, tokens, text, reasoning, retry=False)
    if is_broken or not (is_known or text.strip()):
        detail = f"finish_reason is {name}, after {len(text):,} characters"
        raise _without_answer(f"ended by {name}", detail, tokens, text, reasoning, retry=is_broken)
    if not text.strip() and reason not in CUT_OFF:
        where = "thoughts alone" if reasoning else "no text"
        detail = f"{where}, finish_reason is {reason}"
        raise _without_answer("empty answer", detail, tokens, text, reasoning, retry=reasoning is None)
    ended = STOP if reason in FINISHED else LENGTH if reason in CUT_OFF else name
    reasoning = None if reasoning is None else whole_characters(reasoning)
    return Completion(whole_characters(text) if text.strip() else "", ended, reasoning, model, *tokens)


def _without_answer(
    reason: str,
    detail: str,
    tokens: tuple[int | None, int | None],
    text: str,
    reasoning: str | None,
    *,
    retry: bool = True,
) -> Problem:
    """The problem of an attempt that was paid for, with what the model said in it."""
    said = whole_characters(text) if text.strip() else ""
    return Problem(reason, detail, retry, tokens=tokens, text=said, reasoning=reasoning and whole_characters(reasoning))


def _reason(finish_reason: Any) -> str:
    """A finish reason in lower case, without the name of its type ("FINISH_REASON_STOP"); UNKNOWN if there is none."""
    name = finish_reason.strip().lower() if isinstance(finish_reason, str) else ""
    name = name.removeprefix("finish_reason_").removeprefix("finishreason.")
    return UNKNOWN if name in ("", "none", "null", "unspecified") else name


def status_problem(status: int, codes: Iterable[Any], detail: str, wait: float | None = None) -> Problem:
    """The problem of a reply with this HTTP status, or with this number as its error; `codes` are the error's code and
    type."""
    if QUOTA_CODES & {code for code in codes if isinstance(code, str)}:
        return Problem("quota used up", detail, ends_job=True)
    if status in (401, 402, 403, 404, 405):
        return Problem(f"status {status}", detail, ends_job=True)
    return Problem(f"status {status}", detail, retry=status in (408, 409, 429) or status >= 500, wait=wait)


def _error_in_body(body: Mapping[str, Any], tokens: tuple[int | None, int | None] | None) -> Problem:
    """The problem of a body that contains an error (whatever its status) or has no choices; only reported tokens count
    as used."""
    error = body.get("error") or body
    fields = error if isinstance(error, dict) else {}
    status = _first_status(fields.get("code"), fields.get("status"), body.get("code"))
    codes = (fields.get("code"), fields.get("type"))
    if status is not None or QUOTA_CODES & {code for code in codes if isinstance(code, str)}:
        problem = status_problem(status or 0, codes, words_of(error))
    elif error is body:
        problem = Problem("malformed answer", f'the body has no list "choices": {words_of(body)}')
    else:
        problem = Problem("error in place of an answer", words_of(error))
    problem.tokens = tokens
    return problem


def _first_status(*values: Any) -> int | None:
    """The first of `values` that is an HTTP error number, as a JSON number or text."""
    for value in values:
        if isinstance(value, int | str) and re.fullmatch("[45][0-9][0-9]", str(value)):
            return int(value)
    return None


def words_of(error: Any) -> str:
    """The message of a JSON error, wherever it is."""
    if isinstance(error, dict):
        for name in ("message", "detail", "msg", "error", "reason"):
            if isinstance(error.get(name), str) and error[name].strip():
                return error[name]
    return error if isinstance(error, str) else json.dumps(error)


def _parts(content: Any, depth: int = 0) -> Iterator[tuple[_Kind, str]]:
    """The texts in a message's content, which may be a list of parts, and the kind of each."""
    if isinstance(content, str):
        yield "text", content
    elif depth == _MAX_DEPTH:
        return
    elif isinstance(content, list):
        for part in content:
            yield from _parts(part, depth + 1)
    elif isinstance(content, dict):
        own = _kind(content)
        inner = next((content[name] for name in _PART_FIELDS if content.get(name)), None)
        for kind, text in _parts(inner, depth + 1):
            yield kind if own == "text" else own, text


def _kind(part: Mapping[str, Any]) -> _Kind:
    name = part.get("type")
    name = name if isinstance(name, str) else ""
    if name.startswith(("think", "thought", "reason", "analysis")) or part.get("thought") is True:
        return "thought"
    return "refusal" if name == "refusal" else "text"


def _tokens(usage: Any) -> tuple[int | None, int | None]:
    """The counted tokens of prompt and reply, under the names of chat completions or those of newer interfaces."""
    usage = usage if isinstance(usage, dict) else {}
    prompt, reply = (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
    first, second = (next((usage[name] for name in names if name in usage), None) for names in (prompt, reply))
    return _count(first), _count(second)


def _count(value: Any) -> int | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if number and 0 <= value <= _MOST_TOKENS and value == int(value) else None
