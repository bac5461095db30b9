"""What a training method is: the seam between the methods and the trainer, which knows none of them.

A step of the trainer, for Q questions with K rationales each:

    plan = method.prepare(step)                          which rationales it trains on, with what weights
    for each micro-batch: forward pass without a graph   the rationales that are only observed
    for each micro-batch: method.loss, backward pass     the rationales that are trained on
    method.finish_step(plan, totals, l_real)             what the method learns from the step

Packing, shared prompts, several processes, checkpoints, metrics and the report are the same for all methods. Before
`finish_step` the trainer checks that the step's sums, its gradient and L_real are finite; a method that computes
further numbers raises mind.errors.NotFiniteError for its own, and StoppedError if its student gets worse.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mind import processes
from mind.batches.cross_entropy import cross_entropy, row_weights, token_mean
from mind.batches.prompt_sharing import attention_and_pack_options
from mind.batches.steps import plan_steps, within_budget
from mind.config import MethodOptions, MindConfig
from mind.errors import MindError, require
from mind.methods.sequences import Sequences
from mind.methods.stage import Stage
from mind.methods.step import LossTerms, Step, StepMetrics, StepPlan
from mind.progress import tell
from mind.records import AnswerSpan, MicroBatch, PackOptions, Question, TokenizedQuestion
from mind.report.charts import STUDENT, Chart, Section, briefly
from mind.student.adapters import check_adapters
from mind.student.tokenization import embedding_rows, tokenize, with_answers
from mind_kernels import Head, RowStats

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mind.report.reading import Metrics


OF_MIND = ("metanet", "objective.beta", "objective.tau_student", "objective.consistency_weight")
"""What MIND alone reads of the options that are in every configuration."""
OF_ANSWERS = ("objective.answer_span",)
"""What those methods alone read that compare distributions behind two rationales."""


@dataclass(frozen=True)
class MethodContext:
    """What a run gives to its method and to the trainer."""

    config: MindConfig
    model: PreTrainedModel
    """The student; in its initial state while the method is built."""
    tokenizer: PreTrainedTokenizerBase
    questions: Sequence[Question]
    """Those to train on, as texts."""
    tokenized: Sequence[TokenizedQuestion]
    """The same in the same order, as tokens."""
    steps: Sequence[Sequence[int]]
    """The questions of every optimizer step of the run, as indices into both. Of a run with a budget as many as it can
    pay at most: it ends before the last of them."""
    attention: str
    """The attention that trains, by transformers' name."""
    pack_options: PackOptions
    sequences: Sequence[TokenizedQuestion] = ()
    """What `Method.sequences_of` made of each of the questions."""

    @classmethod
    def build(
        cls,
        config: MindConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        others: Sequence[TokenizedQuestion] = (),
        method: type[Method] | None = None,
    ) -> MethodContext:
        """Tokenizes the questions, plans the steps, and chooses attention and packing, for the `others` too.

        `method` may leave out questions that it cannot train on, which is told, and make sequences of its own.

        Raises MindError for questions that do not fit into the configured lengths, for an attention that is not there,
        for adapters that cannot be trained or merged and, with the counts, if `method` can train on no question.
        """
        check_adapters(model)
        config = with_learning_rate(config, method or Method)
        device = processes.device().type
        data, rows = config.data, embedding_rows(model)
        tokenized = tokenize(questions, tokenizer, data.perspectives, config.student.max_length, rows)
        span = config.objective.answer_span or (Method if method is None else method).answer_span
        if span == "answer" or (method is not None and method.reads_answers):
            tokenized = with_answers(questions, tokenized, tokenizer)
        sequences = tokenized
        if method is not None:
            made = method.choose(config, questions, tokenized, Sequences(config, model, tokenizer))
            questions, tokenized = [questions[q] for q in made], [tokenized[q] for q in made]
            sequences = list(made.values())
        parameters = sum(parameter.numel() for parameter in model.parameters())
        longest = replace(config, train=within_budget(tokenized, config.train, parameters))
        steps = plan_steps(tokenized, longest.train) if method is None else method.plan(longest, tokenized)
        attention, pack_options = attention_and_pack_options(model, config, [*tokenized, *sequences, *others], device)
        pack_options = replace(pack_options, answer_span=span)
        return cls(config, model, tokenizer, questions, tokenized, steps, attention, pack_options, sequences)

    @property
    def perspectives(self) -> int:
        """K, the rationales of a question that is complete."""
        return len(self.config.data.perspectives)


