"""Every method and preset on the same sums: its configuration, with its defaults but for OPTIONS, and a trainer."""

from __future__ import annotations

import dataclasses

from method_cases import slipped
from small_run import write_student
from tiny import NAMES, build_family, build_model, build_questions, build_tokenizer

from mind.config import DataConfig, EvaluationConfig, MindConfig, StageConfig, StudentConfig, TrainConfig
from mind.data.questions import save_questions
from mind.methods import METHODS, PRESETS, method_class, with_method
from mind.methods.kd import TeacherMethod
from mind.methods.method import MethodContext
from mind.methods.presets import replaced
from mind.run.data import trained_on
from mind.run.trainer import MethodTrainer
from mind.student.model import load_student

EVERY = sorted([*METHODS, *PRESETS])
OPTIONS = {
    "kd": {"on_policy": 0.6, "max_new_tokens": 5, "top": 20},
    "qcrd": {"refresh_epochs": 2, "max_new_tokens": 5, "discriminator_epochs": 2, "delta": 9.0},
    "redi": {"gamma": 0.1},
    "nesycd": {"max_new_tokens": 4},
    "mode-cotd": {"budget": 2, "few_shot": 3},
}
"""What keeps a run short, or has it do all that it can."""


def write_inputs(place):
    """A student, a teacher, and sums: some have a wrong rationale, some rules, and some lack a perspective."""
    write_student(place / "model", build_model())
    write_student(place / "teacher", build_model(seed=5))
    save_questions(questions_of(7), place / "train.jsonl")


def questions_of(count):
    rules = ("A sum is counted on.", "Its parts may change places.")
    return [
        dataclasses.replace(one, wrong_rationales=(slipped(one),) * (n % 3 > 0), knowledge=rules * (n % 4 > 0))
        for n, one in enumerate(build_questions(count))
    ]


def config_of(place, name, output, **train) -> MindConfig:
    """Two steps, each of all questions, with a checkpoint after each; as many in a stage before, or one of many."""
    kind, lora = method_class(name), name == "mode-cotd"
    options = OPTIONS.get(name, {})
    if issubclass(kind, TeacherMethod):
        options = options | {"teacher": str(place / "teacher")}
    config = MindConfig(
        output=str(output),
        student=StudentConfig(
            model=str(place / "model"), max_length=512, lora=lora, lora_rank=2, lora_targets=("q_proj", "v_proj")
        ),
        data=DataConfig(
            train=str(place / "train.jsonl"), perspectives=NAMES, only=NAMES[0] if name == "single" else None
        ),
        train=TrainConfig(
            **{"questions_per_step": 6, "max_steps": 2, "save_steps": 1, "learning_rate": 1e-3, "report_to": "none"}
            | train
        ),
        evaluation=EvaluationConfig(max_new_tokens=2),
    )
    if kind is METHODS["mind"]:
        metanet = {"width": 16, "warmup_epochs": 1, "accumulation": 2, "learning_rate": 1e-2}
        config = replaced(config, {"metanet": metanet})
    config = with_method(config, name)
    stages = {stage.settings: StageConfig(max_steps=1 if lora else 2) for stage in kind.stages(config)}
    return dataclasses.replace(config, options=kind.Options(**options), stages=stages)


def student_of(config):
    """In float64: with LayerNorm, since Llama's norm rounds to float32."""
    student = load_student(config.student)[0] if config.student.lora else build_family("starcoder2")
    return student.double()


def trainer_of(config, student=None, count=6) -> MethodTrainer:
    """Of the run's own stage, in float64, on so many questions; `student` is the one of `student_of` by default."""
    kind = method_class(config.method)
    questions = trained_on(questions_of(count), config.data)
    student = student_of(config) if student is None else student
    context = MethodContext.build(config, student, build_tokenizer(), questions, method=kind)
    method = kind(context)
    if isinstance(method, TeacherMethod):
        method.teacher.double()
    trainer = MethodTrainer(context, method)
    trainer.args.save_strategy = "no"
    return trainer
