"""NesyCD (arXiv 2409.13203): general skills into the student's weights, rules for its errors into a base beside it.

    L = mean over the questions of a CE(answer | predict, x) + b mean over {CE(r, answer | x), CE(r, answer | rules, x)}

The student is fine-tuned first. Then it answers the training questions; those that it gets wrong are the base, with the
rules that the teacher wrote for them ("knowledge" in the records), and they alone have a sequence with rules. CE is the
mean over the tokens of a sequence; the source takes it over all tokens of the batch. A question with K_q rationales
trains on one of them per epoch, in turn.

How the authors weigh their tasks is not known: a = b here. Their baseline without rules has a = 0.3, b = 0.7. Their
teacher is asked about the errors alone, and sees them; `mind data generate --knowledge` asks about each question.

The base is RUN/knowledge.jsonl. `mind evaluate --knowledge-base` puts the rules of its most similar question before a
question (mind/evaluation/retrieval.py); a run itself evaluates the student without. No other method has a base to look
into, so its accuracy with one does not compare with theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mind import processes
from mind.batches.packing import present_sequences
from mind.config import MethodOptions, MindConfig
from mind.data.questions import save_questions
from mind.errors import require
from mind.grading.answers import judge_text
from mind.methods.knowledge import KNOWLEDGE_WANTED, after_rules
from mind.methods.method import OF_ANSWERS, OF_MIND, Method, MethodContext
from mind.methods.sequences import Sequences
from mind.methods.stage import Stage
from mind.methods.step import Step, StepMetrics, StepPlan, slot_means, turn_of
from mind.progress import Progress, tell
from mind.records import Question, TokenizedQuestion
from mind.report.charts import AMBER, BLUE, INK, Chart, Series
from mind.run_folder import RunFolder
from mind.student.model import context_of
from mind.student.tokenization import Chat, text_of

_GREEDY = 1e-6
"""A temperature at which samples are the most probable tokens."""


@dataclass(frozen=True)
class NesycdOptions(MethodOptions):
    """Options of NesyCD."""

    answer: float = 0.5
    """a: weight of the answer alone [ours]."""
    rationale: float = 0.5
    """b: weight of the rationale, with rules and without [ours]."""
    label_prefix: str = "predict: "
    """Text in front of the question if the answer alone is asked for [ours]."""
    max_new_tokens: int = 512
    """Longest answer by which the student's errors are found, in tokens [ours]."""

    BOUNDS = {
        "answer": "a number >= 0",
        "rationale": "a number >= 0",
        "max_new_tokens": "at least 1",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.answer + self.rationale > 0, "options.answer and options.rationale are both 0: nothing is learned")


