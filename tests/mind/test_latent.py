"""`mind latent` from run folders to its page, on tiny students; its vectors, and what it refuses."""

from __future__ import annotations

import functools
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from latent_runs import another, complete, grid, train_expert, with_all
from small_run import content, expect_error, write_student
from tiny import NAMES, build_model, build_questions

from mind.cli import main
from mind.config import DataConfig, MindConfig, StudentConfig
from mind.data.questions import question_row, save_questions
from mind.errors import MindError
from mind.latent.analyze import analysis_of
from mind.latent.config import LatentConfig
from mind.latent.coverage import coverage_view, coverages, uniform_coverage
from mind.latent.states import Reader, without_suffix_ids
from mind.latent.students import Run, _check_unseen
from mind.records import Rationale
from mind.report.page import write_latent_page
from mind.run.data import load_data
from mind.run.resume import input_entry
from mind.run_folder import RunFolder
from mind.student.tokenization import Chat

QUICK = ["--draws", "2", "--permutations", "1", "--mixture-seeds", "1", "--components", "4"]
QUICK += ["--max-new-tokens", "6", "--samples", "3"]


@pytest.fixture(autouse=True)
def one_width(monkeypatch):
    """That of QUICK: on so few points a mixture goes on for a thousand rounds, and there are fifteen by width."""
    monkeypatch.setattr("mind.latent.clusters.WIDTHS", (4,))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a real run with LoRA."""
    return train_expert(tmp_path_factory.mktemp("expert"))


@pytest.fixture
def words(tmp_path):
    """The words of `mind latent` for some runs."""
    save_questions(complete(6), tmp_path / "questions.jsonl")
    more = ["--questions", str(tmp_path / "questions.jsonl"), "--output", str(tmp_path / "latent"), *QUICK]
    return lambda *runs: ["latent", *map(str, runs), *more]


def test_from_runs_to_the_page(run, words, tmp_path, capsys, monkeypatch):
    runs, given, once = grid(run, tmp_path), [], functools.cache(lambda: analysis_of(*given[0]))
    monkeypatch.setattr("mind.latent.analyze.analysis_of", lambda *some: given.append(some) or once())
    assert main([*words(*runs), "--coverage", str(run)]) == 0
    told, folder = capsys.readouterr().out, tmp_path / "latent"
    found = json.loads((folder / "latent.json").read_text())
    assert list(found["views"]) == ["V1", "V2", "V3", "V3 own", "V4", "V5", "V5 own"]
    assert found["runs"]["experts"] == {"seeds": [0, 1], "folders": [runs[:3], runs[3:6]]}
    assert found["runs"]["null"]["folders"] == [runs[6:9], runs[9:]]
    for name, view in found["views"].items():
        assert view["experts"]["new_student"] and view["experts"]["clusters"]["nmi"]["value"] >= 0
        assert (view["null"] is not None) == (name in ("V1", "V2", "V4"))
    assert not found["claim"]["allowed"] and "It cannot be said that the students have internalised" in told
    assert {one["holds"] for one in found["claim"]["conditions"]} <= {True, False}
    assert any("V6 (sentence embeddings) is left out" in sentence for sentence in found["missing"])
    assert [one["student"] for one in found["coverage"]] == ["base", str(run)]
    for one in found["coverage"]:
        assert 1 / 3 <= one["coverage"] <= 1 and sum(one["shares"]) == pytest.approx(1)
    assert 1 / 3 < found["uniform_coverage"] < 1 and found["coverage_view"] == "V5"
    page = (folder / "latent.html").read_text()
    assert "by vectors as of V5 (TF-IDF of the teacher&#39;s rationales)" in page
    assert page.count("<svg viewBox") == 5 and not re.search('(src|href)="[^#]', page)
    assert sorted(path.name for path in folder.iterdir()) == ["latent.html", "latent.json", "latent.npz"]

    vectors = np.load(folder / "latent.npz")
    assert vectors["expert-0-0/own"].shape == (6, 32) and vectors["base/own"].shape == (2 * 3 * 6, 32)

    # Started again it computes no vectors and has the same; after another training of one run, only those of that run.
    read = []
    monkeypatch.setattr("mind.latent.collecting.Reader.answers", lambda self, *_: read.append(self) or [[7]] * 6)
    assert main([*words(*runs), "--coverage", str(run)]) == 0
    (_, first, samples, *_), (_, second, again, *_) = given
    assert not read and (first.experts.own == second.experts.own).all() and (samples["base"] == again["base"]).all()
    assert (first.base_own == second.base_own).all() and (first.null.texts == second.null.texts).all()
    status = tmp_path / "null-third-1" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"wall_s": 1.25}))
    assert main([*words(*runs), "--coverage", str(run)]) == 0 and len(read) == 1

    shown = tmp_path / "expert-first-0"
    shutil.copytree(folder, shown / "latent")
    assert main(["report", str(shown)]) == 0
    assert "What the hidden states hold" in (shown / "report.html").read_text()


def test_what_is_missing_is_named(run, words, tmp_path, capsys, monkeypatch):
    """One seed and no null experts: clusters and maps are told, and no claim. An encoder makes views of its own."""
    save_questions(complete(4), tmp_path / "questions.jsonl")
    monkeypatch.setattr("mind.latent.analyze.SentenceEncoder", Letters)
    runs = grid(run, tmp_path, seeds=1, null=False)
    assert main([*words(*runs), "--encoder", "letters"]) == 0
    found = json.loads((tmp_path / "latent" / "latent.json").read_text())
    told = " ".join(found["missing"])
    for sentence in (
        "no probes, which need 5 questions",
        "There is no probe of new students: the experts have one seed, and it needs two.",
        "There is no control by null experts: no run has data.shuffle_perspectives.",
        "How many perspectives a student's samples have is not told: --coverage names no run.",
        "There are 4 questions: of fewer than 100 little can be told.",
    ):
        assert sentence in told
    assert "left out" not in told and list(found["views"])[-2:] == ["V6", "V6 own"]
    assert [one["holds"] for one in found["claim"]["conditions"]] == [None] * 6
    assert found["views"]["V4"]["experts"]["new_student"] is None and found["views"]["V4"]["experts"]["clusters"]
    assert "so not known" in capsys.readouterr().out
    assert "there is no such control" in (tmp_path / "latent" / "latent.html").read_text()


def test_what_is_wrong_is_told_before_anything_is_written(run, words, tmp_path, capsys, monkeypatch):
    runs = grid(run, tmp_path, seeds=1, null=False)
    before = content(tmp_path)

    def refused(*parts, runs=runs, more=()):
        expect_error([*words(*runs), *more], capsys, *parts)
        assert content(tmp_path) == before

    refused(f"there is no expert of {NAMES[2]} with train.seed 0", runs=runs[:2])
    refused("are both the expert of perspective first with train.seed 0", runs=[*runs, run])
    refused("model is a model, and a run is expected here: ", runs=[*runs, run.with_name("model")])
    refused("expected a number below 2**31", more=["--seed", str(2**31)])
    with monkeypatch.context() as patch:
        patch.setattr("mind.latent.config.importlib.util.find_spec", lambda name: None)
        refused("mind latent needs the package scikit-learn: pip install 'mind-kernels[latent]'")
    refused("--encoder some/encoder needs sentence-transformers", more=["--encoder", "some/encoder"])
    refused("is of no analysis: name another --output", more=["--output", str(run)])

    def changed(name, section, option, value):
        file = tmp_path / name / "config.json"
        config = json.loads(file.read_text())
        target = config if section is None else config[section]
        target[option] = value
        file.write_text(json.dumps(config))

    another(run, tmp_path / "other", NAMES[0], 1)
    for section, option, value, words_of_error in (
        ("train", "learning_rate", 0.5, "train.learning_rate is 0.5, and 0.001 in"),
        ("data", "perspectives", ["first", "second"], "data.perspectives is first, second, and first, second, third"),
        (None, "method", "sft", "its method is sft: expected single; --coverage takes other runs"),
    ):
        saved = (tmp_path / "other" / "config.json").read_text()
        changed("other", section, option, value)
        before = content(tmp_path)
        refused(words_of_error, runs=[*runs, tmp_path / "other"])
        (tmp_path / "other" / "config.json").write_text(saved)
    inputs = json.loads((tmp_path / "other" / "inputs.json").read_text())
    inputs["weights"]["sha256"] = "0" * 16
    (tmp_path / "other" / "inputs.json").write_text(json.dumps(inputs))
    before = content(tmp_path)
    refused("whose weights are others: expected runs of one student", runs=[*runs, tmp_path / "other"])
    for seed, name in ((7, "first"), (8, "second")):
        another(run, tmp_path / f"dealt-{name}", name, 0, seed)
    another(run, tmp_path / "dealt-third", "third", 0, 8)
    before = content(tmp_path)
    refused(
        "the null experts have data.shuffle_perspectives 7, 8: expected one seed",
        runs=[*runs, *(tmp_path / f"dealt-{name}" for name in NAMES)],
    )
    (tmp_path / "other" / "status.json").unlink()
    before = content(tmp_path)
    refused("the run did not come to its end", runs=[*runs, tmp_path / "other"])

    for questions, told in (
        (complete(2), "2 questions: expected at least 3, and better 100"),
        (
            build_questions(206)[200:],
            "2 questions without a rationale in every perspective, first sum-200, which",
        ),
        ([*complete(3), *build_questions(1)], "1 of 4 questions are among those that"),
        (with_all(complete(3), rationales=(Rationale("first", "x"),)), "3 questions without a rationale"),
        (long(complete(3)), "the context of the student is 512"),
    ):
        save_questions(questions, tmp_path / "questions.jsonl")
        before = content(tmp_path)
        refused(told)
    save_questions(complete(3), tmp_path / "questions.jsonl")
    before, train = content(tmp_path), run.with_name("train.jsonl")
    kept = train.read_text()
    save_questions(build_questions(9), train)
    try:
        refused("train.jsonl has changed since", "whether it was trained on the questions cannot be told")
    finally:
        train.write_text(kept)


@pytest.mark.parametrize(("leaks", "left"), [("keep", 10), ("drop", 9)])
def test_the_training_questions_are_those_without_what_leaked(tmp_path, leaks, left):
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "heldout", "test")}
    for name, questions in (("train", build_questions(10)), ("heldout", complete(2)), ("test", build_questions(1))):
        save_questions(questions, files[name])
    data = DataConfig(files["train"], files["heldout"], evaluation=(files["test"],), perspectives=NAMES, leaks=leaks)
    run = Run(RunFolder(tmp_path / "run"), MindConfig(method="single", data=data))
    trained = load_data(run.config).train
    assert len(trained) == left
    run.folder.path.mkdir()
    run.folder.write_inputs({"data.train": input_entry(files["train"], map(question_row, trained))})
    _check_unseen("questions.jsonl", complete(3), [run])
    with pytest.raises(MindError, match="1 of 2 questions are among those that .*run was trained on, first sum-1:"):
        _check_unseen("questions.jsonl", [*build_questions(2)[1:], *complete(1)], [run])


class Letters:
    """Stands for a sentence-transformers model."""

    def __init__(self, name, option):
        assert (name, option) == ("letters", "--encoder")

    def encode(self, texts, progress):
        return torch.tensor([[text.count(letter) for letter in "+0 :adehs"] for text in texts]).float()


def long(questions):
    """With a first rationale that no tiny student has a context for."""
    return [with_all([one], rationales=(Rationale(NAMES[0], "12 " * 300), *one.rationales[1:]))[0] for one in questions]


def test_vectors_are_those_of_one_sequence_at_a_time(tmp_path):
    student = write_student(tmp_path / "model", build_model())
    questions = complete(4)
    reader = Reader(StudentConfig(model=student), LatentConfig(("run",), "q", max_new_tokens=6, pack_length=128))
    prompts, (first, *_) = reader.prompts(questions), reader.rationales(questions, NAMES)
    own, ends = reader.branch_means(prompts, [*first[:3], []]), reader.prompt_ends(prompts)
    chat, model = Chat(reader.tokenizer), build_model().eval()
    for n, question in enumerate(questions):
        assert prompts[n] == chat.prompt(question)
        ids = [*prompts[n], *reader.tokenizer(question.rationales[0].text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            states = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(torch.from_numpy(ends[n]), states[len(prompts[n]) - 1], rtol=1e-4, atol=1e-5)
        if n < 3:
            expected = states[len(prompts[n]) :].mean(0)
            torch.testing.assert_close(torch.from_numpy(own[n]), expected, rtol=1e-4, atol=1e-5)
    assert np.isnan(own[3]).all() and own.dtype == ends.dtype == np.float32
    (answer, *_) = reader.answers(prompts, lambda _: None)
    with torch.no_grad():
        greedy = model.generate(torch.tensor([prompts[0]]), max_new_tokens=6, do_sample=False)[0, len(prompts[0]) :]
    assert answer == greedy[: len(answer)].tolist()


@pytest.mark.parametrize(
    ("text", "kept"),
    [("2 + 3 = 5.\n#### 5", "2 + 3 = 5."), ("#### 5", ""), ("  so 5 ", "  so 5"), ("a #### b\nc\nd", "a #### b\nc\nd")],
)
def test_an_answer_without_its_suffix(text, kept, tokenizer):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(without_suffix_ids(ids, tokenizer.decode)) == kept


def test_coverage_of_samples_from_known_perspectives():
    """Samples that are others' rationales of two perspectives of three, and of one."""
    questions = complete(10)
    other = SimpleNamespace(folder=SimpleNamespace(path="run"), config=SimpleNamespace(method="sft"))
    students = SimpleNamespace(perspectives=NAMES, questions=questions, others=(other,))
    config = LatentConfig(("run",), "q", samples=4)
    by_name = {name: [one.text for q in questions for one in q.rationales if one.perspective == name] for name in NAMES}
    both = np.array([[*[by_name["first"][n - 1]] * 2, *[by_name["second"][n - 2]] * 2] for n in range(10)])
    single = np.array([[by_name["third"][n - 3], "", " ", by_name["third"][n]] for n in range(10)])
    for encoder in (None, Letters("letters", "--encoder")):
        two, one = coverages({"base": both, "run": single}, students, config, encoder)
        assert two.coverage == pytest.approx(2 / 3) and two.shares == [0.5, 0.5, 0] and two.empty == 0
        assert one.coverage == pytest.approx(1 / 3) and one.shares == [0, 0, 1] and one.empty == 20
    assert (coverage_view(None), coverage_view(Letters("letters", "--encoder"))) == ("V5", "V6")
    assert coverages({"base": np.full((10, 2), " ")}, students, config, None) == []
    assert uniform_coverage(2, 2, 0) == pytest.approx(0.75, abs=0.02), "half of the draws have both"


def test_a_file_that_is_no_analysis_is_refused(tmp_path):
    from mind.errors import MindError

    with pytest.raises(MindError, match="there is no analysis to show"):
        write_latent_page(tmp_path)
    (tmp_path / "latent.json").write_text("[]")
    with pytest.raises(MindError, match="expected what `mind latent` writes"):
        write_latent_page(tmp_path)
