"""Plans: what is read, what is refused before anything is written, and what makes two of them the same."""

from __future__ import annotations

import json

import pytest
from small_experiment import write_plan
from tiny import build_questions

from mind.config import flat
from mind.data.questions import save_questions
from mind.errors import MindError
from mind.experiment.configs import draws, nested, run_config
from mind.experiment.folder import ExperimentFolder, Job
from mind.experiment.inputs import load_inputs
from mind.experiment.jobs import job_of
from mind.experiment.plan import MethodPlan, located, packaged, plan_hash, read_plan
from mind.experiment.runner import prepare
from mind.experiment.tuning import best


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
    "one in a grid": (
        {"methods": {"plain": {"method": "sft", "grid": {"train.seed": [1]}}, "ours": SFT}},
        "methods.plain.grid: train.seed: other fields",
    ),
    "a grid that is none": (
        {"methods": {"plain": {"method": "sft", "grid": {"train.lr": 3}}, "ours": SFT}},
        "grid train.lr is 3: expected a list of values",
    ),
    "two sets of one file": ({"evaluation": {"near": NEAR, "again": NEAR}}, "again and near are both near.jsonl"),
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
        {"evaluation": {"near": {"file": "${DATA}/near.jsonl", "group": "id"}}},
        "the variable DATA is not given: --set DATA=",
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
    save_questions(build_questions(20)[16:], moved / "far.jsonl")
    with pytest.raises(MindError, match=r"differs in inputs.evaluation.far$"):
        prepare(str(moved_plan), folder.path, {})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    with pytest.raises(MindError, match="full: exists and is not an empty folder"):
        prepare(str(moved_plan), tmp_path / "full", {})


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


def test_the_draw_of_configurations():
    method = MethodPlan("mind", grid={"a.x": [1, 2, 3], "a.y": [4, 5], "z": ["u"]})
    every = [{"a.x": x, "a.y": y, "z": "u"} for x in (1, 2, 3) for y in (4, 5)]
    assert draws("mind", method, 6, 0) == every == draws("mind", method, 99, 3)
    some = draws("mind", method, 4, 0)
    assert len(some) == 4 == len({json.dumps(one) for one in some}) and all(one in every for one in some)
    assert some == draws("mind", method, 4, 0)
    assert any(some != draws(*other, 4, seed) for other, seed in ((("mind", method), 1), (("ours", method), 0)))
    assert draws("mind", MethodPlan("mind"), 4, 0) == []
    assert nested({"a.x": 1, "a.y": 2, "z": 3}) == {"a": {"x": 1, "y": 2}, "z": 3}


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
    plan, _ = read_plan(str(write_plan(place)))
    job = job_of("runs/ours/seed-1", plan)
    assert (job.kind, job.label, job.number) == ("runs", "ours", 1)
    assert job_of("tuning/plain/config-3", plan).number == 3 and job_of("base", plan).number is None
    for name in ("runs/mine/seed-1", "runs/ours", "seed-1", "budget/ours/seed-1"):
        with pytest.raises(
            MindError, match=f"{name}: the plan has no such job: expected one such as runs/plain/seed-0"
        ):
            job_of(name, plan)


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
    with pytest.raises(
        MindError, match="no such file, and no plan of the package: paper, svamp-smollm2, word-problems"
    ):
        read_plan("none")
