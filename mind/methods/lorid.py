"""LoRID (arXiv 2508.13037): an intuitive reasoner, a knowledge generator and a deep reasoner, which check one another.

    L_IR = mean over the questions of 1/K_q sum_k CE(r_k, answer | x)
    L_KG = mean over the questions of CE(rules | x, which rules?)
    L_DR = mean over the questions of 1/K_q sum_k CE(r_k, answer | rules, x)

CE is the mean over the tokens of a sequence; the source takes it over all tokens of the batch, and has a rationale per
question. The three do not know one another while they learn: each begins with the same student and is trained on its
own. The source trains adapters of a frozen one: `--student.lora --student.lora-rank 512 --student.lora-alpha 1024
--student.lora-targets q_proj v_proj`, with a learning rate of 5e-5.

A run evaluates each of the three by plain questions, which says little of the first two. Together they are asked by

    mind evaluate --student.model RUN/student --lorid.knowledge RUN/stages/1-lorid-kg/student \\
        --lorid.deep RUN/stages/2-lorid-dr/student --files FILE.jsonl

(mind/evaluation/interaction.py). The deep reasoner learns with the teacher's rules, and is asked with those of the
knowledge generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mind.batches.packing import present_sequences
from mind.config import MindConfig
from mind.methods.knowledge import RULES_WANTED, after_rules, lacking_knowledge
from mind.methods.method import OF_ANSWERS, OF_MIND, Method, MethodContext
from mind.methods.sequences import Sequences
from mind.methods.sft import Sft
from mind.methods.stage import Stage
from mind.methods.step import Step, StepPlan
from mind.perspectives import KNOWLEDGE
from mind.records import Branch, Question, Rationale, TokenizedQuestion


class Lorid(Sft):
    """The intuitive reasoner, which is trained after the others: fine-tuning on all rationales."""

    title = "LoRID"
    learning_rate = 5e-5
    begins_with = "base"

    @classmethod
    def stages(cls, config: MindConfig) -> Sequence[Stage]:
        rate = config.train.learning_rate
        return [Stage(name, learning_rate=rate, begins_with="base") for name in ("lorid-kg", "lorid-dr")]


class _WithRules(Method):
    """All sequences that are made of a question with rules, each with the same weight."""

    unread = (*OF_MIND, *OF_ANSWERS)
    learning_rate = Lorid.learning_rate
    lesson = "knowledge"

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self._made = {one.id: one for one in context.sequences}

    @classmethod
    def choose(
        cls,
        config: MindConfig,
        questions: Sequence[Question],
        tokenized: Sequence[TokenizedQuestion],
        sequences: Sequences,
    ) -> dict[int, TokenizedQuestion]:
        chosen = {}
        for q, question in enumerate(questions):
            if question.knowledge:
                branches = cls.branches_of(config, question, sequences)
                prompt = next(iter(branches.values())).prompt
                chosen[q] = TokenizedQuestion(question.id, prompt, {}, (), branches)
        if not chosen:
            raise lacking_knowledge(config.method, questions)
        return chosen

    @classmethod
    def branches_of(cls, config: MindConfig, question: Question, sequences: Sequences) -> dict[int, Branch]:
        """Slot -> sequence, at least one."""
        raise NotImplementedError

    def prepare(self, step: Step) -> StepPlan:
        questions = [self._made[question.id] for question in step.questions]
        filled = present_sequences(questions, len(self.slots))
        weights = filled.double() / filled.sum(1, keepdim=True)
        return StepPlan(questions, weights, trained=filled, observed=torch.zeros_like(filled))


class KnowledgeGenerator(_WithRules):
    """LoRID's second part: it is asked for the rules, and learns the teacher's, a line each."""

    title = "LoRID, knowledge generator"

    @property
    def slots(self) -> tuple[str, ...]:
        return (KNOWLEDGE,)

    @classmethod
    def branches_of(cls, config: MindConfig, question: Question, sequences: Sequences) -> dict[int, Branch]:
        rules = Rationale(KNOWLEDGE, "\n".join(question.knowledge))
        return {0: sequences.explained(question, rules, RULES_WANTED)}


class DeepReasoner(_WithRules):
    """LoRID's third part: the rationales and the answer, with the teacher's rules before the question."""

    title = "LoRID, deep reasoner"

    @classmethod
    def branches_of(cls, config: MindConfig, question: Question, sequences: Sequences) -> dict[int, Branch]:
        before, names = after_rules(question.knowledge), config.data.perspectives
        return {
            names.index(one.perspective): sequences.explained(question, one, before, answered=True)
            for one in question.rationales
        }
