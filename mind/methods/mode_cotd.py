"""MoDE-CoTD: trains one expert per perspective, and searches without gradients for the best mixture of them.

Each expert is a LoRA adapter that plain fine-tuning trains on the rationales of one perspective, from the same initial
student; each is an earlier stage. Then nevergrad's NGOpt searches for the weights w of the experts, starting at 0 and
within [-bound, bound], that minimize

    CE(w) + l1 mean_i |w_i|

CE(w) is the cross-entropy of the student with the mixture as its adapter, on a few questions: the mean over them, over
the rationales of each and over the tokens of each. They are training questions [ours]; the source uses labeled ones of
the evaluated task. `experts` allows the same: a second run on that task's questions with the experts of the first. The
released code adds up the means of the batches and divides by the number of examples: with n examples per batch this is
our objective with n times `l1`, up to a constant factor.

A trial is a step of the run: it observes the questions and trains on nothing. The student gets the best mixture that
was tried. The first trial uses no expert, so the student cannot become worse by this measure.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mind.batches.packing import present_rationales
from mind.config import MethodOptions, MindConfig, flat
from mind.errors import MissingError, require
from mind.methods.method import OF_ANSWERS, OF_MIND, Method, MethodContext
from mind.methods.stage import Stage
from mind.methods.step import Step, StepMetrics, StepPlan
from mind.progress import tell
from mind.records import TokenizedQuestion
from mind.report.charts import AMBER, L_REAL, Chart, Section, Series
from mind.run_folder import RunFolder
from mind.student.fingerprint import fingerprint
from mind.student.mixture import Mix, mixture, read_adapter, set_adapter, widen_adapter

if TYPE_CHECKING:
    from mind.report.reading import Metrics

OF_TRAINING = (
    "objective.gradient_threshold",
    "objective.normalize",
    "student.lora_dropout",
    *(
        f"train.{name}"
        for name in (
            "tokens_per_step",
            "questions_per_step",
            "epochs",
            "max_steps",
            "warmup_ratio",
            "lr_scheduler",
            "weight_decay",
            "max_grad_norm",
            "gradient_checkpointing",
        )
    ),
)
"""Options of every configuration that the experts read and the search does not."""

Trial = tuple[list[float], float]
"""The weights of a mixture, and the value of the objective for them."""


@dataclass(frozen=True)
class ModeCotdOptions(MethodOptions):
    """Options of MoDE-CoTD; the defaults are the authors'."""

    mix: Mix = "lorahub"
    """"lorahub": weighted sums of the adapters' matrices A and B; "exact": the weighted sum of their products B A
    (mind/student/mixture.py)."""
    l1: float = 0.05
    """Weight of the mean absolute value of the mixture's weights in the objective."""
    budget: int = 40
    """Mixtures to try; choosing the next one takes about a millisecond per earlier trial."""
    bound: float = 3.0
    """The mixture's weights lie in [-bound, bound]."""
    few_shot: int = 5
    """Number of training questions, drawn by `train.seed`, whose rationales score a mixture."""
    experts: str | None = None
    """The folder of another run of this method whose experts this run mixes, scored on its own questions; needs
    `stages.experts.skip`. None: the experts that this run trains."""

    BOUNDS = {
        "l1": "a number >= 0",
        "bound": "a positive number",
        "budget": "1 to 10,000",
        "few_shot": "at least 1",
    }


@dataclass(frozen=True, eq=False)
class TrialPlan(StepPlan):
    """`weights` are the weights of the rationales in CE(w)."""

    mixture: list[float]
    """w, the weights of the experts."""


