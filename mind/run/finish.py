"""Writes what a finished run, or a stage of it, leaves behind: the student, its cost, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mind import processes
from mind.files import replacing_folder, saving
from mind.methods import method_title
from mind.progress import tell
from mind.report.reading import Metrics
from mind.report.student_card import CARD, student_card
from mind.run.metrics import peak_memory
from mind.run.report import run_remarks, write_run_report
from mind.run.trainer import MethodTrainer
from mind.run.work import flops
from mind.student.adapters import merged


def finish(trainer: MethodTrainer, train_s: float) -> None:
    """Saves the student, then the status, which marks the run as finished, and the report; `train_s` is how long
    training took, in seconds."""
    folder = trainer.folder
    parameters = _parameters(trainer)
    peaks = _largest(processes.together(peak_memory()))
    student = trainer.student.saved()

    def write() -> None:
        _save_student(trainer, student)  # this merges LoRA into the model, so nothing may use the adapters afterwards
        folder.write_status(_status(trainer, train_s, parameters, peaks))
        write_run_report(folder)
        for remark in run_remarks(folder):
            tell(f"note: {remark}", of_results=True)

    processes.by_main(write)


def _save_student(trainer: MethodTrainer, model: Any) -> None:
    """Saves the final student with LoRA merged, as AutoModelForCausalLM.from_pretrained loads it, and its adapter and
    the method's state beside it. Each has a model card."""
    folder, method, config = trainer.folder, trainer.method, trainer.context.config
    about = (folder, method_title(config.method), method.asks_with(config))
    if config.student.lora:
        with saving(folder.adapter), replacing_folder(folder.adapter) as partial:
            model.save_pretrained(partial, save_embedding_layers=False)
            (partial / CARD).write_text(student_card(*about, adapter=True), encoding="utf-8")
    model = merged(model)
    with saving(folder.student), replacing_folder(folder.student) as partial:
        model.save_pretrained(partial)
        trainer.context.tokenizer.save_pretrained(partial)
        (partial / CARD).write_text(student_card(*about), encoding="utf-8")
    folder.save_method(method.state_dict(), method.networks())


def _parameters(trainer: MethodTrainer) -> dict[str, int]:
    student = list(trainer.context.model.parameters())
    counts = {"student": student, "trained": [p for p in student if p.requires_grad]}
    counts |= {name: list(network.parameters()) for name, network in trainer.method.networks().items()}
    return {f"{name}_parameters": sum(p.numel() for p in parameters) for name, parameters in counts.items()}


def _status(
    trainer: MethodTrainer, train_s: float, parameters: Mapping[str, int], peaks: Mapping[str, float]
) -> dict[str, Any]:
    """The status of all stages together; sizes and the number of processes are those of the last stage."""
    folder, others = trainer.folder, trainer.method.parameters_by_work()
    logged, own = Metrics.of(folder), Metrics(folder.metrics).counted()
    tokens, seconds = (logged.total(name) for name in ("tokens", "step_s"))
    work = logged.work()
    spent = {
        "wall_s": trainer.seconds()["wall_s"],
        "train_s": train_s,
        "steps": trainer.state.global_step,
        "flops": flops(own, parameters["student_parameters"], parameters["trained_parameters"], others),
    }
    earlier = [stage.read_status() for stage in folder.stages]
    spent = {name: amount + sum(stage[name] for stage in earlier) for name, amount in spent.items()}
    peaks = {name: max([mib, *(stage.get(name, 0) for stage in earlier)]) for name, mib in peaks.items()}
    return {
        "processes": processes.count(),
        "wall_s": round(spent["wall_s"], 1),
        "train_s": round(spent["train_s"], 1),
        "steps": spent["steps"],
        "tokens": int(tokens),
        "tokens_per_s": round(tokens / seconds, 1),
        "work": logged.counted(),
        "flops": spent["flops"],
        "work_of_naive": None if work is None else round(work.of_naive(work.trained, work.observed), 4),
        **parameters,
        **{name: round(mib) for name, mib in peaks.items()},
    }


def _largest(peaks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The largest value of each name over all processes."""
    return {name: max(one[name] for one in peaks) for name in peaks[0]}
