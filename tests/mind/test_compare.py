"""`mind compare` on made-up experiments: the numbers against definitions, the sentences, the files, and bad input."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sample_experiment import HASH, METHODS, write_answers, write_experiment

from mind.cli import main
from mind.comparison.compare import GROUPS, Comparison, compared
from mind.comparison.curves import curves
from mind.comparison.reading import read_results
from mind.comparison.wording import _claim, notes, sentences
from mind.comparison.write import write_comparison
from mind.errors import MindError

HOSTILE = "<script>alert(1)</script> & $x$ | `b` \x1b[31m"
BETTER = {"base": -1.0, "mind": 1.2, "sft": 0.3, "mind-shuffled": 0.3, "sbs": 0.0, "edit": -0.2}
DRAWS = 100


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An experiment in which mind is better than all others; not to be changed."""
    place = tmp_path_factory.mktemp("whole") / "e"
    return write_experiment(place, BETTER, metrics=True, title=HOSTILE, student=HOSTILE)


@pytest.fixture
def experiment(whole, tmp_path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "e"))


@pytest.fixture(scope="module")
def comparison(whole) -> Comparison:
    return compared(read_results(whole), draws=DRAWS)


def made(path: Path, levels, reference=None, baselines=None, **more) -> Comparison:
    return compared(read_results(write_experiment(path / "made", levels, **more)), reference, baselines, draws=DRAWS)


def rows_of(folder: Path, label: str, name: str) -> np.ndarray:
    files = sorted((folder / "outcomes" / label).glob(f"**/{name}.jsonl"))
    return np.array([[json.loads(line)["correct"] for line in file.read_text().splitlines()] for file in files], float)


def test_numbers_are_those_of_the_outcomes(whole, comparison):
    assert list(comparison.methods) == ["base", *METHODS]
    for label, method in comparison.methods.items():
        near, far = (rows_of(whole, label, name) for name in ("near", "far"))
        assert method.accuracy == pytest.approx(
            {"macro ID": near.mean(), "macro OOD": far.mean(), "near": near.mean(), "far": far.mean()}
        )
        assert [run.accuracy["near"] for run in method.runs] == pytest.approx(list(near.mean(1)))
        assert method.cut_off == pytest.approx({"near": 1 / 60, "far": 1 / 60}) and set(method.unparsed.values()) == {0}
    roles = {label: method.role for label, method in comparison.methods.items()}
    assert roles == {"base": "other", "mind": "reference", "sft": "control", "mind-shuffled": "control",
                     "sbs": "baseline", "edit": "baseline"}  # fmt: skip
    ours, theirs = (rows_of(whole, label, "far") for label in ("mind", "sbs"))
    versus = comparison.against("sbs", "far")
    assert versus is not None and versus.difference == pytest.approx(ours.mean() - theirs.mean())
    assert versus.interval[0] < versus.difference < versus.interval[1] and versus.bootstrap is not None
    assert [(one.our_seed, one.their_seed) for one in versus.single_runs] == [(0, 0), (1, 1), (2, 2)]
    assert versus.single_runs[1].ours_alone == sum(ours[1] > theirs[1])
    mind = comparison.methods["mind"]
    assert (mind.nll, mind.wall_s, mind.trained_tokens) == pytest.approx((1.01, 13.0, 5000.0))
    assert mind.flops == 10**12 + 1 and mind.teacher_tokens == 0 and comparison.methods["base"].nll == 1.5


def test_a_group_is_the_mean_of_its_primary_sets(tmp_path):
    sets = {"a": "id", "id": "id", "c": "id", "d": "ood"}
    evaluation = {n: {"file": n, "group": g, "primary": n != "c"} for n, g in sets.items()}
    found = made(tmp_path, BETTER, sets=sets, evaluation=evaluation)
    folder = tmp_path / "made"
    expected = np.mean([rows_of(folder, "sft", name).mean() for name in ("a", "id")])
    assert found.methods["sft"].accuracy["macro ID"] == pytest.approx(expected)
    assert {one.on for one in found.versus} == {"macro ID", "macro OOD", *sets}
    assert {one.on for one in found.versus if one.p_holm is None} == {"c"}, "not primary, so of no family"


