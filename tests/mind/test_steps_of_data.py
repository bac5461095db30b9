"""From step to step: prompts that are asked for, outputs that are there already, and the command that comes next."""

from __future__ import annotations

import dataclasses
import json
import shlex

import pytest
from fault_proxy import FaultProxy, chat_answer
from sample_records import make_response

from mind.cli import main
from mind.data.questions import load_questions, save_questions
from mind.data.sources import SourceConfig
from mind.perspectives import PAPER_PERSPECTIVES
from mind.records import Question, Rationale
from mind.teacher.config import GenerateConfig, ModelConfig
from mind.teacher.folder import DatasetFolder
from mind.teacher.journal import Journal, load_responses
from mind.teacher.requests import load_prompts
from mind.typed_json import save_json

QUESTION = Question("q", "Ann has 5 pears and buys 7. How many pears has she?", "12")


@pytest.fixture
def generate(tmp_path):
    """Runs `mind data generate` with these options; the perspectives that were asked."""
    save_questions([QUESTION], tmp_path / "q.jsonl")

    def generate(*options):
        command = ["data", "generate", "--output", str(tmp_path / "set"), "--questions.path", str(tmp_path / "q.jsonl"),
                   "--teacher.model", "m"]  # fmt: skip
        with FaultProxy(lambda _: chat_answer("It is.\n#### 12")) as proxy:
            assert main([*command, "--teacher.base-url", proxy.url, *options]) == 0
        return {response.key.perspective for response in load_responses(tmp_path / "set" / "responses.jsonl")}

    return generate


def prompts(folder, *names):
    path = folder / "prompts.json"
    path.write_text(json.dumps({name: f"Be {name}." for name in names}))
    return str(path)


@pytest.mark.parametrize(
    ("own", "given", "asked"),
    [
        (None, None, PAPER_PERSPECTIVES),
        (["visual"], None, ["visual"]),
        (["visual", "socratic"], None, ["visual", "socratic"]),
        (["socratic"], None, ["socratic"]),
        (["visual", "terse"], ["terse"], ["terse"]),
        (["visual"], ["planning", "visual"], ["planning", "visual"]),
    ],
)
def test_the_prompts_that_are_given_are_those_that_are_asked(tmp_path, generate, recwarn, own, given, asked):
    options = ["--prompts", prompts(tmp_path, *own)] if own else []
    assert generate(*options, *(["--perspectives", *given] if given else [])) == set(asked)
    unused = [str(warning.message) for warning in recwarn if "not asked for" in str(warning.message)]
    assert len(unused) == (own == ["visual", "terse"])
    assert not unused or unused[0].endswith("as --perspectives leaves them out: visual")


@pytest.mark.parametrize("perspectives", [["socratic"], ["socratic", "planning"]])
def test_a_perspective_alone_is_told_before_it_is_paid_for(generate, capsys, perspectives):
    generate("--perspectives", *perspectives)
    told = "training needs two per question: ask for another now or in a later start" in capsys.readouterr().out
    assert told is (len(perspectives) == 1)


def test_questions_that_are_paid_for_twice_are_told(tmp_path, generate, capsys):
    texts = ["6 + 6?", "5 + 7?", " 6  + 6?"]
    save_questions([Question(f"q{n}", text, "12") for n, text in enumerate(texts)], tmp_path / "q.jsonl")
    generate("--perspectives", "socratic")
    assert "q.jsonl: answer types: 3 numbers; 1 of them ask what an earlier one asks" in capsys.readouterr().out


def test_what_is_asked_of_whom_is_told_before_it_is_asked(tmp_path, generate, capsys):
    generate("--prompts", prompts(tmp_path, "visual", "terse"), "--samples", "3")
    out = capsys.readouterr().out
    asked = "perspectives: visual, terse\n1 question x 2 perspectives x 3 samples: 6 requests"
    assert f"answer types: 1 number\n{asked}" in out
    assert "to m at http://127.0.0.1" in out
    generate("--prompts", prompts(tmp_path, "visual", "terse"), "--samples", "3")
    assert ": 0 requests to m" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{}", '{"a": ""}', '{"a": 3}', '{"a": "\\ud83d"}', "[]"])