class ModeCotd(Method):
    """The search, which is the run's own stage; the stages before it train the experts."""

    Options = ModeCotdOptions
    title = "MoDE-CoTD"
    unread = (*OF_MIND, *OF_ANSWERS, "train.learning_rate")
    sources = ("experts",)
    depends_on_length = True
    takes_all_steps = True
    begins_with = "base"

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        if self.options.mix == "exact":
            widen_adapter(context.model, context.perspectives)
        self._trials: list[Trial] = []

    @classmethod
    def stages(cls, config: MindConfig) -> list[Stage]:
        return [
            Stage(
                "single",
                name=re.sub(r"[^\w.-]", "_", perspective),
                settings="experts",
                learning_rate=5e-4,
                begins_with="base",
                changes={"data": {"only": perspective}},
            )
            for perspective in config.data.perspectives
        ]

    @classmethod
    def check(cls, config: MindConfig) -> None:
        require(config.student.lora, f"student.lora is off: method {config.method} mixes LoRA adapters")
        if importlib.util.find_spec("nevergrad") is None:
            raise MissingError(f"method {config.method} needs the package nevergrad: pip install 'mind-kernels[mode]'")
        options, skip = cls.options_in(config), _skipped(config)
        require(
            skip or options.experts is None,
            f"options.experts is {options.experts}: its experts are used with stages.experts.skip alone",
        )
        require(
            not skip or options.experts is not None,
            "stages.experts.skip: options.experts must name the run whose experts are used",
        )
        if options.experts is not None:
            _check_same(config, RunFolder(options.experts))

    @classmethod
    def unread_because(cls, config: MindConfig) -> Mapping[str, Sequence[str]]:
        return {"stages.experts.skip is on and a search trains on nothing": OF_TRAINING} if _skipped(config) else {}

    @classmethod
    def plan(cls, config: MindConfig, tokenized: Sequence[TokenizedQuestion]) -> list[list[int]]:
        """The same few questions for each trial."""
        options = cls.options_in(config)
        require(
            len(tokenized) >= options.few_shot,
            f"options.few_shot is {options.few_shot}: there are {len(tokenized)} training questions",
        )
        generator = torch.Generator().manual_seed(config.train.seed)
        chosen = torch.randperm(len(tokenized), generator=generator)[: options.few_shot]
        return [sorted(chosen.tolist())] * options.budget

    def inputs(self) -> Mapping[str, Mapping[str, str]]:
        source = self.options.experts
        if source is None:  # this run's own stages train them, from inputs that are recorded already
            return {}
        matrices = {f"{k} {name}": matrix for k, one in enumerate(self._experts) for name, matrix in one.items()}
        return {"options.experts": {"source": source, "sha256": fingerprint(matrices)}}

    @cached_property
    def _experts(self) -> list[dict[str, Tensor]]:
        """Reads the experts when they are first needed: before the run begins, its own stages have not trained them
        yet."""
        config = self.context.config
        run = RunFolder(self.options.experts or config.output)
        stages = enumerate(self.stages(config), start=1)
        return [read_adapter(run.stage(number, stage.name).adapter) for number, stage in stages]

    def prepare(self, step: Step) -> TrialPlan:
        self.context.model.eval()  # a trial scores the student as it answers, without dropout
        config, options = self.context.config, self.options
        weights = next_weights(
            self._trials, self.context.perspectives, options.bound, options.budget, config.train.seed
        )
        self._mix(weights)
        present = present_rationales(step.questions, self.context.perspectives)
        shares = present.double() / present.sum(1, keepdim=True)
        return TrialPlan(step.questions, shares, torch.zeros_like(present), present, weights)

    def _mix(self, weights: Sequence[float]) -> None:
        set_adapter(self.context.model, mixture(self._experts, weights, self.options.mix))

    def finish_step(self, plan: StepPlan, totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
        assert isinstance(plan, TrialPlan)
        loss = float((plan.weights * torch.where(plan.observed, l_real, 0)).sum(1).mean())
        value = objective(loss, plan.mixture, self.options.l1)
        self._trials.append((plan.mixture, value))
        best, least = min(self._trials, key=lambda trial: trial[1])
        names = self.context.config.data.perspectives
        if len(self._trials) == self.options.budget:
            self._mix(best)
            parts = (f"{name} {weight:.3g}" for name, weight in zip(names, best, strict=True))
            tell(f"the mixture of the experts: {', '.join(parts)}")
        shown = {"weight": plan.mixture, "best_weight": best}
        latest = {name: dict(zip(names, weights, strict=True)) for name, weights in shown.items()}
        return StepMetrics({"few_shot_loss": loss}, latest=latest | {"best_loss": least}, loss=value)

    def state_dict(self) -> dict[str, Any]:
        return {"trials": [list(trial) for trial in self._trials]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._trials = [(weights, value) for weights, value in state["trials"]]

    def progress(self, logs: Mapping[str, Any]) -> str:
        return f"best {logs['best_loss']:.3f}" if "best_loss" in logs else ""

    @classmethod
    def sections(cls, config: MindConfig) -> Sequence[Section]:
        return (SEARCH,)

    @classmethod
    def remarks(cls, config: MindConfig, metrics: Metrics) -> list[str]:
        names, bound = list(config.data.perspectives), cls.options_in(config).bound
        best = {
            name: series[-1] for name, series in zip(names, metrics.by_perspective("best_weight", names), strict=True)
        }
        if not any(best.values()):
            return ["no mixture that was tried is better than the student without experts, which is the result"]
        return [
            f"the weight of {name} is {weight:.3g}, at options.bound: a wider one may hold a better mixture"
            for name, weight in best.items()
            if abs(weight) >= 0.999 * bound
        ]


def objective(loss: float, weights: Sequence[float], l1: float) -> float:
    """What the search minimizes: the cross-entropy `loss` of a mixture plus `l1` times its mean absolute weight."""
    return loss + l1 * sum(map(abs, weights)) / len(weights)


def next_weights(trials: Sequence[Trial], count: int, bound: float, budget: int, seed: int) -> list[float]:
    """The mixture to try after `trials`.

    Each call replays all trials to a new nevergrad optimizer. So the trials are the whole state of the search, and no
    thread stays waiting between them: nevergrad runs some of its algorithms in a thread, which keeps a failed program
    from ending.

    Args:
        trials: the trials so far: each mixture as this function returned it, with its value.
        count: N, the number of experts.
        bound: largest absolute value of a weight.
        budget: number of trials of the whole search, by which NGOpt chooses its algorithm.
        seed: for the algorithms that draw at random.
    """
    import nevergrad
    import numpy as np

    weights = nevergrad.p.Array(init=np.zeros(count), lower=-bound, upper=bound)
    weights.random_state = np.random.RandomState(seed)
    search = nevergrad.optimizers.NGOpt(parametrization=weights, budget=budget)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="COBYLA: Invalid RHOEND")  # a value that nevergrad passes to SciPy
        for tried, value in trials:
            asked = search.ask()
            same = asked.value.tolist() == tried
            require(same, "the search asks for other mixtures than it did: nevergrad or SciPy is another version")
            search.tell(asked, value)
        return search.ask().value.tolist()


def _skipped(config: MindConfig) -> bool:
    """Whether the run trains no experts; False for a configuration that is not complete yet."""
    return "experts" in config.stages and config.stages["experts"].skip


def _check_same(config: MindConfig, other: RunFolder) -> None:
    """Raises MindError unless `other` is a finished run whose experts have the settings that this run's would have."""
    require(other.finished, f"options.experts {other.path}: expected the folder of a finished run")
    there, here = flat(other.read_config()), flat(asdict(config))
    for name in ("method", "student.model", "student.lora_rank", "student.lora_alpha", "student.lora_targets"):
        require(
            there.get(name) == (list(here[name]) if isinstance(here[name], tuple) else here[name]),
            f"options.experts {other.path}: {name} is {there.get(name)} there and {here[name]} here",
        )


SEARCH = Section(
    "Search for the mixture",
    (
        Chart(
            "trials",
            "Trials",
            "nats per token",
            "The cross-entropy on the few questions with the penalty of the weights; the first trial is the student "
            "without experts. The best should end well below it.",
            (Series("loss", "trial"), Series("best_loss", "best so far", AMBER)),
            smooth=False,
        ),
        Chart(
            "best_weight",
            "Weights of the best mixture so far",
            "weight",
            "The last ones are the student's. A 1 beside zeros is one expert alone; a negative weight takes away what "
            "that expert learned.",
            form="perspectives",
            smooth=False,
        ),
        Chart(
            "weight",
            "Weights that were tried",
            "weight",
            "They should settle; if they still jump at the end, a larger budget may find more.",
            form="perspectives",
            smooth=False,
        ),
        replace(L_REAL, caption="On the few questions, of the mixtures that were tried.", smooth=False),
    ),
)
