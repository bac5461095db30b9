"""Turns questions into token ids: the chat template's prompt, each rationale, and the answer suffix.

The ids of a sequence are those of its text as a whole, with two exceptions. Only the template may write control tokens:
in a question, a rationale or an answer they are encoded as plain text. And the ids of a suffix do not depend on the
rationale before it, so that answers are aligned.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from mind.answer_line import suffix
from mind.display import meant
from mind.errors import MindError, require
from mind.progress import tracked
from mind.records import Question, TokenizedQuestion
from mind.student.templates import read_template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CONTEXTS = ("x", ".", "1", "\n")
"""Texts before a place, as contexts for encoding a text that can follow anything there: the first that works is
used."""
_LAST_CHARACTERS = (".", "x", "1", ")", "]", "}", "!", "?", ":", "$", "*", "%", '"', "'")
"""Characters at the end of rationales with which the seam is tried."""


def question_text(question: Question) -> str:
    """The user's turn: the question, and one line per choice if it has choices."""
    if not question.choices:
        return question.question
    return "\n".join([question.question, *(f"({label}) {text}" for label, text in question.choices.items())])


def embedding_rows(model: PreTrainedModel) -> int:
    """The number of tokens that a model knows: its embedding and its head both have all smaller ids."""
    tables: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    return min(table.weight.shape[0] for table in tables)


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop_text: str | None = None) -> str:
    """The text of the token ids, without special tokens, up to `stop_text` if that is given."""
    text = cast(str, tokenizer.decode(list(ids), skip_special_tokens=True))
    return text if stop_text is None else text.partition(stop_text)[0]


