"""Makes the training sequences that methods need besides right rationales: other prompts, wrong rationales, and the
student's own answers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mind.config import MindConfig
from mind.errors import require
from mind.records import Branch, Question, Rationale, WrongRationale
from mind.student.tokenization import Chat, embedding_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Sequences:
    """Makes token ids as `mind.student.tokenization.tokenize` does, one sequence at a time.

    Each method raises MindError for a sequence longer than `student.max_length`, and for text that `Chat` cannot
    encode.
    """

    def __init__(self, config: MindConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._chat = Chat(tokenizer, embedding_rows(model))
        self._longest = config.student.max_length

    def answered(self, question: Question, before: str = "") -> Branch:
        """The question with `before` in front of it, and its answer line alone."""
        return self._checked(question, "answer", before, self._chat.suffix(question))

    def explained(
        self, question: Question, rationale: Rationale, before: str = "", *, answered: bool = False
    ) -> Branch:
        """The question with `before` in front of it, and a rationale, with its answer line if `answered`."""
        ids = self._chat.rationale(question, rationale.perspective, rationale.text)
        end = self._chat.suffix(question) if answered else self._chat.end()
        return self._checked(question, f"{rationale.perspective} rationale", before, [*ids, *end])

    def wrong(self, question: Question, rationale: WrongRationale) -> Branch:
        """The question, a wrong rationale and its wrong answer line."""
        ids = self._chat.rationale(question, rationale.perspective, rationale.text)
        end = self._chat.suffix(replace(question, answer=rationale.answer))
        return self._checked(question, f"wrong {rationale.perspective} rationale", "", [*ids, *end])

    def longest_sample(self, question: Question, tokens: int) -> Branch:
        """The question and a stand-in for the longest answer that the student may sample, of `tokens` tokens. The
        answer is not known before the run, but whether it will fit is."""
        return self._checked(question, f"sample of up to {tokens} tokens", "", [self._chat.end_id] * tokens)

    def _checked(self, question: Question, what: str, before: str, ids: list[int]) -> Branch:
        prompt = self._chat.prompt(replace(question, question=before + question.question))
        length = len(prompt) + len(ids)
        require(
            length <= self._longest,
            f"question {question.id}: its {what} makes a sequence of {length} tokens; student.max_length is "
            f"{self._longest}",
        )
        return Branch(tuple(prompt), tuple(ids))
