"""LoRID (arXiv 2508.13037): an intuitive reasoner, a knowledge generator and a deep reasoner, which check one another.

    L_IR = mean over the questions of 1/K_q sum_k CE(r_k, answer | x)
    L_KG = mean over the questions of CE(rules | x, which rules?)
    L_DR = mean over the questions of 1/K_q sum_k CE(r_k, answer | rules, x)

CE is the mean over the tokens of a sequence; the source uses the mean over all tokens of the batch, and has one
rationale per question. The three are trained independently, each from the same initial student. The source trains
adapters of a frozen model: `--student.lora --student.lora-rank 512 --student.lora-alpha 1024 --student.lora-targets
q_proj v_proj`, with a learning rate of 5e-5.

A run evaluates each of the three on plain questions, which says little about the knowledge generator and the deep
reasoner. To ask all three together:

    mind evaluate --student.model RUN/student --lorid.knowledge RUN/stages/1-lorid-kg/student \\
        --lorid.deep RUN/stages/2-lorid-dr/student --files FILE.jsonl

(mind/evaluation/interaction.py). The deep reasoner is trained with the teacher's rules, but gets those of the knowledge
generator when it is asked.
"""

from __future__ import annotations

from collections.abc import Sequence

from mind.config import MindConfig
from mind.methods.knowledge import KNOWLEDGE_WANTED, RULES_WANTED, after_rules
from mind.methods.sequences import Sequences
from mind.methods.sft import Sft
from mind.methods.stage import Stage
from mind.methods.step import Step, StepPlan
from mind.perspectives import KNOWLEDGE
from mind.records import Question, Rationale, TokenizedQuestion


class Lorid(Sft):
    """The intuitive reasoner, which is trained last: fine-tuning on all rationales."""

    title = "LoRID"
    learning_rate = 5e-5
    begins_with = "base"

    @classmethod
    def stages(cls, config: MindConfig) -> Sequence[Stage]:
        rate = config.train.learning_rate
        return [Stage(name, learning_rate=rate, begins_with="base") for name in ("lorid-kg", "lorid-dr")]


class _WithRules(Sft):
    """Fine-tuning on a sequence made from a question and its rules, instead of on its rationales."""

    learning_rate = Lorid.learning_rate
    lesson, remedy = "knowledge", KNOWLEDGE_WANTED

    @classmethod
    def has_lesson(cls, config: MindConfig, question: Question) -> bool:
        return bool(question.knowledge)

    def prepare(self, step: Step) -> StepPlan:
        return self.evenly([self.made[question.id] for question in step.questions])


class KnowledgeGenerator(_WithRules):
    """LoRID's second part: it is asked for rules and learns to give the teacher's, one per line."""

    title = "LoRID, knowledge generator"

    @property
    def slots(self) -> tuple[str, ...]:
        return (KNOWLEDGE,)

    @classmethod
    def sequences_of(
        cls, config: MindConfig, question: Question, tokens: TokenizedQuestion, sequences: Sequences
    ) -> TokenizedQuestion:
        rules = Rationale(KNOWLEDGE, "\n".join(question.knowledge))
        return TokenizedQuestion.of_sequences(question.id, {0: sequences.explained(question, rules, RULES_WANTED)})


class DeepReasoner(_WithRules):
    """LoRID's third part: it learns the rationales and the answer, with the teacher's rules before the question."""

    title = "LoRID, deep reasoner"

    @classmethod
    def sequences_of(
        cls, config: MindConfig, question: Question, tokens: TokenizedQuestion, sequences: Sequences
    ) -> TokenizedQuestion:
        before, names = after_rules(question.knowledge), config.data.perspectives
        explained = {
            names.index(one.perspective): sequences.explained(question, one, before, answered=True)
            for one in question.rationales
        }
        return TokenizedQuestion.of_sequences(question.id, explained)
