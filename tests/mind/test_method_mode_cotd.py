"""MoDE-CoTD: mixtures of adapters and their search by hand, and runs with their experts."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from small_run import content, train_rows, write_student
from test_stages import same_students
from tiny import NAMES, build_model, build_questions
from torch import nn
from worked_example import QUESTION, head, hidden_of

import mind
from mind.batches.cross_entropy import cross_entropy
from mind.batches.packing import micro_batches
from mind.batches.steps import question_tokens
from mind.config import DataConfig, EvaluationConfig, MindConfig, StageConfig, StudentConfig, TrainConfig
from mind.data.questions import load_questions, save_questions
from mind.errors import MindError
from mind.methods import load_run_config, with_options
from mind.methods.method import MethodContext
from mind.methods.mode_cotd import ModeCotd, ModeCotdOptions, next_weights, objective
from mind.methods.step import LossTerms, Step
from mind.records import PackOptions
from mind.run.report import run_remarks
from mind.run.step_sums import StepSums
from mind.run.trainer import MethodTrainer
from mind.run.unused import warn_of_unused_options
from mind.run_folder import RunFolder
from mind.student.adapters import merged
from mind.student.mixture import mixture, read_adapter, set_adapter, widen_adapter
from mind.student.model import load_student
from mind.student.tokenization import embedding_rows, tokenize

EXPERTS = [
    {"x.lora_A.weight": torch.tensor([[1.0, 2]]), "x.lora_B.weight": torch.tensor([[1.0], [0]])},
    {"x.lora_A.weight": torch.tensor([[0.0, 1]]), "x.lora_B.weight": torch.tensor([[1.0], [1]])},
]
MIXTURES = {"lorahub": [[-0.25, 0], [-0.5, 0]], "exact": [[0.5, 0], [0, -1]]}
PACKINGS = [PackOptions(length, share) for length in (12, 64) for share in (True, False)]


@pytest.mark.parametrize(("mix", "expected"), MIXTURES.items())
def test_mixtures_by_hand(mix, expected):
    matrices = mixture(EXPERTS, [0.5, -1.0], mix)
    assert torch.equal(matrices["x.lora_B.weight"] @ matrices["x.lora_A.weight"], torch.tensor(expected))


def adapted(**lora):
    model = get_peft_model(build_model(tie_word_embeddings=False).double(), LoraConfig(r=2, lora_alpha=3, **lora))
    return model.double()


def added(factors, weights, mix):
    """What the adapters with `factors` (B, A) add to a layer together, apart from the scale."""
    if mix == "exact":
        return sum(w * b @ a for w, (b, a) in zip(weights, factors, strict=True))
    both = [sum(w * pair[side] for w, pair in zip(weights, factors, strict=True)) for side in (0, 1)]
    return both[0] @ both[1]


@pytest.mark.parametrize("mix", MIXTURES)
def test_a_model_computes_with_the_mixture(mix, tmp_path):
    """Linear layers, the head and the embeddings."""
    targets = ["q_proj", "down_proj", "lm_head", "embed_tokens"]
    weights, experts, states = (0.5, -1.25, 2.0), [], []
    for seed in range(3):
        expert = adapted(target_modules=targets)
        torch.manual_seed(seed)
        for parameter in expert.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter)
        expert.save_pretrained(tmp_path / str(seed), save_embedding_layers=False)
        experts.append(read_adapter(tmp_path / str(seed)))
        states.append({name: matrix.clone() for name, matrix in get_peft_model_state_dict(expert).items()})
    model = adapted(target_modules=targets)
    if mix == "exact":
        widen_adapter(model, 3)
    set_adapter(model, mixture(experts, weights, mix))
    plain, changed = dict(build_model(tie_word_embeddings=False).double().named_parameters()), 0
    for name, found in merged(model.double()).named_parameters():
        expected = plain[name]
        if names := sorted(key for key in states[0] if name.removesuffix(".weight") in key and "lora_" in key):
            more = added([(state[names[1]], state[names[0]]) for state in states], weights, mix)
            expected, changed = expected + 1.5 * (more.T if "embed" in name else more), changed + 1
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=name)
    assert changed == 6


def test_the_objective_by_hand():
    assert objective(1.25, [0.5, -1.0], 0.05) == pytest.approx(1.2875, abs=1e-12)
    # The released code divides the cross-entropy by the number of examples, here 5: as five times the penalty.
    assert objective(1.25, [0.5, -1.0], 5 * 0.05) / 5 == pytest.approx(0.2875, abs=1e-12)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_trial_by_hand(packing, monkeypatch):
    """From the example's question to the value that the search is told, in float64."""
    monkeypatch.setattr("mind.methods.mode_cotd.next_weights", lambda *_: [0.5, -1.0, 0.0])
    built, mixed = ModeCotd.__new__(ModeCotd), []
    config = with_options(MindConfig(method="mode-cotd", data=DataConfig(perspectives=NAMES)))
    built.context = MethodContext(config, nn.Module(), None, [], [QUESTION], [[0]], "sdpa", packing)
    built.options, built._trials, built._mix = config.options, [], mixed.append
    plan = built.prepare(Step(0, 0, [QUESTION], lambda chosen: chosen))
    assert mixed == [[0.5, -1.0, 0.0]] and not built.context.model.training and not plan.trained.any()
    sums = StepSums(plan.weights.shape, torch.device("cpu"))
    for batch in micro_batches(plan.questions, 3, packing, plan.observed):
        hidden = hidden_of(batch)
        sums.add(LossTerms.of(torch.zeros(()), cross_entropy(hidden, head(), batch)[1], batch))
    metrics = built.finish_step(plan, *sums.over_processes(1))
    assert metrics.means["few_shot_loss"] == pytest.approx(1.850156541971, abs=1e-12)
    assert metrics.loss == pytest.approx(1.850156541971 + 0.05 * 0.5, abs=1e-12)
    assert metrics.latest["weight"] == dict(zip(NAMES, (0.5, -1.0, 0.0), strict=True))


