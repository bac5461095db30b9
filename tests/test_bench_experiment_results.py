"""What is kept of an experiment: the comparison can be computed again from it, and it names no machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import experiment_results
from bench.measure import RESULTS
from mind.experiment.plan import json_of, read_plan

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"word-problems": "word-problems", "svamp-smollm2": str(ROOT / "bench/plans/svamp-smollm2-short.json")}
KEPT = sorted(folder for folder in (RESULTS / "experiments").glob("*") if folder.is_dir())


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_the_accuracies_are_those_of_the_verdicts(folder):
    found = json.loads((folder / "comparison.json").read_text())
    ids = json.loads((folder / "questions.json").read_text())
    verdicts = {}
    for row in map(json.loads, (folder / "verdicts.jsonl").read_text().splitlines()):
        verdicts[row["run"], row["set"]] = row["verdicts"]
        assert len(row["verdicts"]) == len(ids[row["set"]]) == found["sets"][row["set"]]["questions"]
    runs = 0
    for label, one in found["methods"].items():
        for run in one["runs"]:
            name = label if run["seed"] is None else f"{label}/seed-{run['seed']}"
            for of in found["sets"]:
                marks = verdicts.pop((name, of))
                assert run["accuracy"][of] == pytest.approx(marks.count("1") / len(marks)), (name, of)
            runs += 1
    assert not verdicts and runs >= 2
    assert json.loads((folder / "plan.json").read_text())["hash"] == found["plan"]


@pytest.mark.parametrize(("name", "source"), SOURCES.items())
def test_the_plan_that_was_run_is_in_the_repository(name, source):
    kept = json.loads((RESULTS / "experiments" / name / "plan.json").read_text())
    plan, _ = read_plan(source)
    assert json_of(plan) == {key: kept[key] for key in json_of(plan)}


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_no_file_names_a_folder_of_a_machine(folder):
    for file in folder.iterdir():
        assert '"/' not in file.read_text(), file


def write(place, answers):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("".join(json.dumps(row) + "\n" for row in answers))


def test_a_set_has_the_same_questions_in_all_runs(tmp_path):
    rows = [{"id": "a", "correct": True, "parsed": True}, {"id": "b", "correct": False, "parsed": False}]
    write(tmp_path / "outcomes" / "base" / "id.jsonl", rows)
    write(tmp_path / "outcomes" / "mind" / "seed-0" / "id.jsonl", rows)
    ids: dict = {}
    found = experiment_results.verdicts(tmp_path, ids)
    assert [(row["run"], row["verdicts"]) for row in found] == [("base", "1-"), ("mind/seed-0", "1-")]
    assert ids == {"id": ["a", "b"]}
    write(tmp_path / "outcomes" / "mind" / "seed-1" / "id.jsonl", rows[::-1])
    with pytest.raises(ValueError, match="seed-1.*the questions that the other runs answered"):
        experiment_results.verdicts(tmp_path, {})