def test_a_faulty_file_of_prompts_is_refused(tmp_path, content, capsys):
    path = tmp_path / "prompts.json"
    path.write_text(content)
    assert main(["generate", "--output", str(tmp_path / "set"), "--questions.path", "x.jsonl", "--teacher.model", "m",
                 "--prompts", str(path)]) == 2  # fmt: skip
    assert not (tmp_path / "set").exists() and "Traceback" not in capsys.readouterr().err


def test_an_unknown_perspective_of_training_names_the_option(tmp_path, capsys):
    named = tuple(Rationale(name, "So.") for name in ("visual", "terse"))
    save_questions([QUESTION.__class__("q", "?", "1", None, named)], tmp_path / "t.jsonl")
    assert main(["train", "--output", str(tmp_path / "run"), "--data.train", str(tmp_path / "t.jsonl")]) == 2
    error = capsys.readouterr().err
    assert "unknown perspective visual" in error and "--data.perspectives" in error


def test_warnings_of_prompts_do_not_stop_their_use(tmp_path):
    with pytest.warns(RuntimeWarning, match="leaves them out: b"):
        assert load_prompts(("a",), prompts(tmp_path, "a", "b")) == {"a": "Be a."}


@pytest.mark.parametrize("output", ["q.jsonl", "q.jsonl/set", "x" * 300, "\0", "dead/set"])
def test_an_output_that_cannot_be_a_folder_is_told_before_anything_is_asked(tmp_path, capsys, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    save_questions([QUESTION], "q.jsonl")
    (tmp_path / "dead").symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    with FaultProxy(lambda _: chat_answer("#### 12")) as proxy:
        assert main(["generate", "--output", output, "--questions.path", "q.jsonl", "--teacher.model", "m",
                     "--teacher.base-url", proxy.url]) == 2  # fmt: skip
        assert not proxy.attempts
    assert "Traceback" not in capsys.readouterr().err and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("change", ["gold answer", "samples", "nothing"])
def test_verdicts_on_what_has_changed_are_given_anew(tmp_path, generate, capsys, change):
    options = ["--perspectives", "socratic", "intuitive"]
    generate(*options)
    folder = tmp_path / "set"
    assert main(["judge", str(folder)]) == 0
    verdicts = (folder / "judged.jsonl").read_bytes()
    if change == "gold answer":
        save_questions([dataclasses.replace(QUESTION, answer="13")], tmp_path / "q.jsonl")
    generate(*options, *(["--samples", "2"] if change == "samples" else []))
    if change == "nothing":
        assert (folder / "judged.jsonl").read_bytes() == verdicts
        return
    assert main(["filter", str(folder), "--output", str(tmp_path / "mine.jsonl")]) == 2
    assert f"judged.jsonl: no such file: run `mind data judge {folder}` first" in capsys.readouterr().err
    assert main(["judge", str(folder)]) == 0
    assert {json.loads(line)["verdict"] for line in (folder / "judged.jsonl").read_text().splitlines()} == {
        "wrong" if change == "gold answer" else "right"
    }


# Outputs that are there already, and what comes next


@pytest.fixture
def folder(tmp_path, capsys):
    """A judged data set."""
    names = DatasetFolder(tmp_path / "set")
    names.path.mkdir()
    save_questions([QUESTION], names.questions)
    texts = {"visual": "Picture a pile of fruit, 12 in all.", "terse": "5 + 7 = 12."}
    with Journal(names.responses) as journal:
        journal.append(make_response("q", name, text=f"{text}\n#### 12") for name, text in texts.items())
    save_json(GenerateConfig(str(names.path), SourceConfig("q.jsonl"), ModelConfig("m")), names.config)
    names.prompts.write_text("{}")
    assert main(["judge", str(names.path)]) == 0
    return names.path


def next_command(capsys) -> list[str]:
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    return shlex.split(line.removeprefix("next: "))


def test_each_step_names_the_next(tmp_path, folder, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert next_command(capsys) == ["mind", "data", "filter", str(folder), "--output", "set.jsonl"]
    (tmp_path / "set.jsonl").write_text("the questions")
    assert main(["judge", str(folder)]) == 0
    assert next_command(capsys) == ["mind", "data", "filter", str(folder), "--output", "set.rationales.jsonl"]
    assert main(["filter", "set", "--output", "mine.jsonl"]) == 0
    train = ["mind", "train", "--output", "runs/mine", "--data.train", "mine.jsonl"]
    assert next_command(capsys) == [*train, "--data.perspectives", "terse", "visual"]
    (tmp_path / "test.jsonl").write_text('{"id": "t", "question": "How many pens?", "answer": "3"}')
    assert main(["filter", "set", "--output", "mine.jsonl", "--overwrite", "--evaluation", "test.jsonl"]) == 0
    assert next_command(capsys)[-2:] == ["--data.evaluation", "test.jsonl"]
    assert main(["data", "word-problems", "--output", "w.jsonl", "--count", "2"]) == 0
    assert next_command(capsys) == ["mind", "train", "--output", "runs/w", "--data.train", "w.jsonl"]
    assert main(["data", "word-problems", "--output", "e.jsonl", "--count", "2", "--apart-from", "w.jsonl"]) == 0
    assert next_command(capsys) == [*train[:3], "runs/w", "--data.train", "w.jsonl", "--data.evaluation", "e.jsonl"]
    row = {"id": "q", "question": QUESTION.question, "answer": "12", "rationales": ["5 + 7 = 12.", "A dozen, 12."]}
    (tmp_path / "u.jsonl").write_text(json.dumps(row))
    assert main(["data", "import", "u.jsonl", "--output", "a name.jsonl"]) == 0
    named = ["mind", "train", "--output", "runs/a name", "--data.train", "a name.jsonl"]
    assert next_command(capsys) == [*named, "--data.perspectives", "path-1", "path-2"]
    (question,) = load_questions("a name.jsonl")
    assert [rationale.perspective for rationale in question.rationales] == ["path-1", "path-2"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_filtering_again_needs_a_word(tmp_path, folder, capsys):
    command = ["filter", str(folder), "--output", str(tmp_path / "mine.jsonl")]
    assert main(command) == 0
    before = contents(tmp_path)
    assert main([*command, "--license", "mit"]) == 2
    assert "mine.jsonl: exists already; name another --output, or add --overwrite" in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert main([*command, "--license", "mit", "--overwrite"]) == 0
    assert "license: mit" in (tmp_path / "mine.card.md").read_text()
    assert contents(tmp_path)["mine.jsonl"] == before["mine.jsonl"]


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_the_report_and_card_of_another_data_set_are_not_replaced(tmp_path, folder, capsys, more):
    pytest.importorskip("pyarrow")
    assert main(["filter", str(folder), "--output", str(tmp_path / "mine.jsonl")]) == 0
    before = contents(tmp_path)
    assert main(["filter", str(folder), "--output", str(tmp_path / "mine.parquet"), *more]) == 2
    assert "mine.jsonl: exists already, and what belongs to it would be replaced" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("ending", [".report.html", ".card.json", ".card.md", ".dropped.jsonl"])
def test_a_file_beside_the_records_is_not_replaced_without_a_word(tmp_path, folder, capsys, ending):
    (tmp_path / f"mine{ending}").write_text("my own")
    command = ["filter", str(folder), "--output", str(tmp_path / "mine.jsonl")]
    assert main(command) == 2
    assert f"mine{ending}: exists already" in capsys.readouterr().err
    assert contents(tmp_path) == {f"mine{ending}": b"my own"}
    assert main([*command, "--overwrite"]) == 0


def test_a_filter_that_keeps_nothing_can_be_tried_again(tmp_path, folder, capsys):
    command = ["filter", str(folder), "--output", str(tmp_path / "mine.jsonl")]
    assert main([*command, "--minimum", "3"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "no question is left to train on, which takes 3 rationales: 1 question with 2 left; " in error
    assert "mine.report.html shows examples; --overwrite replaces it when you try again" in error
    assert main([*command, "--overwrite"]) == 0 and (tmp_path / "mine.jsonl").is_file()


def test_the_other_outputs_are_replaced_with_a_word_alone(tmp_path, capsys):
    row = {"id": "q", "question": QUESTION.question, "answer": "12", "rationales": ["5 + 7 = 12.", "A dozen, 12."],
           "response": "12"}  # fmt: skip
    (tmp_path / "u.jsonl").write_text(json.dumps(row))
    output = tmp_path / "out.jsonl"
    for command in (
        ["data", "import", str(tmp_path / "u.jsonl")],
        ["data", "word-problems", "--count", "2"],
        ["grade", str(tmp_path / "u.jsonl")],
    ):
        output.write_text("mine")
        assert main([*command, "--output", str(output)]) == 2
        assert output.read_text() == "mine" and "or add --overwrite" in capsys.readouterr().err
        assert main([*command, "--output", str(output), "--overwrite"]) == 0
        assert output.read_text() != "mine"


@pytest.mark.parametrize("name", ["out.csv", "out.json", "out"])
def test_a_data_set_is_not_written_under_a_name_that_is_read_otherwise(tmp_path, folder, capsys, name):
    row = {"id": "q", "question": QUESTION.question, "answer": "12", "rationales": ["5 + 7 = 12.", "A dozen, 12."]}
    (tmp_path / "u.jsonl").write_text(json.dumps(row))
    for command in (["data", "import", str(tmp_path / "u.jsonl")], ["data", "word-problems"], ["filter", str(folder)]):
        assert main([*command, "--output", str(tmp_path / name)]) == 2
        assert f"{name}: expected a name that ends in .jsonl or .parquet" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_the_counts_of_an_import_are_not_replaced_either(tmp_path, capsys):
    row = {"id": "q", "question": QUESTION.question, "answer": "12", "rationales": ["5 + 7 = 12.", "A dozen, 12."]}
    (tmp_path / "u.jsonl").write_text(json.dumps(row))
    (tmp_path / "out.counts.json").write_text("mine")
    assert main(["data", "import", str(tmp_path / "u.jsonl"), "--output", str(tmp_path / "out.jsonl")]) == 2
    assert "out.counts.json: exists already" in capsys.readouterr().err
    assert (tmp_path / "out.counts.json").read_text() == "mine" and not (tmp_path / "out.jsonl").exists()


def test_what_is_read_is_never_written_over(tmp_path, folder, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_questions([QUESTION], "q.jsonl")  # whose rationales are in `folder`
    row = {"id": "q", "question": QUESTION.question, "answer": "12", "rationales": ["5 + 7 = 12.", "A dozen, 12."],
           "response": "12"}  # fmt: skip
    source = tmp_path / "u.jsonl"
    source.write_text(json.dumps(row))
    (tmp_path / "link.jsonl").symlink_to(source)
    before = contents(tmp_path), contents(folder)
    for command in (
        ["data", "import", str(source), "--output", str(source)],
        ["data", "import", str(source), "--output", str(tmp_path / "link.jsonl")],
        ["grade", str(source), "--output", str(source)],
        ["evaluate", "--files", str(source), "--output", str(source)],
        ["data", "word-problems", "--apart-from", str(source), "--output", str(source)],
        ["filter", str(folder), "--output", str(folder / "responses.jsonl")],
        ["filter", str(folder), "--output", str(folder / "questions.jsonl")],
        ["filter", str(folder), "--output", "q.jsonl"],
    ):
        assert main([*command, "--overwrite"]) == 2
        assert "this command also reads it, and would overwrite it" in capsys.readouterr().err
    generate = ["generate", "--output", str(folder), "--teacher.model", "m", "--teacher.base-url", "http://127.0.0.1:9"]
    for sources in (
        ["--questions.path", str(folder / "questions.jsonl")],
        ["--questions.path", str(source), "--prompts", str(folder / "prompts.json")],
    ):
        assert main([*generate, *sources]) == 2
        assert "this command also reads it, and would overwrite it" in capsys.readouterr().err
    assert (contents(tmp_path), contents(folder)) == before


@pytest.mark.parametrize("name", ["questions.jsonl", "prompts.json", "generate.json"])
def test_a_folder_that_no_job_wrote_is_left_alone(tmp_path, capsys, name):
    source, folder = tmp_path / "q.jsonl", tmp_path / "mine"
    save_questions([QUESTION], source)
    folder.mkdir()
    (folder / name).write_text("my own")
    assert main(["generate", "--output", str(folder), "--questions.path", str(source), "--teacher.model", "m",
                 "--teacher.base-url", "http://127.0.0.1:9"]) == 2  # fmt: skip
    assert f"{name}: exists already, in a folder without responses.jsonl" in capsys.readouterr().err
    assert contents(folder) == {name: b"my own"}


def test_training_tells_its_questions_by_answer_type(tmp_path):
    from mind.config import DataConfig, MindConfig
    from mind.run.data import described_data, load_data

    named = (Rationale("socratic", "Why?"), Rationale("planning", "So."))
    rows = [
        ("How many?", "12", None),
        ("Is it?", "yes", {"yes": "yes", "no": "no"}),
        ("Which?", "A", {"A": "x", "B": "y"}),
    ]
    save_questions([Question(f"t{n}", *row, named) for n, row in enumerate(rows)], tmp_path / "t.jsonl")
    save_questions([Question("h", "How few?", "3", None, named)], tmp_path / "h.jsonl")
    save_questions([Question("e", "Where?", "\\frac{\\pi}{2}")], tmp_path / "test.jsonl")
    files = DataConfig(train=str(tmp_path / "t.jsonl"), heldout=str(tmp_path / "h.jsonl"),
                       evaluation=(str(tmp_path / "test.jsonl"),))  # fmt: skip
    assert described_data(load_data(MindConfig(data=files))) == (
        "questions by answer type: training: 1 number, 1 yes/no, 1 choice; held-out: 1 number; evaluation test: 1 latex"
    )


def test_the_faults_of_all_files_of_a_run_are_told_in_one_go(tmp_path, capsys):
    named = [{"perspective": name, "text": "So."} for name in ("socratic", "planning")]
    good = {"id": "a", "question": "?", "answer": "1", "rationales": named}
    for name, row in (("t", {**good, "rationales": named[:1]}), ("h", {"id": "a"}), ("e", {**good, "answer": None})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(row | {"id": "b"}) + "\n")
    assert main(["train", "--output", str(tmp_path / "run"), "--data.train", str(tmp_path / "t.jsonl"),
                 "--data.heldout", str(tmp_path / "h.jsonl"), "--data.evaluation", str(tmp_path / "e.jsonl"),
                 str(tmp_path / "nowhere.jsonl")]) == 2  # fmt: skip
    error = capsys.readouterr().err
    for told in ("t.jsonl:2: 1 rationale: expected", 'h.jsonl:2: "question" is missing',
                 'e.jsonl:2: "answer" is null', "nowhere.jsonl: no such file"):  # fmt: skip
        assert told in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("most", "first"), [(50, 50), (7, 7), (60, None), (None, None)])
def test_questions_that_are_not_asked_are_told(tmp_path, capsys, monkeypatch, most, first):
    from mind.config import DataConfig, EvaluationConfig, MindConfig
    from mind.run.data import load_data

    monkeypatch.chdir(tmp_path)
    named = (Rationale("socratic", "Why?"), Rationale("planning", "So."))
    save_questions([Question(str(n), f"How many, {n}?", "3", None, named) for n in range(60)], "t.jsonl")
    save_questions([Question(str(n), f"How few, {n}?", "3") for n in range(60)], "e.jsonl")
    files = DataConfig(train="t.jsonl", evaluation=("e.jsonl",))
    data = load_data(MindConfig(data=files, evaluation=EvaluationConfig(questions=most)))
    assert len(data.evaluation["e"]) == (most or 60)
    told = first and f"evaluation e: its first {first} of 60 questions are asked (--evaluation.questions)\n"
    assert capsys.readouterr().err == (told or "")
    options = ["--evaluation.questions", str(most), "--student.model", "no/such/model"]
    assert main(["evaluate", "--files", "e.jsonl", *options]) == 2
    assert capsys.readouterr().err.partition("mind: error: student.model")[0] == (told or "")


def test_the_folder_of_a_run_is_no_student_but_holds_one(tmp_path, capsys):
    run = tmp_path / "run"
    (run / "student").mkdir(parents=True)
    for folder in (run, run / "student"):
        (folder / "config.json").write_text("{}")
    save_questions([QUESTION], tmp_path / "q.jsonl")
    assert main(["evaluate", "--files", str(tmp_path / "q.jsonl"), "--student.model", str(run)]) == 2
    told = f"student.model {run} is the folder of a run: name its student, {run / 'student'}"
    assert capsys.readouterr().err == f"mind: error: {told}\n"
