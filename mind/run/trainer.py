"""MindTrainer: transformers' Trainer with MIND's objective, and MetaNet calibrated beside it.

A step scores its questions, selects, and does work only where it counts: the selected rationales in micro-batches with
a forward and a backward pass each, the others, where MetaNet wants their L_real, in forward passes without a graph.
L_real then teaches MetaNet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments

from mind.batches.packing import micro_batches
from mind.batches.prompt_sharing import attention_and_pack_options, use_attention
from mind.batches.steps import plan_steps, question_tokens, shares
from mind.batches.trunk import labelled_hidden
from mind.config import MindConfig
from mind.errors import MindError
from mind.files import replacing_file
from mind.methods.mind.calibration import Calibrator
from mind.methods.mind.features import Features
from mind.methods.mind.objective import SUMS, ObjectiveTerms, StepTerms, observe, select, student_loss
from mind.records import MicroBatch, TokenizedQuestion
from mind.run.metrics import StepMeter, peak_memory
from mind.student.model import causal_lm, head_of

CALIBRATION_FILE = "calibration.pt"
METANET_FILE = "metanet.safetensors"


class MindTrainer(Trainer):
    """Trains `model` on multi-perspective steps.

    The questions of every step are planned ahead (mind/batches/steps.py); the loss is the mean of L_total over them,
    however many micro-batches and processes share the work. Several processes train as data-parallel replicas: each
    computes its share of a step's questions and they add up gradients and statistics, so that MetaNet is the same in
    all.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: torch.nn.Module,
        config: MindConfig,
        questions: Sequence[TokenizedQuestion],
        features: Features,
        calibrator: Calibrator,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **trainer_options: Any,
    ) -> None:
        """`features` are those of `questions`, in the same order; `calibrator` holds MetaNet."""
        self.config = config
        self.calibrator = calibrator
        self.features = features
        self.meter = StepMeter(config.data.perspectives)
        steps = [[questions[i] for i in step] for step in plan_steps(questions, config.train)]
        self._steps_per_epoch = len(steps) * len(questions) / sum(map(len, steps))
        self._index = {question.id: q for q, question in enumerate(questions)}
        super().__init__(
            model,
            training_arguments(config),
            data_collator=lambda steps: {"questions": steps[0]},
            train_dataset=steps,
            processing_class=tokenizer,
            **trainer_options,
        )
        self._check_launch()
        self.attention, self.packing = attention_and_pack_options(model, config, questions, self.args.device.type)
        self.remove_callback(PrinterCallback)  # MetricsCallback's bar says it better
        calibrator.metanet.to(self.args.device)

    def _check_launch(self) -> None:
        if self.args.n_gpu > 1:
            raise MindError(
                f"this process sees {self.args.n_gpu} GPUs and MindTrainer uses one a process: "
                "CUDA_VISIBLE_DEVICES picks it, torchrun starts a process for each"
            )
        kind = self.accelerator.distributed_type
        if self.args.world_size > 1 and not kind.startswith("MULTI_"):
            raise MindError(f"this launch is {kind}: MindTrainer runs in data-parallel replicas")

    def get_train_dataloader(self) -> DataLoader:
        """One item a step, in order, in every process."""
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=self.data_collator)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer.train, with the attention and, where the configuration says so, the compiled trunk that train."""
        with use_attention(self.model, self.attention), self.compiled_trunk():
            return super().train(*args, **kwargs)

    @contextmanager
    def compiled_trunk(self) -> Iterator[None]:
        """The trunk is compiled inside where `train.compile` is set; generation is left as it was."""
        trunk = causal_lm(self.model).base_model
        if self.config.train.compile:
            trunk.compile(dynamic=True)
        try:
            yield
        finally:
            trunk._compiled_call_impl = None  # what Module.compile sets; it has no inverse

    def step_features(self, questions: Sequence[TokenizedQuestion]) -> tuple[Tensor, Tensor, Tensor]:
        """MetaNet's inputs for a step: question (Q, F), rationales (Q, K, F) and present (Q, K)."""
        index = torch.tensor([self._index[question.id] for question in questions])
        present = torch.tensor(
            [[k in question.rationales for k in range(len(self.config.data.perspectives))] for question in questions]
        )
        return tuple(
            t.to(self.args.device) for t in (self.features.question[index], self.features.rationales[index], present)
        )

    def objective_terms(self, model: torch.nn.Module, batch: MicroBatch, alpha: Tensor) -> ObjectiveTerms:
        """L_total of a micro-batch under given weights alpha (Q, K), and its statistics."""
        return student_loss(labelled_hidden(model, batch), head_of(model), batch, alpha, self.config.objective)

    def training_step(self, model: torch.nn.Module, inputs: dict, num_items_in_batch: int | None = None) -> Tensor:
        """Forward and backward of one optimiser step, in as many micro-batches as it takes; feeds L_real to MetaNet."""
        started = time.perf_counter()
        model.train()
        questions = inputs["questions"]
        question, rationales, present = self.step_features(questions)
        scores = self.calibrator.metanet(question, rationales, present)
        selected, alpha = select(scores, present, self.config.objective.beta, self.config.objective.tau_student)
        mine = self._share(questions)
        student = self.accelerator.unwrap_model(model)
        trained, observed = self._micro_batches(questions, present.cpu() & mine, selected.cpu())
        terms = [self._observed(student, batch) for batch in observed]
        for batch in trained:
            with self.accelerator.autocast():
                part = self.objective_terms(student, batch, alpha)
            self.accelerator.backward(part.loss)
            terms.append(part)
        totals = self._add_up(terms, alpha.shape)
        meta_loss = self.calibrator.observe([q.id for q in questions], scores, totals.l_real.to(scores))
        self.calibrator.end_step()
        self.meter.add(questions, totals, present, scores, selected, alpha, meta_loss, self.packing)
        self.meter.add_time(time.perf_counter() - started)
        return torch.tensor(totals.loss, device=self.args.device)

    def _share(self, questions: Sequence[TokenizedQuestion]) -> Tensor:
        """(Q, 1) bool: the questions of a step that this process computes."""
        mine = torch.zeros(len(questions), 1, dtype=torch.bool)
        costs = [question_tokens(question) for question in questions]
        mine[shares(costs, self.args.world_size)[self.args.process_index]] = True
        return mine

    def _micro_batches(
        self, questions: Sequence[TokenizedQuestion], mine: Tensor, selected: Tensor
    ) -> tuple[list[MicroBatch], list[MicroBatch]]:
        """What is trained on, and what is only observed in this step; `mine` and `selected` are (Q, K)."""
        perspectives, interval = mine.shape[1], self.config.metanet.feedback_interval
        trained = micro_batches(questions, perspectives, self.packing, mine & selected)
        if interval == 0 or self.state.global_step % interval:
            return trained, []
        return trained, micro_batches(questions, perspectives, self.packing, mine & ~selected)

    def _observed(self, model: torch.nn.Module, batch: MicroBatch) -> ObjectiveTerms:
        with torch.no_grad(), self.accelerator.autocast():
            return observe(labelled_hidden(model, batch), head_of(model), batch, self.config.objective.backend)

    def _add_up(self, terms: Sequence[ObjectiveTerms], shape: torch.Size) -> StepTerms:
        """The step's terms from those of its micro-batches, and its gradients, over all processes."""
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.args.device)
        l_real = torch.zeros(2, *shape, dtype=torch.float64, device=self.args.device)  # sum and count: one is known
        for part in terms:
            sums += part.sums
            l_real[0] += part.l_real.nan_to_num(0)
            l_real[1] += ~part.l_real.isnan()
        totals = torch.cat([sums, l_real.flatten()])
        if self.args.world_size > 1:
            torch.distributed.all_reduce(totals)
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    torch.distributed.all_reduce(parameter.grad)
        totals = totals.cpu()  # the step's one wait for a GPU, after all of its work is queued
        known, count = totals[len(SUMS) :].view(2, *shape)
        return StepTerms.of(totals[: len(SUMS)], known / count)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """Not how this trainer works: a step is more than one loss. mind.evaluation has the held-out NLL."""
        raise MindError("MindTrainer.compute_loss: use training_step, or mind.evaluation for the held-out loss")

    def floating_point_ops(self, inputs: dict[str, list[TokenizedQuestion]]) -> int:
        """6 flops a parameter and token, the Trainer's own rule."""
        return 6 * sum(p.numel() for p in self.model.parameters()) * sum(map(question_tokens, inputs["questions"]))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the step's metrics to what the Trainer logs (flat, for TensorBoard)."""
        self.state.epoch = self.state.global_step / self._steps_per_epoch  # the Trainer knows one pass, over all steps
        if "loss" in logs:
            logs = logs | self.meter.flush() | {"meta_learning_rate": self.calibrator.learning_rate, **peak_memory()}
        super().log(logs, start_time)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        save_calibration(self.calibrator, Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        state = torch.load(Path(resume_from_checkpoint) / CALIBRATION_FILE, map_location="cpu", weights_only=True)
        self.calibrator.load_state_dict(state)


def training_arguments(config: MindConfig) -> TrainingArguments:
    """The Trainer's arguments for a configuration."""
    train = config.train
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(Path(config.output) / "tensorboard")
    return TrainingArguments(
        output_dir=config.output,
        per_device_train_batch_size=1,  # item of the plan, which holds all steps of the run
        num_train_epochs=1,
        learning_rate=train.learning_rate,
        warmup_steps=train.warmup_ratio,
        lr_scheduler_type=train.lr_scheduler,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        bf16=train.bf16,
        logging_steps=train.log_steps,
        save_steps=train.save_steps,
        save_total_limit=2,
        seed=train.seed,
        report_to=["tensorboard"],
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        # Named only where it is wanted: newer releases of transformers warn that the argument has a new name.
        **({"gradient_checkpointing": True} if train.gradient_checkpointing else {}),
    )


def save_calibration(calibrator: Calibrator, folder: Path) -> None:
    """Writes MetaNet's weights and, last and atomically, the calibrator's state: it marks a checkpoint as complete."""
    save_file({name: t.contiguous() for name, t in calibrator.metanet.state_dict().items()}, folder / METANET_FILE)
    with replacing_file(folder / CALIBRATION_FILE) as partial:
        torch.save(calibrator.state_dict(), partial)


def last_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint of a run folder; one that a crash left unfinished does not count."""
    complete = [file.parent for file in output.glob(f"checkpoint-*/{CALIBRATION_FILE}")]
    return max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
