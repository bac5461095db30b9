"""Reads off a chat template the text that it writes around a question and its answer.

A template is a program that comes with the tokenizer. It may raise an error, drop the question, require lists of parts,
or end a turn in any way. So it is rendered once with two words that no template contains, and everything else is read
off the text around them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from mind.display import describe
from mind.errors import MindError
from mind.student.template_limits import MEND, LimitError, check_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TODAY = date(2026, 1, 1)
"""The date that templates get: the same in every run, whenever it is started, resumed or evaluated. Otherwise its
tokens would change from day to day."""

PLAIN = "plain"
"""The name of `plain_template`."""

_CODES = {f"%{code}": TODAY.strftime(f"%{code}") for code in "aAbBcdDeFfGHIjmMpSTuUVwWxXyY"} | {
    f"%-{code}": TODAY.strftime(f"%{code}").lstrip("0") or "0" for code in "dHIjmMS"
}
_ON_TODAY = """{%- macro strftime_now(format) -%}{%- set date = namespace(text=format) -%}
{%- for code, value in CODES.items() -%}{%- set date.text = date.text | replace(code, value) -%}{%- endfor -%}
{{- date.text -}}{%- endmacro %}
""".replace("CODES", repr(_CODES))
"""Put before a template: defines a strftime_now that knows only one day."""
_QUESTION, _ANSWER = "Qx71questionxQ", "Ax71answerxA"


@dataclass(frozen=True)
class ChatTemplate:
    """A finished conversation is before + question + between + lead + answer + end; generation begins after `between`.

    `lead` is nearly always empty; otherwise it is a space, or an empty block of thoughts, that the assistant itself has
    to write.
    """

    source: str
    """The Jinja source, with `TODAY` as the date."""
    parts: bool
    """Whether a turn's content is a list of parts instead of a text."""
    before: str
    between: str
    lead: str
    end: str
    """Up to and including its first control token if it has one, else without the whitespace at its end."""
    end_token: str | None
    """The control token that `end` ends with; None if it ends with text or is empty: then the tokenizer's
    end-of-sequence token must follow."""
    notes: tuple[str, ...]
    """What is unusual about the template, one line each."""

    def content(self, text: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """The user's `text` as the template writes it, which may strip whitespace at its ends.

        None if it writes anything else, or something else around it than around other questions.
        """
        asked = _render(tokenizer, self.source, _turns(self.parts, text))
        content = asked[len(self.before) : len(asked) - len(self.between)]
        whole = self.before + content + self.between == asked
        return content if whole and content.strip() == text.strip() else None

    def kept(self, space: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """The part of the whitespace `space` before an answer that the template keeps: all of it, some or none."""
        plain, spaced = (
            _render(tokenizer, self.source, _turns(self.parts, _QUESTION, answer)).partition(_ANSWER)[0]
            for answer in (_ANSWER, space + _ANSWER)
        )
        return spaced.removeprefix(plain)


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """A chat template for a tokenizer without one: a question, its answer and the end-of-sequence token.

    It starts with the beginning-of-sequence token if the tokenizer puts that before a text.
    """
    ids: Any = tokenizer("x")["input_ids"]
    start = "{{ bos_token }}" if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else ""
    return start + (
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\n' }}"
        "{% elif message['role'] == 'assistant' %}{{ 'Answer:\n' + message['content'] }}{{ eos_token }}{{ '\n\n' }}"
        "{% else %}{{ message['content'] + '\n\n' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Answer:\n' }}{% endif %}"
    )


def read_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """Reads off a tokenizer's chat template what it writes around a question and its answer.

    Raises MindError for a tokenizer without a template, for a template that does not write a question and its answer
    exactly once each, in this order, and for one that does not pass `check_ends`.
    """
    name = tokenizer.name_or_path or "the student"
    if not getattr(tokenizer, "chat_template", None):
        raise MindError(
            f"{name}: its tokenizer has no chat template, as those of base models: take the model's chat version, or "
            f'--student.chat-template {PLAIN}, which writes "Question: ..." and "Answer: ...", or a Jinja file'
        )
    faults = []
    for parts in (False, True):
        try:
            source = _dated(tokenizer)
            check_ends(functools.partial(_render_all, tokenizer, source, parts))
            return _read(tokenizer, source, parts)
        except LimitError as error:  # the other form would wait as long again
            raise MindError(f"{name}: its chat template {error}") from error
        except MindError as error:
            faults.append(str(error))
    raise MindError(f"{name}: its chat template {faults[0]}, with texts and with lists of parts as content; {MEND}")


def _read(tokenizer: PreTrainedTokenizerBase, source: str, parts: bool) -> ChatTemplate:
    asked = _render(tokenizer, source, _turns(parts, _QUESTION))
    finished = _render(tokenizer, source, _turns(parts, _QUESTION, _ANSWER))
    _check_order(asked, finished)
    if parts and re.search(r"""["']type["']: ?["']text["']""", asked):
        raise MindError("writes lists of parts as they are in memory")
    before, between = asked.split(_QUESTION)
    written, after = finished.split(_ANSWER)
    notes = []
    if source != tokenizer.get_chat_template():
        notes.append(f"its chat template writes the date: it is {TODAY:%d %B %Y} in all prompts")
    lead = written.removeprefix(asked) if written.startswith(asked) else ""
    if lead.strip():
        notes.append(f"its chat template begins an answer by {lead!r}: the student learns to write that")
    elif not written.startswith(asked):
        notes.append(
            f"its chat template begins a finished answer otherwise than the prompt of generation, {between!r}: "
            "the student learns to go on from the latter"
        )
    end, end_token = _end(after, [token.content for token in tokenizer.added_tokens_decoder.values()])
    if end_token is None:
        ending = f"ends an answer by text, {end!r}," if end else "writes nothing after an answer"
        if tokenizer.eos_token_id is None:
            raise MindError(f"{ending} and the tokenizer has no end-of-sequence token")
        notes.append(f"its chat template {ending} and no token: the student learns to end with {tokenizer.eos_token}")
    return ChatTemplate(source, parts, before, between, lead, end, end_token, tuple(notes))


def _render_all(tokenizer: PreTrainedTokenizerBase, source: str, parts: bool) -> None:
    """All that `_read` renders."""
    for texts in ((_QUESTION,), (_QUESTION, _ANSWER)):
        _render(tokenizer, source, _turns(parts, *texts))


def _check_order(asked: str, finished: str) -> None:
    """Raises MindError unless question and answer occur exactly once each, in order, and with text between them."""
    for what, mark, text in [
        ("the question", _QUESTION, asked),
        ("the question", _QUESTION, finished),
        ("the answer", _ANSWER, finished),
    ]:
        if (count := text.count(mark)) != 1:
            raise MindError(f"writes {what} {f'{count} times' if count else 'not at all, or changed'}")
    if finished.index(_ANSWER) < finished.index(_QUESTION):
        raise MindError("writes the answer before the question")
    if _QUESTION + _ANSWER in finished:
        raise MindError("writes nothing between the question and the answer")


def _end(after: str, tokens: Sequence[str]) -> tuple[str, str | None]:
    """`ChatTemplate.end` and `end_token`, given the text after the answer; if several tokens start at the first place,
    the longest."""
    first = min(
        ((after.index(token), -len(token), token) for token in tokens if token.strip() and token in after),
        default=None,
    )
    if first is None:
        return after.rstrip(), None
    start, _, token = first
    return after[: start + len(token)], token


def _turns(parts: bool, *texts: str) -> list[dict[str, Any]]:
    return [
        {"role": role, "content": [{"type": "text", "text": text}] if parts else text}
        for role, text in zip(("user", "assistant"), texts, strict=False)
    ]


def _render(tokenizer: PreTrainedTokenizerBase, source: str, turns: list[dict[str, Any]]) -> str:
    """The text of a conversation, up to the place where the assistant begins if it has not answered yet."""
    try:
        text = tokenizer.apply_chat_template(
            turns, chat_template=source, tokenize=False, add_generation_prompt=len(turns) == 1
        )
    except Exception as error:  # a program of strangers may raise anything
        raise MindError(f"cannot be rendered: {describe(error)}") from error
    assert isinstance(text, str), "tokenize=False"
    return text


def _dated(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template's source, changed so that it gets `TODAY` as the date."""
    try:
        source = tokenizer.get_chat_template()
    except ValueError as error:  # several templates, none of them the default
        raise MindError(f"cannot be chosen: {error}") from error
    return _ON_TODAY + source if "strftime_now" in source else source