def with_learning_rate(config: MindConfig, method: type[Method]) -> MindConfig:
    """`config` with the method's learning rate, if it has none of its own."""
    if config.train.learning_rate is not None:
        return config
    return replace(config, train=replace(config.train, learning_rate=method.learning_rate))


class Method(ABC):
    """A training method. METHODS in mind/methods/__init__.py names those there are."""

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    """The class of `config.options`: a frozen dataclass with the options that this method alone has."""
    unread: ClassVar[tuple[str, ...]] = ()
    """Options, or whole sections of them, that are in every configuration and that the method does not read: a run
    warns of those that are set. `unread_because` has those that depend on others."""
    sources: ClassVar[tuple[str, ...]] = ()
    """Those of its own options that name a file or folder which it reads."""
    fewest_rationales: ClassVar[int] = 1
    """How many right rationales a question needs: those with fewer are left out."""
    lesson: ClassVar[str] = "a rationale"
    """What the method looks for in a question (`has_lesson`), as messages say it."""
    remedy: ClassVar[str] = ""
    """Where that comes from, for the message that no question has it."""
    lesson_in_each: ClassVar[bool] = True
    """Whether each question must have it: those without are left out. If not, one of all must."""
    depends_on_length: ClassVar[bool] = False
    """Whether a step depends on how many come after it: such a run cannot be extended."""
    takes_all_steps: ClassVar[bool] = False
    """Whether it takes all steps that it plans, whatever the budget of the run: the stages before it get the rest."""
    learning_rate: ClassVar[float] = 3e-5
    """The default of `train.learning_rate`."""
    begins_with: ClassVar[Literal["former", "base"]] = "former"
    """After earlier stages: with the student of the last of them, or with `student.model`."""
    answer_span: ClassVar[AnswerSpan] = "suffix"
    """Where it compares rationales if `objective.answer_span` does not say it."""
    reads_answers: ClassVar[bool] = False
    """Whether it needs to know which tokens of the suffix are the answer, wherever it compares."""
    title: ClassVar[str]
    """The method's name in reports."""
    charts: ClassVar[tuple[Chart, ...]] = ()
    """What it shows of its own numbers: in the report, where one with the key of a common chart takes the place of
    that, and in the progress bar, which has those with a `brief`."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the columns of a step's tables (Q, K): the perspectives, unless the method trains on others."""
        return self.context.config.data.perspectives

    def __init__(self, context: MethodContext) -> None:
        """Everything that a new and a resumed run need alike. `context.model` is the initial student, on its device.

        Before a run with earlier stages begins, the method is also built with `student.model`, to find what is wrong.
        """
        self.context = context
        self.options: Any = self.options_in(context.config)
        self.made = {one.id: one for one in context.sequences}
        """What `sequences_of` made, by the id of the question."""

    @classmethod
    def options_in(cls, config: MindConfig) -> Any:
        """The method's options, of its class Options: those of the configuration, or their defaults if it has none.

        Raises MindError for options of another method.
        """
        if type(config.options) is MethodOptions:
            return cls.Options()
        require(
            type(config.options) is cls.Options,
            f"options is a {type(config.options).__name__}: method {config.method} takes {cls.Options.__name__}",
        )
        return config.options

    @classmethod
    def check(cls, config: MindConfig) -> None:
        """Raises MindError for options and packages that the method cannot work with, before anything is loaded."""
        cls.options_in(config)

    @classmethod
    def unread_because(cls, config: MindConfig) -> Mapping[str, Sequence[str]]:
        """Reasons, such as "stages.sft.skip is on", and the further options that are not read because of each."""
        return {}

    @classmethod
    def stages(cls, config: MindConfig) -> Sequence[Stage]:
        """The stages that come before this one; their settings must not depend on `config`."""
        return ()

    @classmethod
    def has_lesson(cls, config: MindConfig, question: Question) -> bool:
        """Whether the question has what the method learns from, beside right rationales."""
        return True

    @classmethod
    def sequences_of(
        cls, config: MindConfig, question: Question, tokens: TokenizedQuestion, sequences: Sequences
    ) -> TokenizedQuestion | None:
        """What the method trains on of a question: here its rationales, which `tokens` are. None: it leaves it out.

        It is called for questions with enough rationales and, unless one of all is enough, the lesson. All that may be
        trained on must be there: that it fits into the rows and the student's context is checked before a run begins.
        The method finds it in `made`.
        """
        return tokens

    @classmethod
    def choose(
        cls,
        config: MindConfig,
        questions: Sequence[Question],
        tokenized: Sequence[TokenizedQuestion],
        sequences: Sequences,
    ) -> dict[int, TokenizedQuestion]:
        """`sequences_of` the questions that the method can train on, by their indices, in order; tells how many others
        there are. Raises MindError, with the counts, if it has nothing to learn from."""
        enough = [q for q, question in enumerate(questions) if len(question.rationales) >= cls.fewest_rationales]
        able = [q for q in enough if cls.has_lesson(config, questions[q])]
        tried = enough if able and not cls.lesson_in_each else able
        made = {q: cls.sequences_of(config, questions[q], tokenized[q], sequences) for q in tried}
        chosen = {q: one for q, one in made.items() if one is not None}
        if not chosen:
            unusable = ", and it can use none of these" if able else ""
            remedy = f"; {cls.remedy}" if cls.remedy else ""
            raise MindError(
                f"method {config.method} needs {cls.lesson}: {len(able)} of {len(questions)} questions qualify"
                f"{unusable}{remedy}"
            )
        if len(chosen) < len(questions):
            tell(
                f"{len(chosen)} of {len(questions)} questions are trained on: method {config.method} needs "
                f"{cls.lesson} that it can use",
                of_results=True,
            )
        return chosen

    @classmethod
    def plan(cls, config: MindConfig, tokenized: Sequence[TokenizedQuestion]) -> list[list[int]]:
        """The questions of every step of a run, as indices; here as `train` says."""
        return plan_steps(tokenized, config.train)

    def inputs(self) -> Mapping[str, Mapping[str, str]]:
        """What it reads beside the questions and the student, which a resumed run must find as it was.

        By the option that names it: {"source": the option's value, "sha256": a digest of what is there}.
        """
        return {}

    def before_training(self) -> Iterable[Mapping[str, Any]]:
        """What comes before the first step of a new run; a resumed run leaves it out and calls `load_state_dict`.

        Returns rows for metrics.jsonl; their "phase" is "warmup", their "work", if there is any, tokens by kind.
        """
        return ()

    def parameters_by_work(self) -> Mapping[str, int]:
        """How many parameters a model has that computes tokens in the student's place, by kind (mind/run/work.py):
        {"teacher_scored": those of a teacher model}."""
        return {}

    @abstractmethod
    def prepare(self, step: Step) -> StepPlan:
        """What to compute in this step. Several processes call it with the same step and need the same plan."""

    def loss(
        self,
        hidden: Tensor,  # (N, D)
        head: Head,
        batch: MicroBatch,
        plan: StepPlan,
    ) -> LossTerms:
        """The share of a micro-batch in the step's loss, and its statistics. Here: the weighted cross-entropy,

            mean over the step's Q questions of sum_k w_qk CE_qk

        Args:
            hidden: the student's last hidden states of the micro-batch's labeled rows, with a graph.
            head: its LM head.
            batch: what the rows predict, and which rationale each belongs to.
            plan: what `prepare` returned.
        """
        loss, rows = self.cross_entropy(hidden, head, batch, self.row_weights(plan, batch, hidden))
        return LossTerms.of(loss, rows, batch)

    def cross_entropy(
        self,
        hidden: Tensor,  # (N, D)
        head: Head,
        batch: MicroBatch,
        row_weight: Tensor,  # (N,)
    ) -> tuple[Tensor, RowStats]:
        """The weighted sum of the rows' losses () and their statistics, by the options of the objective."""
        objective = self.context.config.objective
        return cross_entropy(
            hidden,
            head,
            batch,
            row_weight,
            gradient_threshold=objective.gradient_threshold,
            backend=objective.backend,
        )

    def term_of(self, slot: int) -> int:
        """The term of the loss that a slot belongs to, numbered from 0. The weights of a term have one sign; if
        `objective.normalize` is "token", each term has a mean over tokens of its own."""
        return 0

    def sequence_weights(self, plan: StepPlan) -> Tensor:  # (Q, K)
        """The weights of the means over the tokens of each sequence, by `objective.normalize`."""
        if self.context.config.objective.normalize == "sequence":
            return plan.weights
        slots = range(plan.weights.shape[1])
        tokens = [[len(q.branches[k].ids) if k in q.branches else 0 for k in slots] for q in plan.questions]
        return token_mean(plan.weights, torch.tensor(tokens), [self.term_of(slot) for slot in slots])

    def row_weights(self, plan: StepPlan, batch: MicroBatch, hidden: Tensor) -> Tensor:  # (N,)
        """The weights of a micro-batch's rows in the cross-entropy that belong to `sequence_weights`."""
        return row_weights(self.sequence_weights(plan), batch, hidden)

    def finish_step(self, plan: StepPlan, totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
        """Called after the last backward pass of a step, before the optimizer moves the student.

        Args:
            plan: what `prepare` returned.
            totals: the sums of the step, over its micro-batches and all processes; "loss" is the step's loss.
            l_real: (Q, K) float64 on the CPU, the student's mean NLL per token on each rationale that was trained on
                or observed; nan elsewhere.
        """
        return StepMetrics()

    @classmethod
    def asks_with(cls, config: MindConfig) -> str:
        """What precedes a question where the trained student is asked for its answer."""
        return ""

    def networks(self) -> Mapping[str, nn.Module]:
        """Modules that the method trains beside the student, by name.

        The trainer moves them to the student's device; they are saved as NAME.safetensors, and status.json counts
        their parameters. What a resumed run needs of them belongs to `state_dict` nevertheless.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if it had never stopped; it is saved with each checkpoint.

        Tensors, numbers, texts, and lists and dictionaries of them: torch.load reads it with weights_only=True.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        if state:
            raise NotImplementedError(f"{type(self).__name__}.load_state_dict: the checkpoint holds {sorted(state)}")

    def progress(self, logs: Mapping[str, Any]) -> str:
        """A few words for the progress bar beside loss and speed; `logs` is flat: "l_real/analogy" is a key."""
        return briefly(self.charts, logs)

    @classmethod
    def sections(cls, config: MindConfig) -> Sequence[Section]:
        """What the report shows of a run, before the section on the machine."""
        own = {chart.key: chart for chart in cls.charts}
        common = Section(STUDENT.title, tuple(own.pop(chart.key, chart) for chart in STUDENT.charts))
        return (common, Section(cls.title, tuple(own.values()))) if own else (common,)

    @classmethod
    def remarks(cls, config: MindConfig, metrics: Metrics) -> Sequence[str]:
        """Sentences on what looks wrong in the metrics of a run, for its log and its report."""
        return ()
