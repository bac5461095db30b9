"""MethodTrainer: adapts transformers' Trainer to any method of mind/methods.

A step computes only what counts: forward and backward passes for the rationales that the method trains on, and forward
passes without a graph for those that it only observes.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback

from mind import processes
from mind.batches.cross_entropy import cross_entropy
from mind.batches.packing import micro_batches
from mind.batches.prompt_sharing import use_attention
from mind.batches.steps import question_tokens
from mind.batches.trunk import labeled_hidden
from mind.config import flat
from mind.errors import MindError, NotFiniteError, PausedError, StoppedError
from mind.finite import named_questions
from mind.methods.method import Method, MethodContext
from mind.methods.step import LossTerms, Measure, Step, StepMetrics, StepPlan, random_of
from mind.records import MicroBatch, TokenizedQuestion
from mind.run.arguments import training_arguments
from mind.run.checkpoints import CheckpointedTrainer
from mind.run.ending import Budget, LastStep
from mind.run.metrics import StepMeter, TensorBoard, peak_memory, row_metrics
from mind.run.replicated import Replicated
from mind.run.sampling import Sampler
from mind.run.schedule import BudgetRates, rate_factors
from mind.run.sharded import Sharded
from mind.run.step_sums import StepSums, take_from_main
from mind.run.work import generated_tokens, step_work
from mind.run_folder import RunFolder
from mind.student.adapters import check_gradients
from mind.student.model import causal_lm, head_of
from mind.student.probe import trunk_of

MOST_LOGGED = 200
"""Log lines that the Trainer's state keeps, and with it each checkpoint."""


class PlannedSteps(Dataset):
    """The questions of each optimizer step."""

    def __init__(self, context: MethodContext) -> None:
        self._context = context
        self.count = len(context.steps)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> list[TokenizedQuestion]:
        return [self._context.tokenized[index] for index in self._context.steps[number]]


