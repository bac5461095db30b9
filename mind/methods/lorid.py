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

from mind.config import MindConfig
from mind.methods.knowledge import KNOWLEDGE_WANTED, RULES_WANTED, after_rules
from mind.methods.sequences import Sequences
from mind.methods.sft import Sft
from mind.methods.stage import Stage
from mind.methods.step import Step, StepPlan
from mind.perspectives import KNOWLEDGE
from mind.records import Question, Rationale, TokenizedQuestion


class Lorid(Sft):
    """The intuitive reasoner, which is trained after the others: fine-tuning on all rationales."""

    title = "LoRID"
    learning_rate = 5e-5
    begins_with = "base"

    @classmethod
    def stages(cls, config: MindConfig) -> Sequence[Stage]:
        rate = config.train.learning_rate
        return [Stage(name, learning_rate=rate, begins_with="base") for name in ("lorid-kg", "lorid-dr")]


class _WithRules(Sft):
    """Fine-tuning on what is made of a question with rules, in place of its rationales."""

    learning_rate = Lorid.learning_rate
    lesson, remedy = "knowledge", KNOWLEDGE_WANTED

    @classmethod
    def has_lesson(cls, config: MindConfig, question: Question) -> bool:
        return bool(question.knowledge)

    def prepare(self, step: Step) -> StepPlan:
        return self.evenly([self.made[question.id] for question in step.questions])


class KnowledgeGenerator(_WithRules):
    """LoRID's second part: it is asked for the rules, and learns the teacher's, a line each."""

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
    """LoRID's third part: the rationales and the answer, with the teacher's rules before the question."""

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
