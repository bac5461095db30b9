"""What holds for every method and preset: neither packs nor kills change a run, its work is counted, and it is shown.

Whatever is in METHODS and PRESETS is tested, with its defaults but for what OPTIONS says.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from contextlib import suppress

import pytest
import torch
from method_cases import slipped
from safetensors.torch import load_file
from small_run import train_rows, write_student
from tiny import NAMES, build_family, build_model, build_questions, build_tokenizer

import mind
from mind.batches import trunk
from mind.batches.packing import present_sequences, sequence_lengths
from mind.config import (
    DataConfig,
    EvaluationConfig,
    MindConfig,
    StageConfig,
    StudentConfig,
    TrainConfig,
)
from mind.data.questions import save_questions
from mind.methods import METHODS, PRESETS, load_run_config, method_class, method_title, with_method
from mind.methods.kd import TeacherMethod
from mind.methods.method import MethodContext
from mind.methods.mind.features import StudentEncoder
from mind.methods.presets import replaced
from mind.methods.step import StepPlan
from mind.report import pictures
from mind.report.reading import SAVINGS
from mind.run import sampling
from mind.run.data import trained_on
from mind.run.report import write_run_report
from mind.run.trainer import MethodTrainer
from mind.run_folder import RunFolder
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


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A student, a teacher, and sums: some have a wrong rationale, some rules, and some lack a perspective."""
    place = tmp_path_factory.mktemp("every")
    write_student(place / "model", build_model())
    write_student(place / "teacher", build_model(seed=5))
    save_questions(questions_of(7), place / "train.jsonl")
    return place


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


