"""Questions -> token ids: the chat template's prompt, each rationale, and the answer suffix on its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from mind.answer_line import suffix
from mind.errors import MindError
from mind.records import Question, TokenizedQuestion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def question_text(question: Question) -> str:
    """What the user's turn says: the question, and a line for each choice where there are any."""
    if not question.choices:
        return question.question
    return "\n".join([question.question, *(f"({label}) {text}" for label, text in question.choices.items())])


def prompt_ids(question: Question, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the chat template's user turn, up to where the assistant begins."""
    turns = [{"role": "user", "content": question_text(question)}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tokenizer(cast(str, text), add_special_tokens=False)["input_ids"]


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends the assistant's turn in the chat template.

    Raises MindError for a tokenizer without a chat template, or one whose template does not end the turn.
    """
    if not tokenizer.chat_template:
        raise MindError(f"{tokenizer.name_or_path}: its tokenizer has no chat template; MIND trains chat models")
    mark = "ANSWER"
    turns = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": mark}]
    text = cast(str, tokenizer.apply_chat_template(turns, tokenize=False))
    ids = tokenizer(text.rpartition(mark)[2].lstrip(), add_special_tokens=False)["input_ids"]
    if not ids:
        raise MindError(f"{tokenizer.name_or_path}: its chat template writes nothing after the assistant's turn")
    return ids[0]


def tokenize(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    perspectives: Sequence[str],
    max_length: int,
) -> list[TokenizedQuestion]:
    """Token ids of every training sequence.

    Raises MindError for a perspective that is not among `perspectives` or a sequence longer than `max_length`.
    """
    slots = {name: k for k, name in enumerate(perspectives)}
    end = end_of_turn_id(tokenizer)
    tokenized = []
    for question in questions:
        prompt = prompt_ids(question, tokenizer)
        ending = [*tokenizer(suffix(question.answer), add_special_tokens=False)["input_ids"], end]
        rationales = {}
        for rationale in question.rationales:
            if rationale.perspective not in slots:
                raise MindError(
                    f"question {question.id}: unknown perspective {rationale.perspective!r}; "
                    f"the configuration names {', '.join(perspectives)}"
                )
            ids = tokenizer(rationale.text, add_special_tokens=False)["input_ids"]
            length = len(prompt) + len(ids) + len(ending)
            if length > max_length:
                raise MindError(
                    f"question {question.id}: its {rationale.perspective} rationale makes a sequence of "
                    f"{length} tokens; student.max_length is {max_length}"
                )
            rationales[slots[rationale.perspective]] = tuple(ids)
        tokenized.append(TokenizedQuestion(question.id, tuple(prompt), rationales, tuple(ending)))
    return tokenized
