"""Lets the three students of method lorid answer a question together (arXiv 2508.13037), by samples that agree.

In each round the intuitive reasoner answers, the knowledge generator states rules, and the deep reasoner answers with
those rules in mind. The first answer that both reasoners have given, in the same or in different rounds, is the answer
to the question; if they never agree, it is the intuitive reasoner's most frequent answer. The authors count a question
as right if any answer that the two agree on is right; here there is only one such answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mind import processes
from mind.asking import AskingConfig
from mind.evaluation.config import InteractionConfig
from mind.evaluation.evaluate import Answered, evaluation_prompts, graded
from mind.evaluation.generation import generate_ids, replies_of
from mind.evaluation.outcomes import Reply, counts, outcome
from mind.evaluation.samples import numbers, same_answer, sample_seed
from mind.grading.answers import extract_answer
from mind.methods.knowledge import RULES_WANTED, after_rules
from mind.progress import Progress
from mind.records import Question
from mind.student.model import context_of
from mind.student.tokenization import Chat, embedding_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Students(NamedTuple):
    """The three students, each with its tokenizer."""

    intuitive: tuple[PreTrainedModel, PreTrainedTokenizerBase]
    knowledge: tuple[PreTrainedModel, PreTrainedTokenizerBase]
    deep: tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass
class Exchange:
    """What the reasoners have answered to a question so far."""

    question: Question
    intuitive: list[tuple[str | None, Reply]] = field(default_factory=list)
    """Answer and reply per round."""
    deep: list[str | None] = field(default_factory=list)
    """Answer per round."""
    agreed: Reply | None = None
    """The first reply of the intuitive reasoner whose answer both gave."""

    def add(self, intuitive: Reply, deep: Reply) -> None:
        """Adds a round: one reply of each."""
        answer, other = (extract_answer(reply.text, self.question) for reply in (intuitive, deep))
        self.intuitive.append((answer, intuitive))
        self.deep.append(other)
        if any(self._same(answer, one) for one in self.deep):
            self.agreed = intuitive
        else:
            self.agreed = next((reply for one, reply in self.intuitive if self._same(one, other)), None)

    @property
    def reply(self) -> Reply:
        """The reply that counts for the question: the one on which they agreed, or else the first with the most
        frequent intuitive answer (of equally frequent ones, the earlier)."""
        if self.agreed is not None:
            return self.agreed
        answers = [answer for answer, _ in self.intuitive]
        counts = [sum(self._same(answer, other) for other in answers) for answer in answers]
        return self.intuitive[counts.index(max(counts))][1]

    def _same(self, one: str | None, other: str | None) -> bool:
        return same_answer(one, other, self.question)


def interaction_accuracy(
    students: Students,
    files: Mapping[str, Sequence[Question]],
    config: AskingConfig,
    interaction: InteractionConfig,
    responses_folder: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """The accuracy of the three students together.

    Arguments and result are those of `mind.evaluation.evaluate.answer_accuracy`; the result has further entries per
    label: "agreed", the number of questions whose reasoners agreed, "rounds", the mean number of rounds per question,
    and "generated", the tokens that the three sampled. A sample depends only on the seed, its question and its round.

    Raises MindError, before anything is sampled, for a question whose prompts and answers may exceed a context.
    """
    speakers = [_Speaker(model, tokenizer, config, interaction) for model, tokenizer in students]
    for questions in files.values():
        for speaker, before in zip(speakers, ("", RULES_WANTED, ""), strict=True):
            evaluation_prompts(speaker.model, speaker.chat.tokenizer, questions, config, before)

    def answered(label: str, questions: Sequence[Question]) -> Answered:
        before = sum(speaker.generated for speaker in speakers)

        def conversed(some: Sequence[Question]) -> list[Exchange]:
            exchanges = [Exchange(question) for question in some]
            _converse(speakers, exchanges, interaction.rounds, processes.for_all(bar.reach, len(some), len(questions)))
            return exchanges

        with Progress(f"generation, {label}", len(questions), "question") as bar:
            exchanges = processes.spread(questions, conversed)
        agreed = sum(one.agreed is not None for one in exchanges)
        rounds = sum(len(one.deep) for one in exchanges) / max(len(exchanges), 1)
        generated = sum(processes.together(sum(speaker.generated for speaker in speakers) - before))
        more = {"agreed": agreed, "rounds": round(rounds, 4), "generated": generated}
        rows = [outcome(one.reply, one.question) for one in exchanges]
        return rows, counts(rows) | more

    return graded(files, config, answered, responses_folder)


def _converse(
    speakers: Sequence[_Speaker], exchanges: Sequence[Exchange], rounds: int, progress: Callable[[int], object]
) -> None:
    intuitive, knowledge, deep = speakers
    for number in range(rounds):
        left = [one for one in exchanges if one.agreed is None]
        progress(len(exchanges) - len(left))
        if not left:
            break
        questions = [one.question for one in left]
        first = intuitive.samples([intuitive.prompt(one) for one in questions], questions, f"intuitive {number}")
        asked = [knowledge.prompt(one, RULES_WANTED) for one in questions]
        rules = knowledge.samples(asked, questions, f"knowledge {number}")
        asked = [deep.prompt_after(reply.text, one) for reply, one in zip(rules, questions, strict=True)]
        second = deep.samples(asked, questions, f"deep {number}")
        for one, *replies in zip(left, first, second, strict=True):
            one.add(*replies)
    progress(len(exchanges))


class _Speaker:
    """A student from which answers are sampled."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: AskingConfig,
        interaction: InteractionConfig,
    ) -> None:
        self.model, self.chat = model, Chat(tokenizer, embedding_rows(model))
        self.generated = 0
        """Number of tokens that it has sampled."""
        self._config, self._interaction = config, interaction

    def prompt(self, question: Question, before: str = "") -> list[int]:
        """Token ids of a question with the words `before` in front of it."""
        return self.chat.prompt(replace(question, question=before + question.question))

    def prompt_after(self, text: str, question: Question) -> list[int]:
        """Token ids of a question after rules, which are the lines of `text`: the first of them, as many as leave room
        for an answer in the model's context."""
        rules = [line for line in map(str.strip, text.splitlines()) if line]
        context = context_of(self.model)
        for count in range(len(rules), -1, -1):
            prompt = self.prompt(question, after_rules(rules[:count]))
            if context is None or len(prompt) + self._config.max_new_tokens <= context:
                break
        return prompt

    def samples(self, prompts: Sequence[Sequence[int]], questions: Sequence[Question], name: str) -> list[Reply]:
        """One sample per prompt, for the `questions` in the same order; `name` distinguishes the samples of a
        question."""
        seeds = [sample_seed(self._interaction.seed, name, question) for question in questions]
        ids = generate_ids(
            self.model,
            self.chat.tokenizer,
            prompts,
            max_new_tokens=self._config.max_new_tokens,
            batch_size=self._config.batch_size,
            stop_text=self.chat.stop_text,
            temperature=self._interaction.temperature,
            top_p=self._interaction.top_p,
            draws=numbers(seeds, self._config.max_new_tokens),
        )
        self.generated += sum(map(len, ids))
        return replies_of(self.model, self.chat.tokenizer, ids, self.chat.stop_text)