@pytest.fixture(autouse=True, scope="module")
def without_reports():
    """`test_a_run_is_counted_and_shown` writes them: one per method is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mind.run.train.write_run_report", lambda folder: None)
        yield


@pytest.fixture(scope="module", params=EVERY)
def whole(request, place) -> RunFolder:
    """The run that nothing interrupts."""
    if request.param == "mode-cotd":
        pytest.importorskip("nevergrad")
    return mind.train(config_of(place, request.param, place / request.param))


class Killed(BaseException):
    """What a kill is to a test."""


def test_kills_change_nothing(whole, place, tmp_path, monkeypatch):
    """In each step, after its loss and before its checkpoint; of a stage before and of a preset, in the last one."""
    config, killed, step = config_of(place, whole.path.name, tmp_path / "run"), [], MethodTrainer.training_step

    def training_step(self, *arguments, **named):
        loss, here = step(self, *arguments, **named), (self.folder.path, self.state.global_step)
        every = self.folder == run and config.method in METHODS
        if here not in killed and (every or here[1] == len(self.context.steps) - 1):
            killed.append(here)
            raise Killed
        return loss

    monkeypatch.setattr(MethodTrainer, "training_step", training_step)
    run = RunFolder(config.output)
    while not run.finished:
        with suppress(Killed):
            mind.train(config, resume=run.path.exists())
    assert len(killed) == len(run.stages) + (2 if config.method in METHODS else 1)
    for again, straight in zip([*run.stages, run], [*whole.stages, whole], strict=True):
        assert train_rows(again.path) == train_rows(straight.path)
        first, second = (load_file(folder.student / "model.safetensors") for folder in (again, straight))
        assert all(torch.equal(value, second[name]) for name, value in first.items())
        assert again.read_evaluation() == straight.read_evaluation()


@pytest.fixture
def passed(monkeypatch):
    """Counts tokens by what goes through a trunk. Answers are generated one by one here, so that no row is padded."""
    counts, kinds = Counter(), [None]
    counts.teacher, counts.passes = None, 0
    real_states, real_encode, real_generate = trunk.trunk_states, StudentEncoder.encode, sampling.generate_ids

    def states(model, inputs):
        counts.passes += 1
        own = "trained" if torch.is_grad_enabled() else "observed"
        counts[kinds[-1] or ("teacher_scored" if model is counts.teacher else own)] += inputs["input_ids"].numel()
        return real_states(model, inputs)

    def encode(self, texts, progress):
        kinds.append("encoded")
        vectors = real_encode(self, texts, progress)
        kinds.pop()
        return vectors

    def generate(model, *arguments, batch_size, **options):
        def count(module, inputs, keywords):
            counts["generated"] += keywords["input_ids"].numel()

        hook = model.base_model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            return real_generate(model, *arguments, batch_size=1, **options)
        finally:
            hook.remove()

    monkeypatch.setattr(trunk, "trunk_states", states)
    monkeypatch.setattr(StudentEncoder, "encode", encode)
    monkeypatch.setattr(sampling, "generate_ids", generate)
    return counts


def trainer_of(config) -> MethodTrainer:
    """Of the run's own stage, in float64: a student with LayerNorm, since Llama's norm rounds to float32."""
    student = load_student(config.student)[0] if config.student.lora else build_family("stablelm", use_qkv_bias=False)
    kind = method_class(config.method)
    questions = trained_on(questions_of(6), config.data)
    context = MethodContext.build(config, student.double(), build_tokenizer(), questions, method=kind)
    method = kind(context)
    if isinstance(method, TeacherMethod):
        method.teacher.double()
    trainer = MethodTrainer(context, method)
    trainer.args.save_strategy = "no"
    return trainer


def logged_work(rows) -> Counter:
    """The tokens of each kind in lines of metrics.jsonl."""
    return sum((Counter(row.get("work", {})) for row in rows), Counter())


def planned(method) -> list[StepPlan]:
    """The plans that the method will make."""
    plans, prepare = [], method.prepare

    def recorded(step):
        plans.append(prepare(step))
        return plans[-1]

    method.prepare = recorded
    return plans


def test_packs_change_nothing_and_work_is_what_went_through_the_trunks(whole, place, tmp_path, passed, monkeypatch):
    """All in one micro-batch, and in many, with shared prompts and, presets too, without. What has no weight is not
    trained on."""
    name, length, found = whole.path.name, 4000, []
    for number, share in enumerate(("always", "always", "never") if name in METHODS else ("always", "never")):
        output = tmp_path / str(number)
        monkeypatch.setenv("MIND_CACHE", str(output / "cache"))
        passed.clear()
        passed.passes = 0
        config = config_of(place, name, output, pack_length=length, share_prompts=share)
        config = replaced(config, {"objective": {"normalize": "token"}})
        if name == "mode-cotd":  # the run's own stage alone
            config = replaced(config, {"options": {"experts": str(whole.path)}})
        trainer = trainer_of(config)
        length = max(max(sequence_lengths(question)) for question in trainer.context.sequences)
        method, passed.teacher = trainer.method, getattr(trainer.method, "teacher", None)
        plans, work = planned(method), logged_work(method.before_training())
        trainer.train()
        rows = [row for row in trainer.state.log_history if "loss" in row]
        assert all(isinstance(method.progress(row), str) for row in rows)
        work += logged_work(json.loads(line) for line in trainer.folder.metrics.read_text().splitlines())
        work["observed"] += work.pop("search", 0)
        assert Counter({kind: tokens for kind, tokens in work.items() if kind not in SAVINGS}) == passed
        assert (passed["generated"] > 0) == ("max_new_tokens" in OPTIONS.get(name, {}))
        for plan in plans:
            assert not plan.trained.any() or torch.equal(plan.trained, plan.weights != 0)
        student = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        found.append((passed.passes, torch.tensor([row["loss"] for row in rows], dtype=torch.float64), student))
    assert found[0][0] < found[1][0] <= found[-1][0]
    tolerance = 1e-6 if "metanet" in method.networks() else 1e-12  # MetaNet is in float32
    for _, losses, student in found[1:]:
        torch.testing.assert_close(losses, found[0][1], rtol=0, atol=tolerance)
        torch.testing.assert_close(student, found[0][2], rtol=0, atol=tolerance)


def test_a_run_is_counted_and_shown(whole, monkeypatch):
    config, runs = load_run_config(whole.config), [*whole.stages, whole]
    work, cost, student = Counter(), 0, sum(p.numel() for p in build_model().parameters())
    adapters = 2 * 2 * (2 * 32 + 32 + 16) if config.student.lora else 0  # layers, rank, rows and columns of q and v
    trained = 4 * (student + adapters) + 2 * (adapters or student)
    for run in runs:
        of_run = logged_work(json.loads(line) for line in run.metrics.read_text().splitlines())
        work += of_run
        computed = Counter({kind: n for kind, n in of_run.items() if kind not in SAVINGS})
        cost += trained * computed.pop("trained", 0) + 2 * (student + adapters) * computed.total()
    status = whole.read_status()
    assert Counter(status["work"]) == work and status["flops"] == cost
    drawn = []  # the keys of the charts; a picture itself takes long
    monkeypatch.setattr(pictures, "svg_of", lambda figure, key: drawn.append(key) or "<svg></svg>")
    page = write_run_report(whole).read_text()
    charts = [chart for section in method_class(config.method).sections(config) for chart in section.charts]
    assert f"{method_title(config.method)} run report" in page
    assert {chart.key for chart in charts if not chart.only_if_positive} <= set(drawn)


WITHOUT_WEIGHT = {
    "edit": {"beta": 0.0},
    "nesycd": {"answer": 0.0},
    "qcrd": {"label": 0.0},
    "redi": {"alpha": 0.0},
    "sbs": {"alpha": 1.0},
}
"""Options with which some sequences have weight 0."""


@pytest.mark.parametrize("name", WITHOUT_WEIGHT)
def test_what_has_no_weight_has_no_backward_pass(name, place, tmp_path):
    config = config_of(place, name, tmp_path, max_steps=1)
    trainer = trainer_of(replaced(config, {"options": WITHOUT_WEIGHT[name]}))
    plans = planned(trainer.method)
    trainer.train()
    (plan,) = plans
    there = present_sequences(plan.questions, plan.weights.shape[1])
    without = there & (plan.weights == 0)
    assert without.any() and plan.trained.any() and not (plan.trained & without).any()
