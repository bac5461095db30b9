"""`mind data generate --dual`: a right and a wrong version of each rationale, from the request to the records."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter

import pytest
from fake_engines import FakeVLLM
from fault_proxy import FaultProxy, chat_answer
from judged_folder import QUESTIONS, WAYS, judged_folder
from sample_records import make_response, make_verdict
from tiny import NAMES, build_model, build_questions, build_tokenizer

from mind.answer_line import suffix
from mind.cli import main
from mind.config import MindConfig
from mind.curation.filter import FilterConfig, filter_responses
from mind.data.questions import load_questions, save_questions
from mind.errors import MindError
from mind.methods.edit import Edit, EditOptions
from mind.methods.sequences import Sequences
from mind.records import Key, Question, WrongRationale
from mind.student.tokenization import tokenize
from mind.teacher.config import GenerateConfig
from mind.teacher.folder import DatasetFolder
from mind.teacher.generate import ask_teacher
from mind.teacher.journal import load_responses
from mind.teacher.recipes import CORRUPT, RECTIFY, MadeFrom, recipe_defaults
from mind.typed_json import load_json


@pytest.fixture
def mine(tmp_path, capsys):
    folder = judged_folder(tmp_path / "mine")
    capsys.readouterr()
    return folder


def twin(body):
    """What EDIT hopes for: the same text but for the number that decides."""
    system, user = (message["content"] for message in json.loads(body)["messages"])
    given = "Right response:\n" if system == CORRUPT else "Wrong response:\n"
    response = user.split(given, 1)[1].split("\n\nEnd with")[0]
    text, _, answer = response.rpartition("\n#### ")
    change = 1 if system == CORRUPT else -1
    return chat_answer(
        text.replace("7" if change > 0 else "8", "8" if change > 0 else "7") + suffix(str(int(answer) + change))
    )


def dual(mine, proxy, *more):
    output = str(mine.path.parent / "dual")
    return ["data", "generate", "--dual", str(mine.path), "--output", output, "--teacher.base-url", proxy.url, *more]


def test_from_a_judged_folder_to_pairs(tmp_path, mine, capsys):
    seen = []
    with FaultProxy(lambda body: seen.append(json.loads(body)) or twin(body)) as proxy:
        assert main(dual(mine, proxy)) == 0
        assert main(dual(mine, proxy)) == 0
        assert proxy.attempts.total() == 6
    out = capsys.readouterr().out
    assert f"--dual {mine.path}: 5 answers to be corrupted, 1 answer to be rectified: 6 requests to m at" in out
    assert Counter(body["messages"][0]["content"] for body in seen) == {CORRUPT: 5, RECTIFY: 1}
    assert {body["temperature"] for body in seen} == {0.2}
    (rectify,) = (body["messages"][1]["content"] for body in seen if body["messages"][0]["content"] == RECTIFY)
    assert rectify == (
        "Question:\nAnn has 1 pears and buys 7. How many has she?\n\nThe correct answer is 8.\n\nWrong response:\n"
        "Plan: add both. Then: 1 plus 8.\n#### 9\n\n"
        'End with a line that holds "#### " and the final answer, and nothing else.\n\nRight response:'
    )
    assert all(
        "correct answer" not in body["messages"][1]["content"]
        for body in seen
        if body["messages"][0]["content"] == CORRUPT
    )

    made = tmp_path / "dual"
    assert main(["judge", str(made)]) == 0
    records = tmp_path / "r.jsonl"
    command = ["data", "filter", str(mine.path), "--also", str(made), "--output", str(records), "--keep-wrong", "4"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "kept as wrong" in told and "of these with a right twin" in told
    assert f"next: mind data filter {mine.path} --also {made} --output dual.jsonl --keep-wrong 8" in told
    questions = {question.id: question for question in load_questions(records)}
    assert {name: {r.perspective: r.text for r in q.rationales} for name, q in questions.items()} == {
        f"q{n}": {name: way.format(n) for name, way in WAYS.items()} for n in range(3)
    }, "the rectified one stands for the wrong one"
    for question in QUESTIONS:
        wrongs = questions[question.id].wrong_rationales
        n, wrong = question.id[1:], str(int(question.answer) + 1)
        assert {(w.perspective, w.text, w.answer, w.right) for w in wrongs} == {
            (name, way.format(n).replace("7", "8"), wrong, way.format(n)) for name, way in WAYS.items()
        }
    assert {wrong.source for question in questions.values() for wrong in question.wrong_rationales} == {
        "served-model",
        "m",
    }
    dropped = read_rows(tmp_path / "r.dropped.jsonl")
    assert Counter((row["dropped"], row["folder"]) for row in dropped) == {
        ("wrong", str(made)): 5,
        ("wrong", str(mine.path)): 1,
    }
    card = json.loads((tmp_path / "r.card.json").read_text())
    assert card["also"][0]["recipe"] == "dual" and card["also"][0]["prompts"].keys() == {"rectify", "corrupt"}
    assert card["teacher"]["models"] == {"m": 6, "served-model": 6} and len(card["sources"]) == 1
    assert "Some wrong rationales were written to be wrong" in (tmp_path / "r.card.md").read_text()
    assert card["counts"]["kept_as_wrong"] == card["counts"]["twins"] == 6
    # A pass rate is that of answers to the question alone.
    assert sum(int(line) for line in load_histogram(records)) == 3 and load_histogram(records)[5] == 1


def load_histogram(records):
    from mind.curation.pool import load_pool

    names = [str(records.parent / name) for name in ("mine", "dual")]
    pool = load_pool(names[0], names[1:])
    result = filter_responses(pool.questions, pool.responses, pool.verdicts, FilterConfig(), made=pool.made)
    return result.pass_rate_histogram


def test_a_job_goes_on_where_its_budget_ended(mine, capsys):
    output = mine.path.parent / "dual"
    with FaultProxy(twin) as proxy:
        assert main(dual(mine, proxy, "--budget.requests", "2", "--traffic.concurrency", "1")) == 1
        printed = capsys.readouterr().out
        assert f"to go on with a larger budget: mind data generate --dual {mine.path}" in printed
        assert " --budget.requests N --traffic.concurrency 1\n" in printed
        assert main(["generate", "--config", str(output / "generate.json"), "--budget.requests", "50"]) == 0
        assert proxy.attempts.total() == 6
    assert len({response.key for response in load_responses(output / "responses.jsonl")}) == 6


def test_samples_are_of_each_answer_and_keep_their_seeds(mine):
    bodies = []
    with FaultProxy(lambda body: bodies.append(json.loads(body)) or twin(body)) as proxy:
        assert main(dual(mine, proxy, "--samples", "3", "--perspectives", "socratic")) == 0
        assert main(dual(mine, proxy, "--samples", "2", "--perspectives", "socratic")) == 2
    keys = {response.key for response in load_responses(mine.path.parent / "dual" / "responses.jsonl")}
    assert keys == {(question.id, "socratic", sample) for question in QUESTIONS for sample in range(3)}
    assert len({body["seed"] for body in bodies}) == 9


def test_an_offline_engine_answers_the_same_requests(mine, monkeypatch):
    vllm = FakeVLLM()
    vllm.reply = lambda turn: "2 plus 8.\n#### 10"
    for name, module in vllm.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    config = recipe_defaults(load_json(mine.config, GenerateConfig), "dual", str(mine.path))
    teacher = dataclasses.replace(config.teacher, engine="vllm")
    report = ask_teacher(dataclasses.replace(config, teacher=teacher, output=str(mine.path.parent / "dual")))
    assert report.complete and report.answered == 6
    turns = [turn for call in vllm.loaded[0].calls for turn in call]
    assert sum(turn.endswith("Wrong response:") for turn in turns) == 5


def test_a_wording_of_ones_own(tmp_path, mine):
    prompts = tmp_path / "p.json"
    prompts.write_text(json.dumps({"rectify": "Mend it."}))
    systems = Counter()
    with FaultProxy(
        lambda body: systems.update([json.loads(body)["messages"][0]["content"]]) or chat_answer("x\n#### 1")
    ) as proxy:
        assert main(dual(mine, proxy, "--prompts", str(prompts))) == 0
    assert systems == {"Mend it.": 1, CORRUPT: 5}


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--show-answer"], "--dual and show_answer: expected one of them"),
        (["--perspectives", "analogy"], "mine has no answers in the perspective analogy"),
        (["--output", "mine"], "this command also reads it, and would overwrite it"),
        (["--prompts", "p.json"], "p.json: --dual asks with no prompt socratic: expected rectify, corrupt"),
        (["--questions.path", "other.jsonl"], "mine: question q1 is another one there"),
        (["--questions.path", "new.jsonl"], "--dual mine: it has no answer to the questions that this can use"),
        (["--dual", "nowhere"], "nowhere/generate.json: no such file"),
    ],
)
def test_what_cannot_be_asked_is_told_before_anything_is_written(tmp_path, mine, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.json").write_text('{"socratic": "Ask."}')
    save_questions([dataclasses.replace(QUESTIONS[1], answer="9")], "other.jsonl")
    save_questions([Question("new", "How many?", "1")], "new.jsonl")
    before = contents(tmp_path)
    assert main(["generate", "--dual", "mine", "--output", "dual", *options]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error and contents(tmp_path) == before and not (tmp_path / "dual").exists()


def test_the_folder_must_be_judged_and_another_one_named(tmp_path, mine, capsys):
    assert main(["generate", "--dual", str(mine.path)]) == 2
    assert "expected --output, a folder of its own" in capsys.readouterr().err
    mine.verdicts.unlink()
    assert main(["generate", "--dual", str(mine.path), "--output", str(tmp_path / "dual")]) == 2
    assert f"run `mind data judge {mine.path}` first" in capsys.readouterr().err and not (tmp_path / "dual").exists()


def test_a_filter_tells_what_does_not_belong_together(tmp_path, mine, capsys):
    made, records = tmp_path / "dual", tmp_path / "r.jsonl"
    with FaultProxy(twin) as proxy:
        assert main(dual(mine, proxy)) == 0
    assert main(["judge", str(made)]) == 0

    def refused(*words):
        capsys.readouterr()
        assert main(["filter", *map(str, words), "--output", str(records)]) == 2
        assert not list(tmp_path.glob("r.*"))
        return " ".join(capsys.readouterr().err.split())

    assert "say how many wrong ones to keep by --keep-wrong" in refused(mine.path, "--also", made)
    keep = ("--keep-wrong", "4")
    assert f"are twins of those of {mine.path}: name that folder, and this one as --also" in refused(made, *keep)
    assert "the same folder comes twice" in refused(mine.path, "--also", made, made, *keep)
    answers = mine.responses.read_text()
    mine.responses.write_text(answers.replace("Plan: add", "Let us add").replace("What is sought?", "What is it?"))
    assert f"--also {made}: its answers were made from" in refused(mine.path, "--also", made, *keep)
    mine.responses.write_text(answers)
    other = DatasetFolder(tmp_path / "other")
    other.path.mkdir()
    for name in ("config", "prompts"):
        getattr(other, name).write_bytes(getattr(mine, name).read_bytes())
    save_questions([Question("new", "How many?", "1")], other.questions)
    other.responses.write_text("")
    other.verdicts.write_text("")
    assert "question new is not in" in refused(mine.path, "--also", other.path)


def test_what_was_made_from_changed_answers_is_dropped_alone(tmp_path, mine):
    """One with another verdict, one in other words, and one that is gone, of six."""
    made, records = tmp_path / "dual", tmp_path / "r.jsonl"
    with FaultProxy(twin) as proxy:
        assert main(dual(mine, proxy)) == 0
    assert main(["judge", str(made)]) == 0
    answers = mine.responses.read_text().splitlines()
    (gone,) = (line for line in answers if "q2" in line and "socratic" in line)
    kept = "\n".join(line for line in answers if line != gone) + "\n"
    mine.responses.write_text(kept.replace("Plan: add both. Then: 2", "Plan: first add both. Then: 2"))
    verdicts = {Key(row["id"], row["perspective"], row["sample"]): row for row in read_rows(mine.verdicts)}
    verdicts["q0", "planning", 0]["verdict"] = "wrong"
    del verdicts["q2", "socratic", 0]
    mine.verdicts.write_text("".join(json.dumps(row) + "\n" for row in verdicts.values()))
    command = ["filter", str(mine.path), "--also", str(made), "--output", str(records), "--keep-wrong", "4"]
    assert main(command) == 0
    dropped = read_rows(tmp_path / "r.dropped.jsonl")
    changed = {(row["id"], row["perspective"]) for row in dropped if row["dropped"] == "of a changed answer"}
    assert changed == {("q0", "planning"), ("q2", "planning"), ("q2", "socratic")}
    card = json.loads((tmp_path / "r.card.json").read_text())
    assert card["counts"]["dropped"]["of a changed answer"] == 3 and card["counts"]["twins"] == 2
    assert "of a changed answer" in (tmp_path / "r.report.html").read_text()


# The rules of twins


def filtered(answers, made=None, keep_wrong=8):
    """The wrong rationales of a question from (sample, text, answer, verdict) in one perspective, and the reasons."""
    responses = [make_response("q0", "planning", n, text=text + suffix(a)) for n, text, a, _ in answers]
    responses.append(make_response("q0", "socratic", 0, text="Seven pears are seven." + suffix("7")))
    verdicts = {
        r.key: dataclasses.replace(make_verdict(r.key, verdict), extracted=a)
        for r, (_, _, a, verdict) in zip(responses, answers, strict=False)
    }
    verdicts[responses[-1].key] = make_verdict(responses[-1].key)
    keys = {n: r.key for (n, *_), r in zip(answers, responses, strict=False)}
    how = {keys[n]: MadeFrom(kind, keys[origin]) for n, (kind, origin) in (made or {}).items()}
    result = filter_responses(QUESTIONS[:1], responses, verdicts, FilterConfig(keep_wrong=keep_wrong), made=how)
    (question,) = result.questions
    return question.wrong_rationales, {
        key.sample: reason for key, reason in result.dropped if key.perspective == "planning"
    }


RIGHT, OFF = (0, "It is nought plus seven.", "7", "right"), (0, "Eight are there, plainly.", "8", "wrong")


def test_an_answer_that_stayed_right_is_no_wrong_rationale():
    wrongs, reasons = filtered([RIGHT, (1, "It is seven plus nought.", "7", "right")], {1: ("corrupted", 0)})
    assert wrongs == () and reasons == {1: "not corrupted"}


@pytest.mark.parametrize("text", [RIGHT[1], "Eight are there."])
def test_a_corrupted_one_needs_a_text_of_its_own(text):
    wrongs, _ = filtered([RIGHT, (1, text, "8", "wrong")], {1: ("corrupted", 0)})
    expected = [WrongRationale("planning", text, "8", "m", right=RIGHT[1])]
    assert list(wrongs) == ([] if text == RIGHT[1] else expected)


def test_the_first_rectified_one_that_is_right_is_the_twin():
    tries = [(1, "Six are there, plainly.", "6", "wrong"), (2, "Seven are there, plainly.", "7", "right"),
             (3, "Seven are here, plainly.", "7", "right")]  # fmt: skip
    wrongs, reasons = filtered([OFF, *tries], dict.fromkeys((1, 2, 3), ("rectified", 0)))
    twin, again = (WrongRationale("planning", text, answer, "m") for _, text, answer, _ in (OFF, tries[0]))
    assert wrongs == (dataclasses.replace(twin, right=tries[1][1]), again)
    assert reasons == {0: "wrong", 1: "wrong", 3: "not selected"}


@pytest.mark.parametrize(("made", "kept"), [("rewritten", 1), ("continued", 1), ("rectified", 1), ("corrupted", 0)])
def test_only_a_corrupted_one_needs_its_origin(made, kept):
    leaky = (0, "The answer is 7. Add.", "7", "right")
    wrongs, _ = filtered([leaky, (2, RIGHT[1], "7", "right"), (1, "Eight are there.", "8", "wrong")], {1: (made, 0)})
    assert list(wrongs) == [WrongRationale("planning", "Eight are there.", "8", "m")] * kept


def test_twins_come_before_others():
    answers = [
        OFF,
        (1, "Nine of them lie about.", "9", "wrong"),
        (2, RIGHT[1], "7", "right"),
        (3, "It is nought plus ten.", "10", "wrong"),
    ]
    wrongs, _ = filtered(answers, {3: ("corrupted", 2)}, keep_wrong=2)
    assert [(w.text, w.right) for w in wrongs] == [(answers[3][1], RIGHT[1]), (OFF[1], None)]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_records_keep_twins(tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    wrongs = (WrongRationale("planning", "No.", "8", "m", right="Yes."), WrongRationale("planning", "Never.", "9"))
    question = dataclasses.replace(QUESTIONS[0], wrong_rationales=wrongs)
    save_questions([question], tmp_path / f"r.{ending}")
    assert load_questions(tmp_path / f"r.{ending}") == [question]


def test_a_faulty_twin_is_named(tmp_path):
    row = {"id": "q", "question": "?", "answer": "1",
           "wrong_rationales": [{"perspective": "planning", "text": "No.", "answer": "2", "right": 3}]}  # fmt: skip
    (tmp_path / "r.jsonl").write_text(json.dumps(row))
    with pytest.raises(MindError, match=r'"wrong_rationales\[0\].right" is 3'):
        load_questions(tmp_path / "r.jsonl")


def test_a_twin_becomes_the_tokens_of_a_right_rationale():
    question = build_questions(1)[0]
    first = question.rationales[0]
    wrong = WrongRationale(first.perspective, "No, never.", "3", right=first.text)
    question = dataclasses.replace(question, wrong_rationales=(wrong,))
    model, tokenizer = build_model(), build_tokenizer()
    config = MindConfig(method="edit", options=EditOptions(max_changed=1.0))
    (tokens,) = tokenize([question], tokenizer, NAMES, 512)
    (pair,) = Edit.pairs_of(config, question, tokens, Sequences(config, model, tokenizer))
    expected = tokens.branches[NAMES.index(first.perspective)]
    assert (pair.right.prompt, pair.right.ids) == (expected.prompt, expected.ids)
