"""The interface of a training method, which is all that the trainer knows about it.

A step of the trainer, for Q questions with K rationales each:

    plan = method.prepare(step)                          which rationales it trains on, with what weights
    for each micro-batch: forward pass without a graph   the rationales that are only observed
    for each micro-batch: method.loss, backward pass     the rationales that are trained on
    method.finish_step(plan, totals, l_real)             what the method learns from the step

Packing, shared prompts, several processes, checkpoints, metrics and the report are the same for all methods. Before
`finish_step` the trainer checks that the step's sums, its gradient and L_real are finite. A method that computes
further numbers raises mind.errors.NotFiniteError if one of them is not, and StoppedError if its student gets worse.
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
"""Options that every configuration has and only MIND reads."""
OF_ANSWERS = ("objective.answer_span",)
"""Options that only methods read that compare the distributions after two rationales."""


@dataclass(frozen=True)
class MethodContext:
    """What a run passes to its method and to the trainer."""

    config: MindConfig
    model: PreTrainedModel
    """The student; in its initial state while the method is built."""
    tokenizer: PreTrainedTokenizerBase
    questions: Sequence[Question]
    """The training questions, as texts."""
    tokenized: Sequence[TokenizedQuestion]
    """The same questions in the same order, as tokens."""
    steps: Sequence[Sequence[int]]
    """The questions of every optimizer step of the run, as indices into `questions` and `tokenized`. A run with a
    budget has as many steps here as it could pay for at most, and ends before the last of them."""
    attention: str
    """transformers' name of the attention used in training."""
    pack_options: PackOptions
    sequences: Sequence[TokenizedQuestion] = ()
    """The result of `Method.sequences_of` for each of the questions."""

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
        """Tokenizes the questions, plans the steps, and chooses attention and packing (so that the `others` fit too).

        `method` may leave out questions that it cannot train on, which is reported, and make sequences of its own.

        Raises MindError for questions that do not fit into the configured lengths, for an attention that is not
        available, for adapters that cannot be trained or merged and, with the counts, if `method` can train on no
        question.
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
        """K, the number of rationales of a complete question."""
        return len(self.config.data.perspectives)


def with_learning_rate(config: MindConfig, method: type[Method]) -> MindConfig:
    """`config` with the method's default learning rate if it sets none."""
    if config.train.learning_rate is not None:
        return config
    return replace(config, train=replace(config.train, learning_rate=method.learning_rate))