def test_holm_counts_the_family(tmp_path):
    """Baselines x groups, a baseline without runs among them."""
    levels = dict.fromkeys(("base", "mind", "sft", "mind-shuffled", "sbs"), 0.0) | {"mind": 0.3}
    found = made(tmp_path, levels)
    values = sorted((one for one in found.versus if one.other == "sbs" and one.on in GROUPS), key=lambda v: v.p)
    first, second = values
    assert first.p_holm == pytest.approx(min(1, 4 * first.p))
    assert second.p_holm == pytest.approx(min(1, max(4 * first.p, 3 * second.p)))


def test_all_hold(comparison):
    assert sentences(comparison) == [
        "mind beats the 2 baselines sbs and edit in and out of distribution, with script> & $x$ | `b` �[31m, "
        "train.jsonl, at equal compute.",
        "mind beats the controls sft and mind-shuffled, too, in and out of distribution.",
    ]
    assert notes(comparison) == []


def test_only_in_distribution(tmp_path):
    folder = write_experiment(tmp_path / "e", BETTER)
    for seed in range(3):
        shutil.copy(folder / f"outcomes/mind/seed-{seed}/far.jsonl", folder / f"outcomes/sbs/seed-{seed}/far.jsonl")
    first, second, *_ = sentences(compared(read_results(folder), draws=DRAWS))
    assert first.startswith("mind beats the 2 baselines sbs and edit in distribution, with tiny, train.jsonl, at")
    assert first.endswith("but not out of distribution.")
    assert re.fullmatch(r"Not shown: better than sbs out of distribution \(\+0\.0 points, −.* to \+.*\)\.", second)


def test_one_group_alone_needs_half_the_level(comparison):
    """A one-sided p between 2.5 and 5 % would do if the claim were on both groups, or if there were no other."""

    def said(near: float, far: float) -> str:
        values = {"macro ID": near, "macro OOD": far}
        versus = [replace(one, p_better=values.get(one.on, one.p_better), p_holm=1.0) for one in comparison.versus]
        return " ".join(_claim(replace(comparison, versus=versus)))

    assert said(0.03, 0.04).startswith("mind beats the 2 baselines sbs and edit in and out of distribution")
    assert said(0.02, 0.06).startswith("mind beats the 2 baselines sbs and edit in distribution, with")
    refused = said(0.03, 0.06)
    assert refused.startswith("It is not shown that mind beats any of the 2 baselines")
    assert "The differences: sbs in distribution (+" in refused, "what it fails by"


def test_some_are_named_and_better_ones_too(tmp_path):
    found = made(tmp_path, BETTER | {"mind": 0.3, "edit": 1.5, "sbs": -0.9, "sft": 0.9, "mind-shuffled": 0.3})
    first, second, third, *rest = sentences(found)
    assert first.startswith("mind beats sbs in distribution (+") and ") and out of distribution (+" in first
    assert first.count("sbs") == 1 and "edit" not in first
    of_all = "It is not shown to beat all of the 2 baselines sbs and edit in or out of distribution: not edit in "
    assert second.startswith(f"{of_all}distribution (−") and second.count("sbs") == 1
    assert third.startswith("edit beats mind in distribution: +")
    (refused,) = [text for text in rest if text.startswith("mind is not shown to beat the controls sft in")]
    assert refused.count("capability-aware selection is what helps, whatever") == 1
    assert re.search(r"sft in .* and out of .*; mind-shuffled in .* and out of .*, so it is not shown", refused)
    assert (refused.count("sft"), refused.count("mind-shuffled"), refused.count(" points, ")) == (1, 1, 4)


def test_nothing_is_shown_of_methods_that_are_alike(tmp_path):
    first = sentences(made(tmp_path, dict.fromkeys(BETTER, 0.0)))[0]
    assert first.startswith(
        "It is not shown that mind beats any of the 2 baselines sbs and edit in or out of distribution"
    )


def test_controls_that_are_not_there(tmp_path):
    methods = {label: label for label in ("mind", "sbs", "edit", "sft")}
    said = sentences(made(tmp_path, {"base": 0.0, **dict.fromkeys(methods, 0.0), "mind": 1.5}, methods=methods))
    assert said[0].startswith("mind beats the 2 baselines")
    assert said[1:] == [
        "The experiment has no mind-shuffled, so it is not shown that capability-aware selection is what helps, "
        "whatever the baselines do."
    ]


