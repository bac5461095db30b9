"""A run from its configuration to its report: the one place that reads from top to bottom what MIND does.

data -> evaluation before -> features -> MetaNet alone -> student and MetaNet together -> evaluation after -> report
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm
from transformers import set_seed

from mind import word_problems
from mind.batches.prompt_sharing import attention_and_pack_options
from mind.batches.steps import plan_steps
from mind.config import WORD_PROBLEMS, MindConfig, save_config
from mind.data.questions import load_questions, split_heldout
from mind.errors import MindError
from mind.evaluation.evaluate import answer_accuracy, heldout_nll, rationale_losses
from mind.files import cache_folder, replacing
from mind.methods.mind.calibration import Calibrator
from mind.methods.mind.features import Features, SentenceEncoder, StudentEncoder, build_features
from mind.methods.mind.metanet import MetaNet
from mind.records import PackOptions, Question, TokenizedQuestion
from mind.report import Metrics, write_report
from mind.run.metrics import MetricsCallback, peak_memory, truncate
from mind.run.trainer import MindTrainer, last_checkpoint, save_calibration
from mind.student.model import load_student
from mind.student.tokenization import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"
STATUS_FILE = "status.json"
STUDENT_FOLDER = "student"


@dataclass(frozen=True)
class RunData:
    """The questions of a run: for training, for the held-out NLL, and for the accuracy by label."""

    train: list[Question]
    heldout: list[Question]
    evaluation: dict[str, list[Question]]


def load_data(config: MindConfig) -> RunData:
    """Reads, or generates, every question that the configuration names; raises MindError for bad input."""
    data, seed = config.data, config.train.seed
    if data.train == WORD_PROBLEMS:
        run_data = _word_problems(config)
    else:
        questions = load_questions(data.train, perspectives=data.perspectives, require_rationales=True)
        if data.heldout is None:
            train, heldout = split_heldout(questions, data.heldout_fraction, seed)
        else:
            train = questions
            heldout = load_questions(data.heldout, perspectives=data.perspectives, require_rationales=True)
        run_data = RunData(train, heldout, {})
    for file in data.evaluation:
        label = Path(file).stem
        if label in run_data.evaluation:
            raise MindError(f"data.evaluation: two files are named {label}; their results need different names")
        run_data.evaluation[label] = load_questions(file)
    return RunData(
        run_data.train[: data.max_questions],
        run_data.heldout[: config.evaluation.heldout_questions],
        run_data.evaluation,
    )


def _word_problems(config: MindConfig) -> RunData:
    data, seed = config.data, config.train.seed
    train = word_problems.generate(data.generated_questions, 3 * seed)
    seen = {question.question for question in train}
    heldout = [
        question
        for question in word_problems.generate(data.generated_heldout, 3 * seed + 1)
        if question.question not in seen
    ]
    return RunData(
        train,
        heldout,
        {
            "word-problems": word_problems.generate(data.generated_evaluation, 3 * seed + 2),
            "word-problems-ood": word_problems.generate(data.generated_evaluation, 3 * seed + 2, families="ood"),
        },
    )


def train(config: MindConfig, *, resume: bool = False) -> Path:
    """Runs `config`, or continues the run in its output folder; returns the folder.

    Everything that can be wrong with the input is checked before the folder is touched. Raises MindError.
    """
    started = time.perf_counter()
    output = Path(config.output)
    if (processes := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        raise MindError(f"this launch has {processes} processes: a run takes one, MindTrainer in a script several")
    _check_output(output, resume)
    data = load_data(config)
    set_seed(config.train.seed)
    model, tokenizer = load_student(config.student)
    _check_context(model, config)
    questions = tokenize(data.train, tokenizer, config.data.perspectives, config.student.max_length)
    heldout = tokenize(data.heldout, tokenizer, config.data.perspectives, config.student.max_length)
    plan_steps(questions, config.train)  # refuses a budget that no step can meet
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, packing = attention_and_pack_options(model, config, [*questions, *heldout], device)

    output.mkdir(parents=True, exist_ok=True)
    save_config(config, output / CONFIG_FILE)
    checkpoint = last_checkpoint(output) if resume else None
    metrics = output / METRICS_FILE
    if checkpoint is None:
        metrics.write_text("")
    else:
        truncate(metrics, int(checkpoint.name.rpartition("-")[2]))
    model.to(device)

    evaluation = _read_evaluation(output)
    if evaluation["before"] is None:
        evaluation["before"] = _evaluate(
            model, tokenizer, data, heldout, packing, config, output / "responses" / "before"
        )
        _write_json(output / EVALUATION_FILE, evaluation)

    features = _features(model, tokenizer, data.train, config)
    calibrator = _calibrator(features, config)
    if checkpoint is None:
        _warm_up(calibrator, model, questions, features, packing, config, metrics)
    trainer = MindTrainer(
        model,
        config,
        questions,
        features,
        calibrator,
        tokenizer,
        callbacks=[MetricsCallback(metrics, config.data.perspectives)],
    )
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    evaluation["after"] = _evaluate(model, tokenizer, data, heldout, packing, config, output / "responses" / "after")
    _write_json(output / EVALUATION_FILE, evaluation)
    _write_json(
        output / STATUS_FILE, _status(trainer, metrics, result.metrics["train_runtime"], time.perf_counter() - started)
    )
    _save_student(trainer, output)  # merges LoRA into the model, so nothing looks at the adapters after it
    write_report(output)
    return output


def _check_output(output: Path, resume: bool) -> None:
    if resume and not (output / CONFIG_FILE).exists():
        raise MindError(f"{output}: there is no run to resume ({CONFIG_FILE} is missing)")
    if not resume and output.exists() and (not output.is_dir() or any(output.iterdir())):
        what = "already holds a run" if (output / CONFIG_FILE).exists() else "exists and is not an empty folder"
        raise MindError(
            f"{output}: {what}; name another --output"
            + (", or continue it with --resume" if (output / CONFIG_FILE).exists() else "")
        )


def _check_context(model: PreTrainedModel, config: MindConfig) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and config.student.max_length > context:
        raise MindError(
            f"student.max_length is {config.student.max_length}: the context of {config.student.model} "
            f"is {context} tokens"
        )


def _features(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], config: MindConfig
) -> Features:
    model.eval()
    if config.metanet.encoder == "student":
        encoder = StudentEncoder(model, tokenizer, config.train.pack_length)
    else:
        encoder = SentenceEncoder(config.metanet.encoder)
    texts = sum(1 + len(question.rationales) for question in questions)
    with tqdm(total=texts, unit="text", desc="MetaNet features", leave=False) as bar:
        return build_features(questions, config.data.perspectives, encoder, cache_folder(), bar.update)


def _calibrator(features: Features, config: MindConfig) -> Calibrator:
    torch.manual_seed(config.train.seed)  # the same MetaNet whether the run is new or resumed
    metanet = MetaNet(
        features.question.shape[1], len(config.data.perspectives), config.metanet.width, config.metanet.synergy_heads
    )
    return Calibrator(metanet, config.metanet, config.metanet_learning_rate)


def _warm_up(
    calibrator: Calibrator,
    model: PreTrainedModel,
    questions: Sequence[TokenizedQuestion],
    features: Features,
    packing: PackOptions,
    config: MindConfig,
    metrics: Path,
) -> None:
    """MetaNet alone: L_real of the still student on every rationale, once, then epochs over that table."""
    if config.metanet.warmup_epochs == 0:
        return
    model.eval()
    with tqdm(total=len(questions), unit="question", desc="MetaNet warm-up", leave=False) as bar:
        losses, tokens = rationale_losses(model, questions, len(config.data.perspectives), packing, bar.update)
    history = calibrator.warm_up(
        features.question, features.rationales, tokens > 0, losses, config.metanet.warmup_questions, config.train.seed
    )
    with metrics.open("a") as stream:
        for epoch, loss in enumerate(history, start=1):
            stream.write(json.dumps({"phase": "warmup", "epoch": epoch, "meta_loss": loss}) + "\n")


def _evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: RunData,
    heldout: Sequence[TokenizedQuestion],
    packing: PackOptions,
    config: MindConfig,
    responses: Path,
) -> dict[str, Any]:
    nll = heldout_nll(model, heldout, config.data.perspectives, packing)
    return {"heldout": nll, "files": answer_accuracy(model, tokenizer, data.evaluation, config.evaluation, responses)}


def _save_student(trainer: MindTrainer, output: Path) -> None:
    """The final student, LoRA merged, as AutoModelForCausalLM.from_pretrained loads it, and MetaNet beside it."""
    folder = output / STUDENT_FOLDER
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    save_calibration(trainer.calibrator, output)


def _status(trainer: MindTrainer, metrics: Path, train_s: float, wall_s: float) -> dict[str, Any]:
    logged = Metrics(metrics)
    tokens, seconds = (float(logged.series(name).sum()) for name in ("tokens", "step_s"))
    work = logged.work()
    parameters = list(trainer.model.parameters())
    return {
        "wall_s": round(wall_s, 1),
        "train_s": round(train_s, 1),
        "steps": trainer.state.global_step,
        "tokens": int(tokens),
        "tokens_per_s": round(tokens / seconds, 1),
        "work_of_naive": None if work is None else round(work.of_naive(work.trained, work.observed), 4),
        "student_parameters": sum(p.numel() for p in parameters),
        "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "metanet_parameters": sum(p.numel() for p in trainer.calibrator.metanet.parameters()),
        **{name: round(mib) for name, mib in peak_memory().items()},
    }


def _read_evaluation(output: Path) -> dict[str, Any]:
    file = output / EVALUATION_FILE
    return json.loads(file.read_text()) if file.exists() else {"before": None, "after": None}


def _write_json(file: Path, value: Any) -> None:
    with replacing(file) as replacement:
        replacement.write(json.dumps(value, indent=2) + "\n")
