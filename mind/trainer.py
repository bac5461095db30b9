"""MindTrainer: transformers' Trainer with MIND's objective, and MetaNet calibrated beside it.

One forward of the student yields the hidden states of the labelled rows of all K rationales; `linear_mind_loss` turns
them into L_total and into L_real of every rationale, selected or not, and L_real teaches MetaNet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments

from mind.calibration import Calibrator
from mind.config import MindConfig
from mind.errors import MindError
from mind.features import Features
from mind.metrics import StepMeter, peak_memory
from mind.objective import ObjectiveTerms, select, student_loss
from mind.packing import pack
from mind.records import PackedBatch, TokenizedQuestion
from mind.student import head_tensors, labelled_hidden

CALIBRATION_FILE = "calibration.pt"
METANET_FILE = "metanet.safetensors"


class MindTrainer(Trainer):
    """Trains `model` on packed multi-perspective batches.

    A batch is `train.questions_per_step` questions with all their rationales; the loss is the mean of L_total over the
    questions of an optimiser step, however many forward passes it is accumulated from. Runs in one process: MetaNet's
    gradients are not reduced over ranks yet, so a launch on several devices raises MindError.
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
        self._index = {question.id: q for q, question in enumerate(questions)}
        super().__init__(model, training_arguments(config), data_collator=self._collate, train_dataset=list(questions),
                         processing_class=tokenizer, **trainer_options)
        devices = max(self.args.world_size, self.args.n_gpu)
        if devices > 1:
            raise MindError(f"this launch has {self.args.world_size} processes and {self.args.n_gpu} GPUs: MindTrainer "
                            "runs in one process on one device (CUDA_VISIBLE_DEVICES picks it)")
        self.remove_callback(PrinterCallback)  # MetricsCallback's bar says it better
        calibrator.metanet.to(self.args.device)

    def _collate(self, questions: Sequence[TokenizedQuestion]) -> dict[str, PackedBatch]:
        return {"batch": pack(questions, len(self.config.data.perspectives), self.config.train.pack_length)}

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, int]:
        """The batches of one optimiser step, and how many questions they hold: the loss is a mean over those."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        return batches, sum(len(inputs["batch"].ids) for inputs in batches)

    def question_features(self, batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
        """MetaNet's inputs for a batch: question (Q, F), rationales (Q, K, F) and present (Q, K)."""
        index = torch.tensor([self._index[name] for name in batch.ids])
        device = self.args.device
        return (self.features.question[index].to(device), self.features.rationales[index].to(device),
                batch.present.to(device))

    def objective_terms(
        self, model: torch.nn.Module, batch: PackedBatch, alpha: Tensor, questions: int
    ) -> ObjectiveTerms:
        """L_total of a batch under given weights alpha (Q, K), and its statistics."""
        return student_loss(labelled_hidden(model, batch), head_tensors(model), batch, alpha, self.config.objective,
                            questions)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, PackedBatch],
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> Tensor | tuple[Tensor, ObjectiveTerms]:
        """L_total / questions of the optimiser step; feeds L_real back to MetaNet on the way."""
        batch = inputs["batch"]
        question, rationales, present = self.question_features(batch)
        scores = self.calibrator.metanet(question, rationales, present)
        selected, alpha = select(scores, present, self.config.objective.beta, self.config.objective.tau_student)
        terms = self.objective_terms(self.accelerator.unwrap_model(model), batch, alpha,
                                     num_items_in_batch or len(batch.ids))
        meta_loss = self.calibrator.observe(batch.ids, scores, present, terms.l_real)
        self.meter.add(batch, terms, scores, selected, alpha, meta_loss)
        return (terms.loss, terms) if return_outputs else terms.loss

    def training_step(self, model: torch.nn.Module, inputs: dict, num_items_in_batch: int | None = None) -> Tensor:
        """One forward and backward; after the last of an optimiser step, MetaNet's window advances too."""
        started = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.calibrator.end_step()
        self.meter.add_time(time.perf_counter() - started)
        return loss

    def floating_point_ops(self, inputs: dict[str, PackedBatch]) -> int:
        """6 flops a parameter and token, the Trainer's own rule."""
        return 6 * sum(p.numel() for p in self.model.parameters()) * inputs["batch"].total_tokens

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the step's metrics to what the Trainer logs (flat, for TensorBoard)."""
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
        per_device_train_batch_size=train.questions_per_step,
        gradient_accumulation_steps=train.gradient_accumulation,
        num_train_epochs=train.epochs,
        max_steps=train.max_steps,
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
    temporary = folder / (CALIBRATION_FILE + ".partial")
    torch.save(calibrator.state_dict(), temporary)
    temporary.replace(folder / CALIBRATION_FILE)


def last_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint of a run folder; one that a crash left unfinished does not count."""
    complete = [file.parent for file in output.glob(f"checkpoint-*/{CALIBRATION_FILE}")]
    return max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
