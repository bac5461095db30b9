"""Computes a student's vectors: means of its last hidden states, after the final norm, over the tokens of a text.

A sequence consists of a prompt, the user's turn in the chat template up to the place where the assistant begins, and of
a branch that continues it: a rationale or an answer without its suffix ("#### 42" and the end of the turn), as token
ids. Vectors are float32, like the weights.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from mind import processes
from mind.answer_line import without_suffix
from mind.batches.bin_packing import bins_of
from mind.batches.packing import plain_pack
from mind.batches.trunk import pack_hidden
from mind.config import StudentConfig
from mind.errors import NotFiniteError, require
from mind.evaluation.generation import generate_ids
from mind.latent.config import LatentConfig
from mind.records import Question
from mind.student.model import context_of, load_student
from mind.student.tokenization import Chat, embedding_rows, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Ids = Sequence[int]
Progress = Callable[[int], object]
"""Is called with the number of newly finished items."""


class Reader:
    """A student that reads texts and answers questions."""

    def __init__(self, student: StudentConfig, config: LatentConfig) -> None:
        """Loads the student; raises MindError as `load_student`."""
        loaded: tuple[Any, PreTrainedTokenizerBase] = load_student(student)
        self.model: PreTrainedModel = loaded[0].eval()
        self.tokenizer = loaded[1]
        cast(nn.Module, self.model).to(processes.device())
        self._chat, self._config, self._name = Chat(self.tokenizer, embedding_rows(self.model)), config, student.model

    def prompts(self, questions: Sequence[Question]) -> list[list[int]]:
        """Token ids of the questions' prompts; raises MindError for one that leaves no room for an answer."""
        context, prompts = context_of(self.model), [self._chat.prompt(question) for question in questions]
        for question, prompt in zip(questions, prompts, strict=True):
            length = len(prompt) + self._config.max_new_tokens
            self._check_length(question, length, context, "prompt and max_new_tokens")
        return prompts

    def rationales(self, questions: Sequence[Question], perspectives: Sequence[str]) -> list[list[list[int]]]:
        """Token ids of the questions' rationales, by perspective (K) and question (N)."""
        context, prompts = context_of(self.model), self.prompts(questions)
        every = []
        for name in perspectives:
            every.append([])
            for question, prompt in zip(questions, prompts, strict=True):
                text = next(one.text for one in question.rationales if one.perspective == name)
                every[-1].append(self._chat.rationale(question, name, text))
                self._check_length(question, len(prompt) + len(every[-1][-1]), context, f"prompt and {name} rationale")
        return every

    def answers(
        self, prompts: Sequence[Ids], progress: Callable[[int], object], draws: torch.Tensor | None = None
    ) -> list[list[int]]:
        """Token ids of an answer to each prompt, without its suffix: greedy, or sampled at temperature 1 if `draws` (as
        in `generate_ids`) are given. An answer that begins with its answer line becomes empty. `progress` gets the
        number of newly finished answers."""
        continued = generate_ids(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens=self._config.max_new_tokens,
            batch_size=self._config.batch_size,
            stop_text=self._chat.stop_text,
            draws=draws,
            progress=progress,
        )
        return [without_suffix_ids(ids, self.text) for ids in continued]

    def text(self, ids: Ids) -> str:
        """The text of an answer."""
        return text_of(self.tokenizer, ids, self._chat.stop_text)

    def prompt_ends(self, prompts: Sequence[Ids], progress: Progress = lambda _: None) -> np.ndarray:
        """The states (N, D) at the last token of each prompt."""
        return self._vectors([(prompt, ()) for prompt in prompts], progress)

    def branch_means(
        self, prompts: Sequence[Ids], branches: Sequence[Ids], progress: Progress = lambda _: None
    ) -> np.ndarray:
        """The means (N, D) of the states at the tokens of each branch after its prompt; nan for an empty branch."""
        vectors = self._vectors(list(zip(prompts, branches, strict=True)), progress)
        vectors[[not branch for branch in branches]] = np.nan
        return vectors

    @torch.no_grad()
    def _vectors(self, sequences: Sequence[tuple[Ids, Ids]], progress: Progress) -> np.ndarray:
        """For each (prompt, branch): the mean state over the branch, or the state at the prompt's last token if the
        branch is empty."""
        whole = [[*prompt, *branch] for prompt, branch in sequences]
        lengths = list(map(len, whole))
        vectors = np.empty((len(whole), self.model.config.get_text_config().hidden_size), np.float32)
        for chosen in bins_of(lengths, self._config.pack_length):
            hidden = pack_hidden(self.model, plain_pack([whole[item] for item in chosen]))
            for item, states in zip(chosen, hidden.split([lengths[item] for item in chosen]), strict=True):
                first = min(len(sequences[item][0]), lengths[item] - 1)
                vectors[item] = states[first:].float().mean(0).cpu().numpy()
            progress(len(chosen))
        if not np.isfinite(vectors).all():
            raise NotFiniteError(f"{self._name}: a hidden state is nan or infinite")
        return vectors

    def _check_length(self, question: Question, length: int, context: int | None, what: str) -> None:
        require(
            context is None or length <= context,
            f"question {question.id}: {what} have {length} tokens; the context of the student is {context}",
        )


def without_suffix_ids(ids: Sequence[int], text: Callable[[Ids], str]) -> list[int]:
    """The shortest beginning of an answer's token ids that has its text before the answer line (`without_suffix`)."""
    whole = text(ids)
    said = without_suffix(whole)
    end = whole.find(said) + len(said) if said else 0
    return list(ids[: bisect_left(range(len(ids)), end, key=lambda count: len(text(ids[:count])))])