class Chat:
    """A tokenizer together with what its chat template writes around a question and its answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: int | None = None) -> None:
        """`rows` is `embedding_rows` of the model that gets the ids; None: no limit.

        Raises MindError for a tokenizer without a chat template, and for a template that does not write a question and
        its answer once each and in order. The methods raise one that names the question whose text cannot be encoded.
        """
        self.template = template = read_template(tokenizer)
        self.tokenizer: Any = tokenizer
        self._rows = rows
        end_token: str = template.end_token or self.tokenizer.eos_token
        # The first control token that the template writes after an answer, or the end-of-sequence token.
        self.end_id: int = self.tokenizer.convert_tokens_to_ids(end_token)
        written = template.before + template.between + template.lead + template.end
        # A token that is not special, such as a run of spaces, is text like any other unless the template writes it.
        self._controls = {
            number: token.content
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special or (token.content in written and token.content.strip())
        } | {self.end_id: end_token}
        self._looks_like_control = re.compile(f"(?={'|'.join(map(re.escape, self._controls.values()))})")
        if self.tokenizer.unk_token_id not in (self.end_id, self.tokenizer.eos_token_id):
            self._controls.pop(self.tokenizer.unk_token_id, None)  # stands for anything that the vocabulary lacks
        last = max(template.between.rfind(token) for token in self._controls.values())
        start_of_turn = template.between[max(last, 0) :]
        self._start_contexts = (start_of_turn, *_CONTEXTS) if start_of_turn else _CONTEXTS
        self._seam = self._find_seam()

    @property
    def stop_text(self) -> str | None:
        """The text that ends a turn, instead of or before a control token; None if there is none."""
        return self.template.end.removesuffix(self.template.end_token or "").strip() or None

    def prompt(self, question: Question) -> list[int]:
        """Token ids of the user's turn, up to the place where the assistant begins."""
        place, text = f"question {question.id}: its text", question_text(question)
        _check_characters(place, text)
        try:
            content = self.template.content(text, self.tokenizer)
        except MindError as error:
            raise MindError(f"{place}: the chat template {error}") from error
        if content is None:
            raise MindError(f"{place} is changed by the chat template, or surrounded by something else than others are")
        return self._encode(place, content, before=self.template.before, after=self.template.between)

    def rationale(self, question: Question, perspective: str, text: str) -> list[int]:
        """Token ids of a rationale, which is the start of the assistant's turn."""
        place = f"question {question.id}: its {perspective} rationale"
        if space := text[: len(text) - len(text.lstrip())]:
            text = self.template.kept(space, self.tokenizer) + text.lstrip()
        return self._encode(place, text, before=self.template.lead, after=self._seam, contexts=self._start_contexts)

    def suffix(self, question: Question) -> list[int]:
        """Token ids of the answer suffix with the end of the turn; they do not depend on the rationale."""
        place = f"question {question.id}: its answer"
        text = suffix(question.answer).removeprefix(self._seam)
        ids = self._encode(place, text, after=self.template.end, contexts=_CONTEXTS)
        if self.template.end_token:
            return ids
        self._check_rows(place, [self.end_id])
        return [*ids, self.end_id]

    def answer_tokens(self, question: Question) -> tuple[int, ...]:
        """The indices of the tokens of `suffix` that have a character of the answer.

        Raises MindError for a tokenizer that does not say which characters a token covers, or says that no token covers
        any.
        """
        text = suffix(question.answer).removeprefix(self._seam)
        start, end = len(text) - len(question.answer), len(text)
        if not self.tokenizer.is_fast:
            kind = type(self.tokenizer).__name__
            raise MindError(
                f"which tokens are the answer is not known, since the tokenizer, a {kind}, does not tell the "
                "characters of a token: a fast one, with a tokenizer.json, does"
            )
        found, place, count = [], 0, 0
        for piece in self._pieces(text, after=self.template.end):
            context, ids = self._continued(f"question {question.id}: its answer", piece, _CONTEXTS)
            spans = self.tokenizer(
                context + piece, add_special_tokens=False, split_special_tokens=False, return_offsets_mapping=True
            )["offset_mapping"]
            for i, (first, last) in enumerate(spans[len(spans) - len(ids) :]):
                begins, ends = (place + index - len(context) for index in (first, last))
                if begins < end and ends > start and begins < ends:
                    found.append(count + i)
            place, count = place + len(piece), count + len(ids)
        require(bool(found), f"question {question.id}: by the tokenizer no token has a character of its answer")
        return tuple(found)

    def end(self) -> list[int]:
        """Token ids of the end of the turn, after a rationale without an answer line."""
        ids = self._continue("the end of a turn", self.template.end, _CONTEXTS) if self.template.end else []
        return ids if self.template.end_token else [*ids, self.end_id]

    def text(self, text: str) -> list[int]:
        """Token ids of a text alone, outside the template."""
        return self._encode(f"the text {text[:40]!r}", text)

    def _find_seam(self) -> str:
        """The start of the suffix that a token may join to the end of a rationale, and that is therefore encoded with
        it: empty, or the line break, which many tokenizers join to the full stop before it."""
        text = suffix("1")
        for seam in ("", text[:1]):
            rests = set()
            for character in _LAST_CHARACTERS:
                end, whole = self._ids(character + seam), self._ids(character + text)
                rests.add(tuple(whole[len(end) :]) if whole[: len(end)] == end else None)
            if len(rests) == 1 and None not in rests:
                return seam
        return ""

    def _encode(
        self, place: str, text: str, *, before: str = "", after: str = "", contexts: Sequence[str] = ()
    ) -> list[int]:
        """Ids of a text of the data between two texts of the template, as a beginning or as the continuation of a
        context.

        What looks like a control token is cut after its first character, so that it is not one any more.
        """
        _check_characters(place, text)
        pieces = self._pieces(text, before, after)
        ids = self._continue(place, pieces[0], contexts) if contexts else self._ids(pieces[0])
        for piece in pieces[1:]:
            ids += self._continue(place, piece, _CONTEXTS)
        self._check(place, ids, self._ids(before) + self._ids(after))
        return ids

    def _pieces(self, text: str, before: str = "", after: str = "") -> list[str]:
        """The parts in which a text between two texts of the template is encoded, one after the other."""
        cuts = [found.start() + 1 for found in self._looks_like_control.finditer(text)]
        pieces = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
        pieces[0] = before + pieces[0]
        pieces[-1] += after
        return pieces

    def _ids(self, text: str) -> list[int]:
        # Whatever the tokenizer's configuration says: only the template may write control tokens.
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]

    def _continue(self, place: str, text: str, contexts: Sequence[str]) -> list[int]:
        """Ids of a text after the first of the contexts with which it shares no token.

        These are the ids of the text alone, unless the tokenizer puts something before a beginning, as SentencePiece
        tokenizers put a space.
        """
        return self._continued(place, text, contexts)[1]

    def _continued(self, place: str, text: str, contexts: Sequence[str]) -> tuple[str, list[int]]:
        """That context, and the ids of the text after it."""
        for context in contexts:
            start, whole = self._ids(context), self._ids(context + text)
            if whole[: len(start)] == start:
                return context, whole[len(start) :]
        raise MindError(
            f"{place} begins with {text[:20]!r}, which the tokenizer makes one token with whatever precedes it"
        )

    def _check(self, place: str, ids: list[int], template_ids: list[int]) -> None:
        found, written = (Counter(i for i in some if i in self._controls) for some in (ids, template_ids))
        for strange in found - written:
            raise MindError(
                f"{place} holds {self._controls[strange]!r}, a control token that the tokenizer cannot encode as text"
            )
        for lost in written - found:
            raise MindError(
                f"{place} keeps the tokenizer from reading {self._controls[lost]!r}, which the chat template writes "
                "beside it, as a control token"
            )
        self._check_rows(place, ids)

    def _check_rows(self, place: str, ids: list[int]) -> None:
        if self._rows is not None and max(ids, default=0) >= self._rows:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise MindError(
                f"{place} has the token {token!r}, id {max(ids)}, and the model has {self._rows} embeddings: "
                f"model.resize_token_embeddings({len(self.tokenizer)}) adds what is missing"
            )

    def change(self, texts: Sequence[str], ids: Sequence[int]) -> str | None:
        """The first of the texts that cannot be recovered from the `ids` of their sequence, and what becomes of it, in
        words; None if all can."""
        read = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        lost = next((text.strip() for text in texts if text.strip() not in read), None)
        if lost is None:
            return None
        alone = self.tokenizer.decode(self._ids(lost), clean_up_tokenization_spaces=False).strip()
        differ = (i for i, (one, other) in enumerate(zip(lost, alone, strict=False)) if one != other)
        start = max(0, next(differ, 0) - 10)
        return f"{lost[start : start + 30]!r} becomes {alone[start : start + 30]!r}"