@pytest.mark.parametrize(("count", "budget", "bound"), [(2, 1, 3.0), (3, 25, 3.0), (8, 30, 0.5)])
def test_the_search_begins_without_experts_and_stays_within_the_bound(count, budget, bound):
    target = torch.linspace(-0.3, 0.4, count).tolist()
    trials = []
    for _ in range(budget):
        weights = next_weights(trials, count, bound, budget, seed=0)
        trials.append((weights, 1 + sum((w - t) ** 2 for w, t in zip(weights, target, strict=True))))
    assert trials[0][0] == [0.0] * count and len(trials[0][0]) == count
    assert max(abs(w) for weights, _ in trials for w in weights) <= bound
    if budget > 1:
        assert min(value for _, value in trials) < 1 + (trials[0][1] - 1) / 2
    assert next_weights(trials[:-1], count, bound, budget, seed=0) == trials[-1][0]


def test_trials_of_another_search_are_refused():
    with pytest.raises(MindError, match="asks for other mixtures than it did: nevergrad or SciPy is another version"):
        next_weights([([0.5, 0.5], 1.0)], 2, 3.0, 40, seed=0)


BUDGET, FEW, TWO = 7, 3, NAMES[:2]


def config_of(place, output, **changes) -> MindConfig:
    """Three steps of each expert and seven trials, with a checkpoint every second step."""
    config = MindConfig(
        output=str(output),
        method="mode-cotd",
        options=ModeCotdOptions(budget=BUDGET, few_shot=FEW, l1=0.01),
        student=StudentConfig(
            model=str(place / "model"), max_length=512, lora=True, lora_rank=2, lora_targets=("q_proj", "v_proj")
        ),
        data=DataConfig(train=str(place / "train.jsonl"), heldout=str(place / "test.jsonl"), perspectives=TWO),
        train=TrainConfig(questions_per_step=2, max_steps=3, save_steps=2, report_to="none"),
        stages={"experts": StageConfig(learning_rate=0.05)},
        evaluation=EvaluationConfig(max_new_tokens=2),
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("mode")
    write_student(place / "model", build_model())
    questions = [
        dataclasses.replace(one, rationales=tuple(each for each in one.rationales if each.perspective in TWO))
        for one in build_questions(11)
    ]
    save_questions(questions[:8], place / "train.jsonl")
    save_questions(questions[9:], place / "test.jsonl")
    return place


@pytest.fixture(scope="module")
def whole(place) -> RunFolder:
    """The run that nothing interrupts."""
    return mind.train(config_of(place, place / "whole"))


def test_an_expert_is_a_run_of_its_own(place, whole, tmp_path):
    """Its student is that of `single` on one perspective with LoRA, and its adapter an ordinary one."""
    assert [stage.path.name for stage in whole.stages] == ["1-first", "2-second"]
    stage = whole.stages[1]
    own = dataclasses.replace(load_run_config(stage.config), output=str(tmp_path / "own"))
    assert (own.method, own.data.only, own.train.learning_rate) == ("single", "second", 0.05)
    alone = mind.train(own)
    assert train_rows(alone.path) == train_rows(stage.path) and same_students(alone, stage)
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(build_model(), stage.adapter).merge_and_unload()
    saved = load_file(stage.student / "model.safetensors")
    for name, parameter in loaded.named_parameters():
        torch.testing.assert_close(saved[name], parameter)


def test_the_student_is_the_best_mixture_that_was_tried(place, whole):
    rows = train_rows(whole.path)
    assert [row["step"] for row in rows] == list(range(1, BUDGET + 1))
    best = min(rows, key=lambda row: row["loss"])
    assert rows[-1]["best_weight"] == best["weight"] and rows[-1]["best_loss"] == best["loss"] < rows[0]["loss"]
    assert not any(rows[0]["weight"].values()) and any(best["weight"].values())
    for row in rows:
        penalty = 0.01 * sum(map(abs, row["weight"].values())) / 2
        assert row["loss"] == pytest.approx(row["few_shot_loss"] + penalty, abs=1e-12)
    experts = [load_file(stage.adapter / "adapter_model.safetensors") for stage in whole.stages]
    weights, saved = list(best["weight"].values()), load_file(whole.student / "model.safetensors")
    changed = 0
    for name, expected in build_model().named_parameters():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            keys = [f"base_model.model.{name.removesuffix('weight')}lora_{side}.weight" for side in "BA"]
            factors = [[expert[key].double() for key in keys] for expert in experts]
            expected, changed = expected + 16 * added(factors, weights, "lorahub"), changed + 1
        torch.testing.assert_close(saved[name].double(), expected.double(), rtol=1e-5, atol=1e-6, msg=name)
    assert changed == 4


def few_shot(place):
    """The tokens of the questions that the seed draws."""
    questions = load_questions(place / "train.jsonl")
    chosen = sorted(torch.randperm(8, generator=torch.Generator().manual_seed(0))[:FEW].tolist())
    model, tokenizer = load_student(StudentConfig(model=str(place / "model")))
    return model, tokenize([questions[q] for q in chosen], tokenizer, TWO, 512, embedding_rows(model))


def test_the_first_trial_and_the_counters_by_brute_force(place, whole):
    model, questions = few_shot(place)
    means = []
    for question in questions:
        losses = []
        for branch in question.branches.values():
            ids = torch.tensor([[*question.prompt, *branch.ids]])
            labels = ids.clone()
            labels[:, : len(question.prompt)] = -100
            losses.append(model(input_ids=ids, labels=labels).loss.item())
        means.append(sum(losses) / len(losses))
    rows = train_rows(whole.path)
    assert rows[0]["loss"] == pytest.approx(sum(means) / FEW, rel=1e-5)
    tokens = sum(map(question_tokens, questions))
    assert {tuple(row["work"].items()) for row in rows} == {(("search", tokens),)}
    assert whole.read_status()["work"]["search"] == BUDGET * tokens


def test_the_report_shows_the_search(whole):
    page = whole.report.read_text()
    for words in ("MoDE-CoTD", "Search for the mixture", "Weights of the best mixture so far"):
        assert words in page
    assert run_remarks(whole) == []


class Killed(BaseException):
    """What a kill is to a test."""


def killed(config, monkeypatch, steps, **options):
    """A run that is killed in the step after so many, of all stages together."""
    step, count = MethodTrainer.training_step, itertools.count()

    def training_step(self, *arguments, **named):
        if next(count) == steps:
            raise Killed
        return step(self, *arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(MethodTrainer, "training_step", training_step)
        mind.train(config, **options)


@pytest.mark.nightly
def test_kills_change_nothing(place, whole, tmp_path, monkeypatch):
    """In the third step of the second expert, and in the sixth trial; there are checkpoints after even ones."""
    config = config_of(place, tmp_path / "run")
    killed(config, monkeypatch, 3 + 2)
    assert (
        list(RunFolder(config.output).stages[1].checkpoints()) == [2] and not RunFolder(config.output).metrics.exists()
    )
    killed(config, monkeypatch, 1 + 5, resume=True)
    assert list(RunFolder(config.output).checkpoints()) == [2, 4]
    run = mind.train(config, resume=True)
    for again, straight in zip([run, *run.stages], [whole, *whole.stages], strict=True):
        assert train_rows(again.path) == train_rows(straight.path) and same_students(again, straight)
        assert again.read_evaluation() == straight.read_evaluation()


def test_experts_of_another_run_are_mixed(place, whole, tmp_path):
    """The exact mixture of them, from an adapter of twice their rank."""
    before = content(whole.path)
    options = ModeCotdOptions(mix="exact", budget=6, few_shot=FEW, l1=0.0, experts=str(whole.path))
    config = config_of(place, tmp_path / "run", options=options, stages={"experts": StageConfig(skip=True)})
    with_dropout = dataclasses.replace(config.student, lora_dropout=0.5)  # which is off in a trial
    run = mind.train(dataclasses.replace(config, student=with_dropout))
    rows, others = train_rows(run.path), train_rows(whole.path)
    assert not run.stages and rows[0]["few_shot_loss"] == others[0]["few_shot_loss"]
    for row, other in zip(rows, others, strict=False):  # one expert alone is the same in both forms
        if sum(map(bool, row["weight"].values())) == 1 and row["weight"] == other["weight"]:
            assert row["few_shot_loss"] == pytest.approx(other["few_shot_loss"], rel=1e-5)
    experts = [read_adapter(stage.adapter) for stage in whole.stages]
    weights, saved = list(rows[-1]["best_weight"].values()), load_file(run.student / "model.safetensors")
    name = "model.layers.1.self_attn.v_proj."
    keys = [f"base_model.model.{name}lora_{side}.weight" for side in "BA"]
    more = 16 * added([[expert[key] for key in keys] for expert in experts], weights, "exact")
    torch.testing.assert_close(saved[f"{name}weight"], dict(build_model().named_parameters())[f"{name}weight"] + more)
    assert read_adapter(run.adapter)[keys[1]].shape == (4, 32)
    assert run.read_inputs()["options.experts"]["source"] == str(whole.path)
    assert content(whole.path) == before


@pytest.mark.parametrize("skip", [True, False])
def test_what_only_the_experts_read_is_told_if_they_are_skipped(place, tmp_path, skip):
    options = ModeCotdOptions(experts="there" if skip else None)
    config = config_of(place, tmp_path / "run", options=options, stages={"experts": StageConfig(skip=skip)})
    train = dataclasses.replace(config.train, questions_per_step=3, max_steps=5, weight_decay=0.1)
    student = dataclasses.replace(config.student, lora_dropout=0.5)
    with pytest.warns(RuntimeWarning) as caught:
        warn_of_unused_options(with_options(dataclasses.replace(config, train=train, student=student)))
        warnings.warn("the last one", RuntimeWarning, stacklevel=1)
    told = [str(one.message) for one in caught if "a search trains on nothing" in str(one.message)]
    assert len(told) == skip
    for name in ("student.lora_dropout", "train.questions_per_step", "train.max_steps", "train.weight_decay"):
        assert all(name in line for line in told)


FAULTS = {
    "student.lora is off: method mode-cotd mixes LoRA adapters": {"student": {"lora": False}},
    "options.few_shot is 9: there are 8 training questions": {"options": {"few_shot": 9}},
    "options.experts is there: its experts are used with stages.experts.skip alone": {"options": {"experts": "there"}},
    "stages.experts.skip: options.experts must name the run": {"stages": {"experts": StageConfig(skip=True)}},
}


@pytest.mark.parametrize("message", FAULTS)
def test_bad_input_is_told_before_the_run_begins(place, tmp_path, message):
    config = config_of(place, tmp_path / "run")
    for section, change in FAULTS[message].items():
        own = change if section == "stages" else dataclasses.replace(getattr(config, section), **change)
        config = dataclasses.replace(config, **{section: own})
    with pytest.raises(MindError, match=f"^{message}"):
        mind.train(config)
    assert not (tmp_path / "run").exists()


def test_a_search_is_not_extended(place, whole):
    longer = dataclasses.replace(load_run_config(whole.config).train, max_steps=4)
    config = dataclasses.replace(load_run_config(whole.config), train=longer)
    before = content(whole.path)
    with pytest.raises(MindError, match="steps of method mode-cotd that were taken depend on it"):
        mind.train(config, resume=True)
    assert content(whole.path) == before


def test_experts_of_another_kind_are_refused(place, whole, tmp_path):
    def expect(message, experts, **student):
        options = ModeCotdOptions(experts=str(experts))
        config = config_of(place, tmp_path / "run", options=options, stages={"experts": StageConfig(skip=True)})
        with pytest.raises(MindError, match=message):
            mind.train(dataclasses.replace(config, student=dataclasses.replace(config.student, **student)))
        assert not (tmp_path / "run").exists()

    expect("student.lora_rank is 2 there and 4 here", whole.path, lora_rank=4)
    expect(r"student.lora_targets is \['q_proj', 'v_proj'\] there", whole.path, lora_targets=("q_proj",))
    expect("method is single there and mode-cotd here", whole.stages[0].path)
    expect("expected the folder of a finished run", tmp_path)
    shutil.copytree(whole.path, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "stages" / "2-second" / "adapter")
    expect("2-second.adapter: holds no adapter", tmp_path / "other")


def test_without_nevergrad(place, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "nevergrad" else find(name, *rest)
    )
    with pytest.raises(MindError, match=r"needs the package nevergrad: pip install 'mind-kernels\[mode\]'"):
        mind.train(config_of(place, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "option", [{"l1": -0.1}, {"bound": 0.0}, {"budget": 0}, {"budget": 10**11}, {"few_shot": 0}, {"mix": "mean"}]
)
def test_options_are_checked(option):
    with pytest.raises(MindError, match=f"options.{next(iter(option))}"):
        ModeCotdOptions(**option)
