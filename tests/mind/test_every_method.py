"""What holds for every method and preset: neither packs nor kills change a run, its work is counted, and it is shown.

Whatever is in METHODS and PRESETS is tested, with its defaults but for what OPTIONS says.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress

import pytest
import torch
from every_method import EVERY, OPTIONS, config_of, trainer_of, write_inputs
from safetensors.torch import load_file
from small_run import train_rows
from tiny import build_model

import mind
from mind.batches import trunk
from mind.batches.packing import present_sequences, sequence_lengths
from mind.methods import METHODS, PRESETS, load_run_config, method_class, method_title
from mind.methods.mind.features import StudentEncoder
from mind.methods.presets import replaced
from mind.methods.step import StepPlan
from mind.report import pictures
from mind.report.reading import SAVINGS
from mind.run import sampling
from mind.run.report import write_run_report
from mind.run.trainer import MethodTrainer
from mind.run_folder import RunFolder

# Most presets are a method with one option changed; the three methods take longest.
AT_NIGHT = {"mode-cotd", "nesycd", "edit"} | (PRESETS.keys() - {"mind-uniform", "mind-table", "single"})
PARAMS = [pytest.param(name, marks=[pytest.mark.nightly] * (name in AT_NIGHT)) for name in EVERY]
# Of tests that train again: one loss, several models and stages, and the selection of rationales.
FEW = [pytest.param(name, marks=[pytest.mark.nightly] * (name not in {"sft", "lorid", "mind"})) for name in EVERY]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("every")
    write_inputs(place)
    return place


@pytest.fixture(autouse=True, scope="module")
def without_reports():
    """`test_a_run_is_counted_and_shown` writes them: one per method is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mind.run.finish.write_run_report", lambda folder: None)
        yield


@pytest.fixture(scope="module", params=PARAMS)
def whole(request, place) -> RunFolder:
    """The run that nothing interrupts."""
    if request.param == "mode-cotd":
        pytest.importorskip("nevergrad")
    return mind.train(config_of(place, request.param, place / request.param))


class Killed(BaseException):
    """What a kill is to a test."""


@pytest.mark.parametrize("whole", FEW, indirect=True)
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


@pytest.mark.parametrize("whole", FEW, indirect=True)
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