class Nesycd(Method):
    """Three sequences per question: slot 0 has the answer, slot 1 a rationale, slot 2 the same with rules in mind."""

    Options = NesycdOptions
    title = "NesyCD"
    lesson, remedy, lesson_in_each = "knowledge", KNOWLEDGE_WANTED, False
    unread = (*OF_MIND, *OF_ANSWERS)
    charts = (
        Chart(
            "l_real",
            "Loss of each task",
            "nats per token",
            "All should fall. The rationale is the easier the more the rules before the question tell.",
            (
                Series("answer_loss", "answer alone", AMBER, brief="answer {:.2f}"),
                Series("rationale_loss", "rationale", BLUE, brief="rationale {:.2f}"),
                Series("rules_loss", "rationale with rules", INK, brief="with rules {:.2f}"),
            ),
        ),
    )

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self._check_length()
        self._wrong: set[str] | None = None
        """The questions that the student answers wrongly; None before it was asked."""

    def _check_length(self) -> None:
        """Raises MindError if a question and the answer that finds errors may exceed the student's context."""
        context, most = context_of(self.context.model), self.options.max_new_tokens
        longest = max(self.context.tokenized, key=lambda question: len(question.prompt))
        require(
            context is None or len(longest.prompt) + most <= context,
            f"options.max_new_tokens is {most}: with the prompt of question {longest.id}, of {len(longest.prompt)}, "
            f"that exceeds the student's context of {context}",
        )

    @classmethod
    def stages(cls, config: MindConfig) -> Sequence[Stage]:
        return [Stage("sft", learning_rate=config.train.learning_rate)]

    @classmethod
    def has_lesson(cls, config: MindConfig, question: Question) -> bool:
        return bool(question.knowledge)

    @classmethod
    def sequences_of(
        cls, config: MindConfig, question: Question, tokens: TokenizedQuestion, sequences: Sequences
    ) -> TokenizedQuestion:
        """Its answer, then its rationales, then the same with its rules, if it has any."""
        answer = sequences.answered(question, cls.options_in(config).label_prefix)
        befores = ["", after_rules(question.knowledge)] if question.knowledge else [""]
        explained = [
            sequences.explained(question, one, before, answered=True)
            for before in befores
            for one in question.rationales
        ]
        return TokenizedQuestion.of_sequences(question.id, dict(enumerate([answer, *explained])))

    @property
    def slots(self) -> tuple[str, ...]:
        return ("answer", "rationale", "rationale with rules")

    def term_of(self, slot: int) -> int:
        """The answer, and rationales with and without rules."""
        return min(slot, 1)

    def prepare(self, step: Step) -> StepPlan:
        if self._wrong is None:
            self._wrong = self._answered_wrongly(step)
            self._write_base(self._wrong)
        questions = [self._sequences(question, step.epoch) for question in step.questions]
        filled = present_sequences(questions, len(self.slots))
        explained = filled[:, 1:].sum(1, keepdim=True)
        own = torch.tensor([self.options.answer, self.options.rationale, self.options.rationale], dtype=torch.float64)
        weights = torch.where(filled, own, 0)
        weights[:, 1:] /= explained
        return StepPlan.training(questions, weights)

    def _sequences(self, question: TokenizedQuestion, epoch: int) -> TokenizedQuestion:
        made, count = self.made[question.id].others, len(question.rationales)
        turn = 1 + turn_of(question.id, epoch, count)
        sequences = {0: made[0], 1: made[turn]}
        if question.id in (self._wrong or ()) and turn + count in made:
            sequences[2] = made[turn + count]
        return TokenizedQuestion.of_sequences(question.id, sequences)

    def _answered_wrongly(self, step: Step) -> set[str]:
        """The ids of the training questions to which the student's most probable answer is not right, all of them
        asked before anything is trained on."""
        context = self.context
        prompts = [question.prompt for question in context.tokenized]
        with Progress("answers to the training questions", len(prompts), "question") as bar:
            samples = step.sample(
                prompts, temperature=_GREEDY, max_new_tokens=self.options.max_new_tokens, progress=bar.reach
            )
        stop_text = Chat(context.tokenizer).stop_text
        wrong = set()
        for question, ids in zip(context.questions, samples, strict=True):
            if judge_text(text_of(context.tokenizer, ids, stop_text), question).verdict != "right":
                wrong.add(question.id)
        return wrong

    def _write_base(self, wrong: set[str]) -> None:
        """The knowledge base, as records."""
        base = [one for one in self.context.questions if one.id in wrong and one.knowledge]
        tell(
            f"the student gets {len(wrong)} of {len(self.context.questions)} training questions wrong; {len(base)} of "
            "these have rules"
        )
        folder = RunFolder(self.context.config.output)
        rows = [replace(one, rationales=(), wrong_rationales=()) for one in base]
        processes.by_main(lambda: save_questions(rows, folder.knowledge))

    def finish_step(self, plan: StepPlan, totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
        means = slot_means(l_real, {"answer_loss": 0, "rationale_loss": 1, "rules_loss": 2})
        return StepMetrics(means | {"with_rules": float(plan.trained[:, 2].double().mean())})

    def state_dict(self) -> dict[str, Any]:
        return {"wrong": sorted(self._wrong or ())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._wrong = set(state["wrong"])