class Method(ABC):
    """Base class of the training methods. METHODS in mind/methods/__init__.py lists them."""

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    """The class of `config.options`: a frozen dataclass with the options that only this method has."""
    unread: ClassVar[tuple[str, ...]] = ()
    """Options, or whole sections of them, that every configuration has and this method does not read: a run warns if
    they are set. `unread_because` has those that depend on other options."""
    sources: ClassVar[tuple[str, ...]] = ()
    """Names of the method's own options whose values are files or folders that it reads."""
    fewest_rationales: ClassVar[int] = 1
    """How many right rationales a question needs; questions with fewer are left out."""
    lesson: ClassVar[str] = "a rationale"
    """What the method looks for in a question (`has_lesson`), in the words of messages."""
    remedy: ClassVar[str] = ""
    """How to get it, for the message that no question has it."""
    lesson_in_each: ClassVar[bool] = True
    """Whether each question needs it: those without are left out. If False, one question with it is enough for a
    run."""
    depends_on_length: ClassVar[bool] = False
    """Whether a step depends on the number of steps after it: such a run cannot be extended."""
    takes_all_steps: ClassVar[bool] = False
    """Whether it takes all planned steps, whatever the budget of the run: the stages before it get the rest."""
    learning_rate: ClassVar[float] = 3e-5
    """The default of `train.learning_rate`."""
    begins_with: ClassVar[Literal["former", "base"]] = "former"
    """The student it starts with if there are earlier stages: that of the last of them, or `student.model`."""
    answer_span: ClassVar[AnswerSpan] = "suffix"
    """The tokens at which it compares rationales if `objective.answer_span` is None."""
    reads_answers: ClassVar[bool] = False
    """Whether it needs to know which tokens of the suffix are the answer, whatever the answer span is."""
    title: ClassVar[str]
    """The method's name in reports."""
    charts: ClassVar[tuple[Chart, ...]] = ()
    """Charts of its own numbers for the report and, if they have a `brief`, the progress bar. In the report, a chart
    with the key of a common chart replaces that one."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the columns of a step's tables (Q, K): the perspectives, unless the method trains on other
        sequences."""
        return self.context.config.data.perspectives

    def __init__(self, context: MethodContext) -> None:
        """Prepares everything that a new and a resumed run both need. `context.model` is the initial student, on its
        device.

        Before a run with earlier stages begins, the method is also built with `student.model`, to find faults early.
        """
        self.context = context
        self.options: Any = self.options_in(context.config)
        self.made = {one.id: one for one in context.sequences}
        """Question id -> the result of `sequences_of`."""

    @classmethod
    def options_in(cls, config: MindConfig) -> Any:
        """The method's options, of its class Options: those of the configuration, or the defaults if it has none.

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
        """Raises MindError, before anything is loaded, for options and missing packages with which the method cannot
        work."""
        cls.options_in(config)

    @classmethod
    def unread_because(cls, config: MindConfig) -> Mapping[str, Sequence[str]]:
        """Reason, such as "stages.sft.skip is on" -> further options that are not read because of it."""
        return {}

    @classmethod
    def stages(cls, config: MindConfig) -> Sequence[Stage]:
        """The stages before this one; their settings must not depend on `config`."""
        return ()

    @classmethod
    def has_lesson(cls, config: MindConfig, question: Question) -> bool:
        """Whether the question has what the method learns from, apart from right rationales."""
        return True

    @classmethod
    def sequences_of(
        cls, config: MindConfig, question: Question, tokens: TokenizedQuestion, sequences: Sequences
    ) -> TokenizedQuestion | None:
        """The sequences of a question that the method trains on: here its rationales, which are in `tokens`. None
        leaves the question out.

        It is called for questions with enough rationales and, if `lesson_in_each`, with the lesson. The result must
        hold every sequence that may be trained on: whether it fits into the rows and the student's context is checked
        before a run begins. The method finds the results in `made`.
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
        """`sequences_of` for the questions that the method can train on, by their indices, in order; reports how many
        it leaves out. Raises MindError, with the counts, if the method has nothing to learn from."""
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
        """The questions of every step of a run, as indices; here as the options of `train` say."""
        return plan_steps(tokenized, config.train)

    def inputs(self) -> Mapping[str, Mapping[str, str]]:
        """What it reads besides the questions and the student; a resumed run must find it unchanged.

        By the option that names it: {"source": the option's value, "sha256": a digest of the content}.
        """
        return {}

    def before_training(self) -> Iterable[Mapping[str, Any]]:
        """Work before the first step of a new run; a resumed run skips it and calls `load_state_dict` instead.

        Returns rows for metrics.jsonl; their "phase" is "warmup", and their "work", if any, counts tokens by kind.
        """
        return ()

    def parameters_by_work(self) -> Mapping[str, int]:
        """Kind of work (mind/run/work.py) -> number of parameters of the model that does it in the student's place:
        {"teacher_scored": parameters of a teacher model}."""
        return {}

    @abstractmethod
    def prepare(self, step: Step) -> StepPlan:
        """Decides what to compute in this step. Each process calls it with the same step and must return the same
        plan."""

    def loss(
        self,
        hidden: Tensor,  # (N, D)
        head: Head,
        batch: MicroBatch,
        plan: StepPlan,
    ) -> LossTerms:
        """A micro-batch's share of the step's loss, and its statistics. Here: the weighted cross-entropy,

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
        """The weighted sum () of the rows' losses, and their statistics, computed as `config.objective` says."""
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
        """The number, from 0, of the loss term that a slot belongs to. All weights of a term have the same sign; if
        `objective.normalize` is "token", each term has its own mean over tokens."""
        return 0

    def sequence_weights(self, plan: StepPlan) -> Tensor:  # (Q, K)
        """The weights for means over the tokens of each sequence, adjusted to `objective.normalize`."""
        if self.context.config.objective.normalize == "sequence":
            return plan.weights
        slots = range(plan.weights.shape[1])
        tokens = [[len(q.branches[k].ids) if k in q.branches else 0 for k in slots] for q in plan.questions]
        return token_mean(plan.weights, torch.tensor(tokens), [self.term_of(slot) for slot in slots])

    def row_weights(self, plan: StepPlan, batch: MicroBatch, hidden: Tensor) -> Tensor:  # (N,)
        """The weights of a micro-batch's rows in the cross-entropy, derived from `sequence_weights`."""
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
        """The words before a question when the trained student is asked for its answer."""
        return ""

    def networks(self) -> Mapping[str, nn.Module]:
        """The modules that the method trains in addition to the student, by name.

        The trainer moves them to the student's device; they are saved as NAME.safetensors, and status.json counts their
        parameters. `state_dict` must still hold what a resumed run needs of them.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to continue as if it had never stopped; saved with each checkpoint.

        Tensors, numbers, texts, and lists and dictionaries of them: torch.load reads it with weights_only=True.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        if state:
            raise NotImplementedError(f"{type(self).__name__}.load_state_dict: the checkpoint holds {sorted(state)}")

    def progress(self, logs: Mapping[str, Any]) -> str:
        """A few words for the progress bar, next to loss and speed; the keys of `logs` are flat, such as
        "l_real/analogy"."""
        return briefly(self.charts, logs)

    @classmethod
    def sections(cls, config: MindConfig) -> Sequence[Section]:
        """What the report shows for this method, before the section on the machine."""
        own = {chart.key: chart for chart in cls.charts}
        common = Section(STUDENT.title, tuple(own.pop(chart.key, chart) for chart in STUDENT.charts))
        return (common, Section(cls.title, tuple(own.values()))) if own else (common,)

    @classmethod
    def remarks(cls, config: MindConfig, metrics: Metrics) -> Sequence[str]:
        """Sentences about what looks wrong in a run's metrics, for its log and its report."""
        return ()