def tokenize(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    perspectives: Sequence[str],
    max_length: int,
    rows: int | None = None,
) -> list[TokenizedQuestion]:
    """Token ids of every training sequence; `rows` is `embedding_rows` of the model.

    Warns if the tokenizer changes texts, for example by dropping capitals. Raises MindError for a perspective that is
    not among `perspectives`, a sequence longer than `max_length`, and as `Chat` does.
    """
    slots = {name: k for k, name in enumerate(perspectives)}
    chat = Chat(tokenizer, rows)
    changes = []
    tokenized = []
    for question in tracked(questions, "tokens", "question"):
        prompt, ending = chat.prompt(question), chat.suffix(question)
        rationales = {}
        for rationale in question.rationales:
            if rationale.perspective not in slots:
                raise MindError(
                    f"question {question.id}: unknown perspective {rationale.perspective!r}; "
                    f"the configuration names {', '.join(perspectives)}{meant(rationale.perspective, perspectives)}"
                )
            ids = chat.rationale(question, rationale.perspective, rationale.text)
            length = len(prompt) + len(ids) + len(ending)
            if length > max_length:
                raise MindError(
                    f"question {question.id}: its {rationale.perspective} rationale makes a sequence of "
                    f"{length} tokens; student.max_length is {max_length}"
                )
            rationales[slots[rationale.perspective]] = tuple(ids)
            texts = (question_text(question), rationale.text, suffix(question.answer))
            if change := chat.change(texts, [*prompt, *ids, *ending]):
                changes.append(f"question {question.id}: {change}")
        tokenized.append(TokenizedQuestion(question.id, tuple(prompt), rationales, tuple(ending)))
    if changes:
        warnings.warn(
            f"the tokenizer changes texts in {len(changes)} of {sum(len(one.rationales) for one in tokenized)} "
            f"sequences, and the student learns the changed ones; {changes[0]}",
            RuntimeWarning,
            stacklevel=2,
        )
    return tokenized


def with_answers(
    questions: Sequence[Question], tokenized: Sequence[TokenizedQuestion], tokenizer: PreTrainedTokenizerBase
) -> list[TokenizedQuestion]:
    """The tokenized questions with `answer` filled in; raises MindError as `Chat.answer_tokens`."""
    chat = Chat(tokenizer)
    both = zip(questions, tokenized, strict=True)
    return [replace(tokens, answer=chat.answer_tokens(question)) for question, tokens in both]


def _check_characters(place: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MindError(
            f"{place} holds half a character (U+{ord(text[error.start]):04X}, a lone surrogate) after "
            f"{text[max(0, error.start - 20) : error.start]!r}"
        ) from error