def test_missing_runs_are_named(experiment):
    shutil.rmtree(experiment / "outcomes/sbs/seed-1")
    (experiment / "outcomes/mind-shuffled/seed-2/far.jsonl").unlink()
    for seed in range(3):
        shutil.rmtree(experiment / f"outcomes/edit/seed-{seed}")
    failures = [
        {"job": "runs/sbs/seed-1", "label": "sbs", "seed": 1, "message": f"no memory {HOSTILE}", "log": "x"},
        {"job": "tuning/sft/config-3", "label": "sft", "seed": None, "message": "nan", "log": "y"},
    ]
    (experiment / "failures.json").write_text(json.dumps(failures))
    found = write_comparison(experiment, draws=DRAWS)
    told = notes(found)
    assert told == [
        "mind-shuffled: 2 of 3 runs are there (seed 2: no answers to far); means are over the others, and intervals "
        "are wider for it.",
        "sbs: 2 of 3 runs are there (seed 1: no memory <script>alert(1)</script> & $x$ | `b` �[31m); means are "
        "over the others, and intervals are wider for it.",
        "edit: 0 of 3 runs are there (seed 0: not evaluated; seed 1: not evaluated; seed 2: not evaluated); "
        "compared with nothing.",
        "Failed: tuning/sft/config-3: nan",
    ]
    said = " ".join(sentences(found))
    assert "It is not shown to beat all of the 2 baselines" in said, "one of them is missing"
    assert "edit in distribution (no runs) and out of distribution (no runs)." in said
    assert found.against("edit", "macro ID") is None and len(found.methods["sbs"].runs) == 2
    page = (experiment / "comparison.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page


def test_a_single_seed_claims_nothing(tmp_path):
    found = made(tmp_path, BETTER, seeds=(7,))
    assert sentences(found)[0].startswith("It is not shown that mind beats any")
    assert "(a single run: +" in sentences(found)[1]
    told = [note for note in notes(found) if "a single run, so how much seeds differ is not known. " in note]
    assert len(told) == 1 and told[0].startswith("mind, sft, mind-shuffled, sbs and edit: ")
    assert any(note.startswith("The plan has 1 seed:") for note in notes(found))
    versus = found.against("sbs", "near")
    assert versus is not None and not versus.of_methods and len(versus.single_runs) == 1
    assert versus.freedom is None and versus.interval[0] < versus.interval[1]
    table = (write_comparison(tmp_path / "made", draws=DRAWS), (tmp_path / "made/comparison.md").read_text())[1]
    one = versus.single_runs[0]
    assert f"{one.ours_alone}, {one.theirs_alone}: \\< 0.001" in table and "sbs (single run)" in table


def test_unequal_compute_and_sets_that_decide_nothing(experiment):
    status = experiment / "runs/edit/seed-0/status.json"
    status.write_text(json.dumps({"flops": 4 * 10**12, "wall_s": 1.0, "work": {"trained": 1}}))
    for file in experiment.glob("outcomes/**/far.jsonl"):
        write_answers(file, [True] * 60)
    found = compared(read_results(experiment), draws=DRAWS)
    assert "at unequal compute (edit took 2.00 times that of mind)." in " ".join(sentences(found)).replace(", but", ".")
    assert notes(found) == ["far: all methods are right in 100.0 % to 100.0 %, so it decides nothing."]
    versus = found.against("sbs", "far")
    assert versus is not None and versus.bootstrap is None and versus.interval[0] < 0 < versus.interval[1]
    status.unlink()
    found = compared(read_results(experiment), draws=DRAWS)
    assert "at compute that is not known of edit" in sentences(found)[0] and found.methods["edit"].flops is None


def test_another_reference_is_exploration(whole):
    found = compared(read_results(whole), "sft", ["edit"], draws=DRAWS)
    assert found.controls == ("mind-shuffled",) and notes(found)[0].startswith("The plan does not name this reference")
    assert sentences(found)[-1] == "sft is a control itself: it selects nothing by what the student is capable of."
    assert "No baselines are named" in sentences(compared(read_results(whole), baselines=[], draws=DRAWS))[0]


def test_no_primary_set(comparison):
    sets = {name: {**one, "primary": False} for name, one in comparison.sets.items()}
    said = sentences(replace(comparison, sets=sets))
    assert said == ["No set is primary, so nothing is claimed of mind against the 2 baselines sbs and edit."]


def test_several_samples(experiment):
    for file in experiment.glob("outcomes/mind/*/near.jsonl"):
        rows = [
            {"id": f"q{i}", "samples": [{"correct": n < i % 5, "parsed": n > 0, "cut_off": False} for n in range(4)]}
            for i in range(60)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compared(read_results(experiment), draws=DRAWS)
    assert found.methods["mind"].accuracy["near"] == pytest.approx(0.5)
    assert found.methods["mind"].unparsed["near"] == pytest.approx(0.25)
    versus = found.against("sbs", "near")
    assert versus is not None and versus.single_runs == [] and versus.discordance is not None


def test_the_files(experiment, capsys):
    words = ["compare", str(experiment), "--draws", str(DRAWS)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "mind beats the 2 baselines" in said and "\x1b" not in said
    files = [experiment / f"comparison.{ending}" for ending in ("json", "md", "html")]
    before = [file.read_bytes() for file in files]
    assert main(words) == 0 and [file.read_bytes() for file in files] == before
    assert not list(experiment.glob(".comparison*"))
    content = json.loads(before[0], parse_constant=lambda name: pytest.fail(f"{name} is no number of JSON"))
    assert content["plan"] == HASH and content["analysis"] == {
        "version": 1,
        "seed": 0,
        "draws": DRAWS,
        "as_planned": True,
    }
    assert content["sentences"][0].startswith("mind beats") and len(content["versus"]) == 5 * 4
    page, text = before[2].decode(), before[1].decode()
    assert HASH in page and HASH in text and "<script" not in page
    assert not re.search(r"(src|href)=\"(?!#)|https?://(?!www\.w3\.org)|url\((?!#)", page), "one file, and no network"
    pictures = page.split("<figure ")[1:]
    assert len(pictures) == 6 and all("<svg" in one and "<table" in one for one in pictures)
    assert "var(--ink)" in page and "prefers-color-scheme: dark" in page and "\x1b" not in page + text
    assert "\\<script\\>" in text and not re.search(r"(?<!\\)<", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    assert all(one == two for one, two, row in zip(widths, widths[1:], rows[1:], strict=False) if "---" in row)


def test_curves_follow_the_cost(whole, experiment):
    results = read_results(whole)
    trained = [results.methods["mind"], results.methods["sft"]]
    found = curves(trained, "selected", 1 / 4)
    assert [curve.label for curve in found] == ["mind"] and found[0].runs == 3
    (one, _) = curves(trained, "loss")
    spent = np.cumsum(np.arange(1, 11)) / 55
    assert one.flops[0] == pytest.approx(1e12 * spent[0]) and one.flops[-1] == pytest.approx(1e12)
    assert one.values == pytest.approx(np.interp(one.flops / 1e12, spent, 2 / np.arange(1, 11)), rel=1e-6)
    stage = experiment / "runs/mind/seed-0/stages/1-sft"
    shutil.copytree(experiment / "runs/sft/seed-0", stage)
    (stage / "status.json").write_text(json.dumps({"flops": 4 * 10**11}))
    results = read_results(experiment)
    method = results.methods["mind"]
    (two,) = curves([type(method)("mind", "mind", True, method.runs[:1], {})], "loss")
    assert two.flops[0] == pytest.approx(4e11 * spent[0]), "the earlier stage comes first"
    assert np.interp(4e11 + 6e11 * spent[2], two.flops, two.values) == pytest.approx(2 / 3, abs=0.02)
    (experiment / "runs/mind/seed-0/status.json").unlink()
    method = read_results(experiment).methods["mind"]
    assert curves([type(method)("mind", "mind", True, method.runs[:1], {})], "loss") == []


def spoil(file: str, line: int | None, text: str | None):
    """Replaces a line of a file, from 0; all of it for None."""

    def change(folder: Path) -> None:
        path = folder / file
        lines = path.read_text().splitlines()
        new = [] if text is None else [text]
        path.write_text("\n".join(new if line is None else lines[:line] + new + lines[line + 1 :]) + "\n")

    return change


def change_plan(folder: Path, **changes) -> None:
    """Other values of some fields of experiment.json."""
    file = folder / "experiment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


ROW = '{"id": "q5", "correct": true, "parsed": true, "cut_off": false}'
OUTCOMES = "outcomes/sbs/seed-1/far.jsonl"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "experiment.json").unlink(), r"no experiment \(experiment.json is missing\)"),
        (spoil("experiment.json", None, "{}"), r'experiment.json: "student" is missing'),
        (lambda folder: change_plan(folder, inputs={"train": {"source": "x"}}),
         r'experiment.json: "inputs.student.source" is null: expected a string'),
        (lambda folder: change_plan(folder, evaluation={"near": {"file": "n", "group": "id", "primary": False}}),
         r"evaluation: no set is primary: expected at least one"),
        (spoil(OUTCOMES, 4, '{"id": "q4", "correct": tr'), rf"{OUTCOMES}:5: not JSON"),
        (spoil(OUTCOMES, 4, '{"id": "q4", "correct": 1, "parsed": true, "cut_off": false}'),
         rf'{OUTCOMES}:5: "correct" is 1: expected true or false'),
        (spoil(OUTCOMES, 4, '{"id": "q4", "correct": true}'), rf'{OUTCOMES}:5: "parsed" is missing'),
        (spoil(OUTCOMES, 4, '{"id": 4}'), rf'{OUTCOMES}:5: "id" is 4: expected a string'),
        (spoil(OUTCOMES, 4, '{"id": "q4", "samples": []}'), rf'{OUTCOMES}:5: "samples" is \[\]: expected a list'),
        (spoil(OUTCOMES, 4, ROW), rf'{OUTCOMES}:6: question "q5" is answered in .*{OUTCOMES}:5, too'),
        (spoil(OUTCOMES, 5, ROW.replace("q5", "x")),
         rf'{OUTCOMES}: its questions are not those of .*/far.jsonl, in the same order: question 6 is "x", not "q5"'),
        (spoil(OUTCOMES, 59, None), r"in the same order: 59 and 60 of them"),
        (spoil(OUTCOMES, None, None), rf"{OUTCOMES}: no questions"),
        (lambda folder: (folder / OUTCOMES).with_name("answers.json").unlink(), "answers.json: is not there: it says"),
        (spoil("outcomes/sbs/seed-1/answers.json", None, '{"hash": "x", "threads": [1]}'),
         r"""answers.json: "hash" is 'x': expected that of experiment.json"""),
        (lambda folder: [shutil.rmtree(f) for f in folder.glob("outcomes/mind/*")],
         r"reference mind: none of its runs is there \(seed 0: not evaluated; "),
        (lambda folder: (folder / "failures.json").write_text("{}"), r"failures.json: expected a JSON list of objects"),
        (spoil("runs/sft/seed-2/metrics.jsonl", 3, "{"), r"metrics.jsonl, line 4: not JSON"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_before_anything_is_written(experiment, capsys, change, message):
    change(experiment)
    assert main(["compare", str(experiment), "--draws", "100"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("mind: error: ") and re.search(message, error)
    assert not list(experiment.glob("*comparison*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reference", "none"], "reference 'none': the experiment has no such method: base, mind, sft,"),
        (["--baselines", "sbs", "none"], "baselines 'none': the experiment has no such method"),
        (["--baselines", "mind"], "baselines names the reference, mind"),
        (["--draws", "0"], "draws is 0: expected 100 to 1,000,000"),
        (["--draws", "99999999999"], "draws is 99999999999: expected 100 to 1,000,000"),
        (["--seed", "-1"], "seed is -1: expected at least 0"),
    ],
)
def test_options_that_cannot_be(experiment, capsys, words, message):
    assert main(["compare", str(experiment), *words]) == 2
    assert message in capsys.readouterr().err and not list(experiment.glob("*comparison*"))


def test_without_scipy(whole, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MindError, match=r"needs the package scipy: pip install 'mind-kernels\[compare\]'"):
        write_comparison(whole)