class MethodTrainer(CheckpointedTrainer):
    """Trains the student of a MethodContext by a method.

    The questions of every step are planned ahead (mind/batches/steps.py); the loss is a mean over them, however many
    micro-batches and processes share the work. Each process computes its share of a step's questions; gradients and
    statistics are summed over the processes, so the method gets the same in all. Each process holds the whole student
    or a part of it, as `train.shard` says.

    It stops with a NotFiniteError at the first number that is nan or infinite, before a checkpoint can hold it, and
    with a StoppedError if the method raises one.
    """

    loss_is_scaled_for_ga = True
    student: Replicated | Sharded

    def __init__(
        self,
        context: MethodContext,
        method: Method,
        *,
        started: float | None = None,
        budget: Budget | None = None,
        pause_at: float | None = None,
        **trainer_options: Any,
    ) -> None:
        """`started` is when the run began to work, by time.perf_counter; None: now. The run ends when the `budget`
        is spent, and pauses after the first step that ends later than `pause_at`, by time.monotonic.
        `trainer_options`, such as callbacks, go to transformers' Trainer. Raises MindError for an unknown schedule
        of the learning rate."""
        self.context, self.method, self.budget = context, method, budget
        self.folder = RunFolder(context.config.output)
        self.meter = StepMeter(method.slots)
        self._gradients_checked = False
        self._steps = PlannedSteps(context)
        rate_factors(context.config.train, steps=1)  # raises for an unknown schedule
        self._training_began = time.perf_counter()
        self._started = self._training_began if started is None else started
        self._seconds_before = {"wall_s": 0.0, "train_s": 0.0}  # those of earlier starts, up to the checkpoint
        self._step, self._questions = 0, [""]  # the latest step, and the ids of its questions
        self._gradient_norm = torch.zeros(())
        self._questions_until = [0, *accumulate(map(len, context.steps))]
        super().__init__(
            context.model,
            training_arguments(context.config),
            data_collator=lambda steps: {"questions": steps[0]},
            train_dataset=self._steps,
            processing_class=context.tokenizer,
            **trainer_options,
        )
        self._check_launch()
        # `self.student` sums the gradients, instead of DistributedDataParallel in every backward pass.
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.student = Replicated(context.model)  # until training begins
        self._sampler = Sampler(context)
        self.remove_callback(PrinterCallback)  # metrics.jsonl and the progress bar show more
        self._last_step = LastStep(budget, pause_at)
        self.add_callback(self._last_step)
        for network in method.networks().values():
            network.to(self.args.device)

    def _check_launch(self) -> None:
        kind = self.accelerator.distributed_type
        if self.args.world_size > 1 and not kind.startswith("MULTI_"):
            raise MindError(
                f"this launch is {kind}: MethodTrainer trains replicas, or divides the student by train.shard itself"
            )

    def get_train_dataloader(self) -> DataLoader:
        """One item per step, in order, in every process."""
        return DataLoader(self._steps, batch_size=1, collate_fn=self.data_collator)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer.train, with the attention and, if configured, the compiled trunk for training.

        Raises NotFiniteError and StoppedError with the step and its questions (the former also with the last
        checkpoint), and PausedError with the step if it was time to pause.
        """
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self._training_began = time.perf_counter()
        if isinstance(self.student, Replicated):
            take_from_main(self.context.model.state_dict(keep_vars=True).values())
            if self.context.config.train.shard == "fsdp2":
                self.student = Sharded(self.context.model)
        with use_attention(self.context.model, self.context.attention), self.compiled_trunk(), self._reporting():
            try:
                result = super().train(*args, **kwargs)
            except (NotFiniteError, StoppedError) as error:
                where = f"step {self._step}, {named_questions(self._questions)}"
                # Resuming would end there again: a method stops because of its options.
                way_back = f"; {self.folder.way_back()}" if isinstance(error, NotFiniteError) else ""
                raise type(error)(f"{where}: {error}{self._too_fast(error)}{way_back}") from None
        if self._last_step.paused:
            raise PausedError(f"{self.folder.path}: paused after step {self.state.global_step}; --resume goes on")
        return result

    def _too_fast(self, error: Exception) -> str:
        """The end of a message about numbers that training, and not the data, may have made infinite."""
        if not isinstance(error, NotFiniteError) or self._step == 1:
            return ""
        return f"; a train.learning_rate below {self.context.config.train.learning_rate:g} may keep it finite"

    @contextmanager
    def compiled_trunk(self) -> Iterator[None]:
        """Inside the block, the trunk is compiled if `train.compile` is set; generation is not."""
        trunk = trunk_of(causal_lm(self.context.model))
        if self.context.config.train.compile:
            trunk.compile(dynamic=True)
        try:
            yield
        finally:
            trunk._compiled_call_impl = None  # Module.compile sets this and has no inverse

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Inside the block, the service that `train.report_to` names gets the metrics of this run only, not of others
        in this process."""
        report_to = self.context.config.train.report_to if self.is_world_process_zero() else "none"
        if report_to == "tensorboard":
            callback = TensorBoard(self.folder.tensorboard)
            self.add_callback(callback)
            try:
                yield
            finally:
                self.remove_callback(callback)
        elif report_to == "wandb":
            import wandb  # pyright: ignore[reportMissingImports]

            ours = wandb.run is None
            try:
                yield
            finally:
                if ours:
                    wandb.finish()  # transformers leaves it open, and the next run would add to it
        else:
            yield

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Runs forward and backward passes of one optimizer step, in as many micro-batches as needed."""
        started = time.perf_counter()
        self._draw_apart()
        self._step, self._questions = self.state.global_step + 1, [question.id for question in inputs["questions"]]
        model.train()
        student = self.context.model
        plan, work = self._prepare(student, inputs["questions"])
        totals, l_real = self._compute(student, plan)
        own = self.method.finish_step(plan, totals, l_real)
        loss = totals["loss"] if own.loss is None else own.loss
        common = row_metrics(totals, l_real)
        work.update(own.work)
        for kind in ("trained", "observed", "teacher_scored"):
            work[kind] += int(totals.get(kind, 0))
        counted = step_work(plan.questions, self.context.pack_options, work)
        self.meter.add(
            StepMetrics({**own.means, **common.means}, {**common.tables, **own.tables}, own.latest),
            loss=loss,
            questions=len(plan.questions),
            tokens=int(totals["rows"]),
            work=counted,
            seconds=time.perf_counter() - started,
        )
        if self.budget is not None:
            self.budget.add(counted)
            cast(BudgetRates, self.lr_scheduler).follow(self.budget.middle)
        return torch.tensor(loss, device=self.args.device)

    def _draw_apart(self) -> None:
        """Gives each process its own random numbers for dropout: they have different rows but were all seeded alike.
        The main process draws the same as a single process does."""
        if number := self.args.process_index:
            seed = random_of(self.args.seed, self.state.global_step, f"process {number}").initial_seed()
            torch.manual_seed(seed)

    def _prepare(self, student: nn.Module, questions: Sequence[TokenizedQuestion]) -> tuple[StepPlan, Counter[str]]:
        """The method's plan of a step, and the tokens that were computed to make it, by kind."""
        work: Counter[str] = Counter()
        step = self.state.global_step

        def observe(
            chosen: Tensor, others: Sequence[TokenizedQuestion] | None = None, /, *, measure: Measure | None = None
        ) -> Tensor:
            some = questions if others is None else others
            student.eval()  # a method's decisions use no dropout
            totals, table = self._observe(student, some, chosen, measure).over_processes(self.args.world_size)
            student.train()
            _check_finite(totals, table, some, chosen)
            work["observed"] += int(totals["observed"])
            return table

        def sample(prompts: Sequence[Sequence[int]], **options: Any) -> list[tuple[int, ...]]:
            with self.student.whole():
                samples = self._sampler.sample(step, prompts, **options)
            work["generated"] += generated_tokens(prompts, samples)
            return samples

        epoch = self._questions_until[step] // len(self.context.tokenized)
        return self.method.prepare(Step(step, epoch, questions, observe, sample)), work

    def _compute(self, student: nn.Module, plan: StepPlan) -> tuple[dict[str, float], Tensor]:
        """The sums of a step and its L_real over all processes; the gradients are summed over all processes too."""
        sums = self._observe(student, plan.questions, plan.observed)
        sums.add_number("trained", 0)
        batches = self.student.in_lockstep(self._micro_batches(plan.questions, plan.trained))
        for batch in batches:
            with self.accelerator.autocast():
                terms, loss = self.student.learn(None if batch is None else partial(self._loss, student, batch, plan))
            self.accelerator.backward(loss)
            if batch is not None and terms is not None:
                sums.add(terms)
                sums.add_number("trained", batch.total_tokens)
        if batches and not self._gradients_checked:
            check_gradients(student.named_parameters())
            self._gradients_checked = True
        if plan.trained.any():
            self.student.add_up_gradients()
        # Computed here, where the GPU is waited for anyway; clipping uses this value.
        self._gradient_norm = self.student.gradient_norm()
        sums.add_number("gradient_norm", self._gradient_norm / self.args.world_size)
        totals, l_real = sums.over_processes(self.args.world_size)
        _check_finite(totals, l_real, plan.questions, plan.trained | plan.observed)
        return totals, l_real

    def _observe(
        self,
        student: nn.Module,
        questions: Sequence[TokenizedQuestion],
        chosen: Tensor,
        measure: Measure | None = None,
    ) -> StepSums:
        """This process's share of forward passes without a graph over the chosen (Q, K) rationales; if `measure` is
        given, its result replaces L_real."""
        sums = StepSums(chosen.shape, self.args.device)
        sums.add_number("observed", 0)

        def look() -> None:
            for batch in self._micro_batches(questions, chosen):
                sums.add(self._observed(student, batch, measure))
                sums.add_number("observed", batch.total_tokens)

        if chosen.any():
            with self.accelerator.autocast():
                self.student.observe(look)
        return sums

    def _loss(self, student: nn.Module, batch: MicroBatch, plan: StepPlan) -> LossTerms:
        return self.method.loss(labeled_hidden(student, batch), head_of(student), batch, plan)

    def _observed(self, student: nn.Module, batch: MicroBatch, measure: Measure | None) -> LossTerms:
        hidden = labeled_hidden(student, batch)
        _, rows = cross_entropy(hidden, head_of(student), batch, backend=self.context.config.objective.backend)
        terms = LossTerms.of(hidden.new_zeros(()), rows, batch)
        return terms if measure is None else terms._replace(l_real=measure(hidden, head_of(student), batch))

    def _micro_batches(self, questions: Sequence[TokenizedQuestion], chosen: Tensor) -> list[MicroBatch]:
        """This process's micro-batches of the chosen (Q, K) rationales, on the CPU."""
        mine = torch.zeros(len(questions), 1, dtype=torch.bool)
        costs = [question_tokens(question) for question in questions]
        mine[processes.shares(costs, self.args.world_size)[self.args.process_index]] = True
        return micro_batches(questions, chosen.shape[1], self.context.pack_options, chosen & mine)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, self._gradient_norm)
        return self._gradient_norm

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """The learning rates of mind/run/schedule.py."""
        optimizer = cast(torch.optim.Optimizer, self.optimizer if optimizer is None else optimizer)
        train = self.context.config.train
        self.lr_scheduler = (
            LambdaLR(optimizer, rate_factors(train, len(self.context.steps)))
            if self.budget is None
            else BudgetRates(optimizer, train)
        )
        self._created_lr_scheduler = True  # tells the Trainer that another call of `train` needs a new one
        return self.lr_scheduler

    def compute_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """Not used by this trainer, since a step has more than one loss. mind.evaluation computes the held-out NLL."""
        raise MindError("MethodTrainer.compute_loss: use training_step, or mind.evaluation for the held-out loss")

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """6 flops per parameter and token, the Trainer's own rule."""
        return (
            6 * sum(p.numel() for p in self.context.model.parameters()) * sum(map(question_tokens, inputs["questions"]))
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the step's metrics to what the Trainer logs: as a line of metrics.jsonl, and flat for its callbacks."""
        # The Trainer counts a single epoch over all steps.
        self.state.epoch = self._questions_until[self.state.global_step] / len(self.context.tokenized)
        if "loss" in logs:
            # The loss comes from the meter too: the Trainer's own is lost on resuming.
            row = {**logs, **self.meter.flush(), **peak_memory(), "epoch": self.state.epoch}
            if self.is_world_process_zero():
                self.folder.append_metrics([{"phase": "train", "step": self.state.global_step, **row}])
            logs = flat(row, "/")
        super().log(logs, start_time)
        # 3 kB of memory per line, and all of it in every checkpoint; metrics.jsonl has all lines.
        del self.state.log_history[:-MOST_LOGGED]

    def end_at(self, step: int) -> None:
        """Ends training: no step comes after this one, which left a checkpoint."""
        self._steps.count = step

    def seconds(self) -> dict[str, float]:
        """Wall time of the whole run and of its training so far, over all starts; without work lost to a kill."""
        now = time.perf_counter()
        spent = {"wall_s": now - self._started, "train_s": now - self._training_began}
        return {name: self._seconds_before[name] + seconds for name, seconds in spent.items()}


def _check_finite(
    totals: Mapping[str, float], l_real: Tensor, questions: Sequence[TokenizedQuestion], computed: Tensor
) -> None:
    """Raises NotFiniteError if a sum of a step is nan or infinite, or L_real (Q, K) where it was `computed` (Q, K)
    bool."""
    bad = (computed & ~l_real.isfinite()).any(1).nonzero().flatten().tolist()
    if bad:
        raise NotFiniteError(f"the loss of {named_questions([questions[q].id for q in bad])} is not finite")
    for name, value in sorted(totals.items(), key=lambda item: item[0] != "loss"):  # the loss first, since it says most
        if not math.isfinite(value):
            raise NotFiniteError(f"the {name.replace('_', ' ')} is {value}")
