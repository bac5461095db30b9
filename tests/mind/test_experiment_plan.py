"""Plans: what is read, what is refused before anything is written, and what makes two of them the same."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest
from small_experiment import TUNED, write_plan
from tiny import NAMES, build_questions

from mind.config import EMBEDDED_STUDENT, DataConfig, flat
from mind.data.questions import save_questions
from mind.errors import MindError
from mind.experiment.configs import draws, nested, run_config
from mind.experiment.folder import ExperimentFolder, Job
from mind.experiment.inputs import load_inputs
from mind.experiment.job import perform
from mind.experiment.jobs import every_job, job_of, left, ready
from mind.experiment.plan import MethodPlan, located, packaged, plan_hash, read_plan
from mind.experiment.runner import prepare
from mind.experiment.tuning import best, tuning_jobs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("plans")


SFT = {"method": "sft"}
NEAR = {"file": "near.jsonl", "group": "id"}
FAULTS = {
    "a field that there is not": ({"seed": 1}, "unknown field seed: the fields are student, data, methods"),
    "of a part": ({"methods": {"a": {"method": "sft", "opts": {}}}}, "methods.a: unknown field opts"),
    "another type": ({"seeds": ["x"]}, '"seeds" holds "x": expected an integer'),
    "no methods": ({"methods": {}}, "methods is empty"),
    "a label that is no folder": ({"methods": {"a/b": SFT}}, "methods: 'a/b' is no name for a folder"),
    "the untrained student's": ({"methods": {"base": SFT}}, "methods: base is the untrained student"),
    "a seed twice": ({"seeds": [1, 2, 1]}, "seeds has 1 twice"),
    "an unknown reference": ({"reference": "mine"}, "reference is 'mine': expected a label of the methods"),
    "the reference as a baseline": ({"baselines": ["ours"]}, "baselines names the reference, ours"),
    "an option of all runs": (
        {"methods": {"plain": SFT, "ours": {"method": "mind", "options": {"train": {"epochs": 3}}}}},
        "methods.ours.options: train.epochs: other fields of the plan say so",
    ),
    "another student for all runs than for the untrained one": (
        {"config": {"student": {"dtype": "bfloat16"}}},
        "config: student.dtype: other fields of the plan say so",
    ),
    "another student for a method": (
        {"methods": {"plain": SFT, "ours": {"method": "sft", "options": {"student": {"chat_template": "plain"}}}}},
        "methods.ours.options: student.chat_template: other fields of the plan say so",
    ),
    "one in a grid": (
        {"methods": {"plain": {"method": "sft", "grid": {"train.seed": [1]}}, "ours": SFT}},
        "methods.plain.grid: train.seed: other fields",
    ),
    "a grid that is none": (
        {"methods": {"plain": {"method": "sft", "grid": {"train.lr": 3}}, "ours": SFT}},
        "grid train.lr is 3: expected a list of values",
    ),
    "two sets of one file": ({"evaluation": {"near": NEAR, "again": NEAR}}, "again and near are both near.jsonl"),
    "no primary set": ({"evaluation": {"near": {**NEAR, "primary": False}}}, "evaluation: no set is primary"),
    "a set of the generator": (
        {"evaluation": {"near": {"file": "word-problems", "group": "id"}}},
        "near is word-problems, of the generator: data.train is train.jsonl",
    ),
    "another group": (
        {"evaluation": {"near": {"file": "near.jsonl", "group": "iid"}}},
        '"group" is "iid": expected one of id, ood',
    ),
    "two budgets": ({"budget": {"amount": 5, "of": "plain"}}, 'budget: give "amount" or "of"'),
    "a budget of nothing": ({"budget": {"of": "mine"}}, "budget.of is 'mine': expected a label"),
    "a share": ({"tuning": {"share": 2}}, r"tuning: share is 2: expected a number in \(0, 1\]"),
    "a file that is not there": ({"evaluation": {"near": {"file": "no.jsonl", "group": "id"}}}, "no.jsonl: no such f"),
    "a variable without a value": (
        {"evaluation": {"near": {"file": "${DATA}/${KIND}.jsonl", "group": "id"}}, "student": {"model": "${STUDENT}"}},
        r"no value: --set STUDENT=... for \${STUDENT}; --set DATA=... for \${DATA}/\${KIND}.jsonl; --set KIND=... for",
    ),
    "too few questions": (
        {"evaluation": {"near": {**NEAR, "questions": 9}}},
        "evaluation: near asks for 9 questions: .*near.jsonl has 2",
    ),
    "a set that is trained on": (
        {"evaluation": {"leak": {"file": "train.jsonl", "group": "id"}}},
        "evaluation: leak: 10 questions of 10 are among the training questions: sum-0, sum-1, sum-2",
    ),
    "one that validates": (
        {"evaluation": {"leak": {"file": "validation.jsonl", "group": "id"}}},
        "evaluation: leak: 2 questions of 2 are among the validation questions",
    ),
    "a method that there is not": ({"methods": {"plain": SFT, "ours": {"method": "mine"}}}, "method is 'mine'"),
    "an option that there is not": (
        {"methods": {"plain": SFT, "ours": {"method": "mind", "options": {"metanet": {"tauu": 1}}}}},
        "methods.ours: metanet: unknown field tauu",
    ),
    "a value of a grid": (
        {"methods": {"plain": SFT, "ours": {"method": "mind", "grid": {"metanet.tau": [1.0, -1.0]}}}},
        r"methods.ours: metanet.tau is -1.0: expected a positive number \(with metanet.tau -1.0\)",
    ),
    "what a method needs": (
        {"methods": {"plain": SFT, "ours": {"method": "mode-cotd"}}},
        "methods.ours: student.lora is off: method mode-cotd mixes LoRA adapters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_plan_is_told_before_anything_is_written(fault, place):
    changes, message = FAULTS[fault]
    file = write_plan(place, **changes)
    with pytest.raises(MindError, match=message):
        prepare(str(file), place / "out", {})
    assert not (place / "out").exists()


def test_of_a_message_about_a_long_name_both_ends_are_told(place):
    file = write_plan(place, baselines=["long " * 1000])
    with pytest.raises(MindError) as raised:
        prepare(str(file), place / "out", {})
    message = str(raised.value)
    assert len(message) < 1500 and str(file) in message and message.endswith("ours"), message
    assert re.search(r" \[\.\.\. \d,\d{3} characters \.\.\.\] ", message), message


def test_names_that_come_twice(place):
    text = write_plan(place).read_text()
    for name in ("plain", "near"):
        (place / "twice.json").write_text(text.replace(f'"{name}": {{', f'"{name}": {{}}, "{name}": {{'))
        with pytest.raises(MindError, match=f'twice.json: cannot be read: an object has "{name}" twice'):
            read_plan(str(place / "twice.json"))


def test_a_folder_is_of_one_plan(place, tmp_path):
    file = write_plan(place, title="One")
    with pytest.raises(MindError, match="--set X: the plan has no such variable"):
        prepare(str(file), tmp_path / "out", {"X": "1"})
    folder = prepare(str(file), tmp_path / "out", {})
    content = json.loads(folder.experiment.read_text())
    plan, source = read_plan(str(file))
    inputs = load_inputs(located(plan, source, {}))
    assert content["hash"] == plan_hash(plan, inputs.digests) and len(content["hash"]) == 64
    assert content["tuning"]["share"] == 1 / 3 and content["inputs"]["evaluation.far"]["questions"] == 2
    assert prepare(str(file), folder.path, {}) == folder  # goes on

    other = write_plan(place, title="One", seeds=[0, 1, 2], budget={"unit": "trained_tokens", "amount": 501})
    with pytest.raises(MindError, match="holds an experiment by another plan, which differs in budget.amount, seeds$"):
        prepare(str(other), folder.path, {})
    # The same plan by another name and place of its files is the same; other questions are not.
    moved = tmp_path / "moved"
    moved.mkdir()
    moved_plan = write_plan(moved, title="One")
    assert prepare(str(moved_plan), folder.path, {}) == folder
    written = json.loads(folder.experiment.read_text())  # where the jobs find them now
    assert written["inputs"]["student"]["source"] == str(moved / "model")
    assert written == content | {"inputs": written["inputs"]}
    save_questions(build_questions(20)[16:], moved / "far.jsonl")
    with pytest.raises(MindError, match=r"differs in inputs.evaluation.far$"):
        prepare(str(moved_plan), folder.path, {})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    with pytest.raises(MindError, match="full: exists and is not an empty folder"):
        prepare(str(moved_plan), tmp_path / "full", {})


def test_what_is_typed_is_relative_to_where_it_is_typed(place, tmp_path, monkeypatch):
    plan = {"student": {"model": "${STUDENT}"}, "evaluation": {"near": {**NEAR, "file": "${DATA}/near.jsonl"}}}
    read, source = read_plan(str(write_plan(place, **plan)))
    save_questions(build_questions(2), tmp_path / "near.jsonl")
    (tmp_path / "small").mkdir()
    monkeypatch.chdir(tmp_path)
    there = located(read, source, {"DATA": ".", "STUDENT": "small"})
    assert there.evaluation["near"].file == str(tmp_path / "near.jsonl")
    assert there.student.model == str(tmp_path / "small") and there.data.train == str(place / "train.jsonl")
    assert located(read, source, {"DATA": ".", "STUDENT": "Org/Name"}).student.model == "Org/Name"


def test_questions_have_the_rationales_that_the_methods_of_the_plan_need(place, tmp_path):
    """One is enough for plain fine-tuning, and MIND compares two."""
    one = tmp_path / "one.jsonl"
    save_questions([dataclasses.replace(q, rationales=q.rationales[:1]) for q in build_questions(10)], one)
    data = {"train": str(one), "heldout": str(one), "perspectives": list(NAMES)}
    methods = {"plain": SFT, "alone": {"method": "single", "options": {"data": {"only": NAMES[0]}}}}
    plain = {"data": data, "methods": methods, "reference": "plain", "baselines": []}
    inputs = load_inputs(located(*read_plan(str(write_plan(place, **plain))), {}))
    assert len(inputs.train) == 10
    with_ours = {**plain, "methods": {**methods, "ours": {"method": "mind-uniform"}}}
    with pytest.raises(MindError, match="at least 2"):
        load_inputs(located(*read_plan(str(write_plan(place, **with_ours))), {}))


def test_the_configuration_of_a_run(place):
    methods = {
        "plain": SFT,
        "ours": {"method": "mind", "options": {"metanet": {"tau": 2.0}, "student": {"lora": True}}},
    }
    plan, source = read_plan(str(write_plan(place, methods=methods)))
    sources = {"student": {"source": "somewhere"}}
    folder = ExperimentFolder(place / "out")
    config = run_config(
        Job.run("ours", 7), plan, sources, folder, seed=7, chosen={"metanet.tau": 3.0}, budget={"flops": 5.0}
    )
    assert config.output == str(place / "out" / "runs" / "ours" / "seed-7") and config.method == "mind"
    assert config.metanet.tau == 3 and config.student.lora and config.student.model == "somewhere"
    assert config.train.seed == 7 and config.train.flops == 5 and config.train.learning_rate == 1e-3
    assert config.train.report_to == "none" and config.data.evaluation == ()
    assert config.data.train == str(place / "out" / "data" / "train.jsonl")


def test_every_field_of_the_data_counts(place):
    """Those that are done when the questions are in the folder are no longer there, the others are the run's; an option
    of a method comes on top."""
    data = {"train": "train.jsonl", "heldout": "validation.jsonl", "perspectives": list(NAMES)}
    runs = {"only": NAMES[1], "shuffle_perspectives": 5}
    inputs = {"max_questions": 3, "leaks": "drop"}
    methods = {"plain": SFT, "ours": {"method": "sft", "options": {"data": {"only": NAMES[0]}}}}
    plan, source = read_plan(str(write_plan(place, methods=methods, data=data | runs | inputs)))
    found = load_inputs(located(plan, source, {}))
    assert len(found.train) == 3
    folder = ExperimentFolder(place / "out")
    for label, only in (("plain", NAMES[1]), ("ours", NAMES[0])):
        config = run_config(Job.run(label, 0), plan, found.sources, folder, seed=0, chosen={}, budget={"flops": 5.0})
        train, heldout = str(folder.train_file), str(folder.validation_file)
        assert config.data == DataConfig(train, heldout, perspectives=NAMES, only=only, shuffle_perspectives=5)


def test_the_draw_of_configurations():
    method = MethodPlan("mind", grid={"a.x": [1, 2, 3], "a.y": [4, 5], "z": ["u"]})
    every = [{"a.x": x, "a.y": y, "z": "u"} for x in (1, 2, 3) for y in (4, 5)]
    assert draws("mind", method, 6, 0) == every == draws("mind", method, 99, 3)
    some = draws("mind", method, 4, 0)
    assert len(some) == 4 == len({json.dumps(one) for one in some}) and all(one in every for one in some)
    assert some == draws("mind", method, 4, 0)
    assert any(some != draws(*other, 4, seed) for other, seed in ((("mind", method), 1), (("ours", method), 0)))
    assert draws("mind", MethodPlan("mind"), 4, 0) == []
    own = MethodPlan("mind", grid=method.grid, configurations=5)
    assert len(draws("mind", own, 4, 0)) == 5 and len(draws("mind", own, 99, 0)) == 5
    assert nested({"a.x": 1, "a.y": 2, "z": 3}) == {"a": {"x": 1, "y": 2}, "z": 3}


@pytest.mark.parametrize("sizes", [(3, 3, 2, 4), (8, 3), (2, 2), (5,)])
def test_a_draw_has_each_value_of_an_option_as_often_as_the_others(sizes):
    """Six of 72 points that are drawn anyhow lack a value of one of these options in nearly all draws."""
    method = MethodPlan("mind", grid={f"a.x{number}": list(range(size)) for number, size in enumerate(sizes)})
    for seed in range(20):
        for count in range(1, min(7, math.prod(sizes))):
            drawn = draws("mind", method, count, seed)
            assert len({tuple(one.values()) for one in drawn}) == count
            for name, values in method.grid.items():
                often = [sum(one[name] == value for one in drawn) for value in values]
                assert max(often) - min(often) <= 1


def test_the_best_configuration():
    """Accuracy first, then the held-out NLL, then the order; one that failed is none."""
    results = [
        {"accuracy": 0.5, "nll": 2.0},
        {"failed": "nan"},
        {"accuracy": 0.7, "nll": 3.0},
        {"accuracy": 0.7, "nll": 2.5},
        {"accuracy": 0.7, "nll": 2.5},
    ]
    assert best(results) == 3 and best(results[:3]) == 2 and best(results[1:2]) is None


def test_the_names_of_jobs(place):
    """Those of the plan, and no other: nothing would read what it trains."""
    file = write_plan(place, **TUNED)
    plan, _ = read_plan(str(file))
    job = job_of("runs/ours/seed-3", plan)
    assert (job.kind, job.label, job.number) == ("runs", "ours", 3)
    assert job_of("tuning/plain/config-1", plan).number == 1 and job_of("base", plan).number is None
    assert [job.name for job in every_job(plan)] == [
        *("base", "budget/ours", "tuning/plain/config-0", "tuning/plain/config-1"),
        *("runs/plain/seed-3", "runs/ours/seed-3", "runs/plain/seed-4", "runs/ours/seed-4"),
    ]
    unknown = ("runs/mine/seed-3", "runs/ours", "seed-3", "budget/ours/seed-3", "budget/plain", "runs/ours/seed-5")
    unknown += ("runs/ours/seed-x", "runs/ours/foo-3", "tuning/plain/config-2", "tuning/plain/config--1", "base-marker")
    for name in unknown:
        with pytest.raises(
            MindError, match=f"{name}: the plan has no such job: expected one such as runs/plain/seed-3"
        ):
            job_of(name, plan)


def test_what_comes_before_a_job(place, tmp_path):
    """It is told in a line, before anything is trained."""
    folder = prepare(str(write_plan(place, **TUNED)), tmp_path / "out", {})
    plan, _ = folder.read_experiment()
    assert ready(plan, folder) == [Job("base")] and left(plan, folder) == 8
    for name in ("budget/ours", "tuning/plain/config-0", "runs/ours/seed-3"):
        with pytest.raises(MindError, match=f"^{name}: base comes first, and is not done$"):
            perform(folder.path, name)
    done = {Job("base")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExperimentFolder, "done", lambda self, job, plan: job in done)
        with pytest.raises(MindError, match="^runs/ours/seed-3: budget/ours comes first"):
            perform(folder.path, "runs/ours/seed-3")
        done.add(Job.budget("ours"))
        assert [job.name for job in ready(plan, folder)] == [
            *("tuning/plain/config-0", "tuning/plain/config-1", "runs/ours/seed-3", "runs/ours/seed-4")
        ]
        with pytest.raises(MindError, match="^runs/plain/seed-3: tuning/plain/config-0 comes first"):
            perform(folder.path, "runs/plain/seed-3")
        done.update(tuning_jobs(plan, "plain"))
        for job in tuning_jobs(plan, "plain"):
            folder.write_result({"failed": "the loss is nan"}, folder.beside(job, ".json"))
        assert not any(job.label == "plain" for job in ready(plan, folder))
        with pytest.raises(MindError, match="plain: all the configurations that were tried failed: tuning.json has"):
            perform(folder.path, "runs/plain/seed-3")
    assert not list(folder.path.glob("*/**/config.json"))


def test_one_experiment_is_made_at_a_time(place, tmp_path, monkeypatch):
    """Another process that made it meanwhile, by another plan, is not written over."""
    (place / "two.json").write_text(write_plan(place, title="Two").read_text())
    write_plan(place, title="One")
    loaded = load_inputs

    def slow(located_plan):
        monkeypatch.setattr("mind.experiment.runner.load_inputs", loaded)
        inputs = loaded(located_plan)
        prepare(str(place / "two.json"), tmp_path / "out", {})
        return inputs

    monkeypatch.setattr("mind.experiment.runner.load_inputs", slow)
    with pytest.raises(MindError, match="holds an experiment by another plan, which differs in title$"):
        prepare(str(place / "plan.json"), tmp_path / "out", {})
    assert ExperimentFolder(tmp_path / "out").read_experiment()[0].title == "Two"


@pytest.mark.parametrize("name", packaged())
def test_plans_of_the_package(name, tmp_path):
    """Every label and value of a grid is one that its method takes."""
    from mind.experiment.configs import check_configs

    plan, _ = read_plan(name)
    groups = {one.group for one in plan.evaluation.values() if one.primary}
    assert groups == {"id", "ood"} and plan.reference == "mind" and plan.base_marker
    assert all("learning_rate" in " ".join(one.grid) for one in plan.methods.values())
    check_configs(plan, {"student": {"source": "somewhere"}}, ExperimentFolder(tmp_path))
    assert flat(plan.config)["train.save_steps"] >= 1
    model = plan.student.model  # where there is no network it is there, or its folder is given
    assert model == EMBEDDED_STUDENT or model.startswith("${")
    if "single" in plan.methods:
        tried = draws("single", plan.methods["single"], plan.tuning.configurations, plan.tuning.seed)
        assert {one["data.only"] for one in tried} == set(plan.data.perspectives)
    with pytest.raises(
        MindError, match="no such file, and no plan of the package: paper, svamp-smollm2, word-problems"
    ):
        read_plan("none")
