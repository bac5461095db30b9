"""The testbed's student: what it reads, how its tokenizer splits numbers, and a training of a few steps."""

import json
import random
import re
from pathlib import Path

import pytest
import torch

from bench.testbed import student
from bench.testbed.__main__ import main
from bench.testbed.pretraining import Shape, batches, encoded, labeled_loss, new_student
from bench.testbed.student import RECORD, STUDENT, Making, Record, is_made
from bench.testbed.texts import KNOWN, LEVEL_NAMES, REACH, Piece, Texts
from bench.testbed.tokenizer import ASSISTANT, USER, build_tokenizer
from bench.testbed.truth import told_by_loss, truth_of
from mind.cli import main as run_mind
from mind.config import StudentConfig
from mind.data.questions import load_questions, same_text
from mind.errors import MindError
from mind.experiment.plan import read_plan
from mind.student.model import load_student
from mind.student.tokenization import Chat
from mind.typed_json import load_json
from mind.word_problems import Lapses, generate
from mind.word_problems.splits import make_splits

ROOT = Path(__file__).parents[1]
OPTIONS = ["--steps", "2", "--width", "16", "--layers", "1", "--heads", "2"]


@pytest.fixture(scope="module")
def tokenizer():
    questions = generate(60, 0, levels=LEVEL_NAMES, reach=REACH, part="train")
    return build_tokenizer([text for q in questions for text in (q.question, q.rationales[0].text)], 800, 512)


def whole(pieces):
    return "".join(piece.text for piece in pieces)


def test_a_digit_is_one_token_wherever_it_is(tokenizer):
    for text in ("Mia has 123 rolls.\n#### 40", "4 * 12 = 48.", "x = 5; 5 more", "A tab\tand é 7"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        digits = [token for token in (tokenizer.decode([one]) for one in ids) if re.search(r"\d", token)]
        assert "".join(digits) == re.sub(r"\D", "", text) and all(len(digit) == 1 for digit in digits)
        assert tokenizer.decode(ids) == text


def test_the_chat_template_is_that_of_the_texts(tokenizer):
    question = generate(1, 0, levels=LEVEL_NAMES)[0]
    prompt = Chat(tokenizer).prompt(question)
    assert tokenizer.decode(prompt).startswith(USER) and tokenizer.decode(prompt).endswith(ASSISTANT)


def test_no_text_has_a_question_of_a_test_in_any_wording():
    tests = make_splits(1, 0, validation=60, test=200, levels=LEVEL_NAMES, reach=REACH)
    numbers = {
        (re.sub(r"\d+", "0", same_text(q.question)), tuple(sorted(re.findall(r"\d+", q.question))))
        for name in ("validation", "id", "ood", "larger")
        for q in tests[name]
    }
    texts = Texts(1)
    asked = [whole(texts.draw()) for _ in range(1500)]
    found = [re.search(rf"^(?:{re.escape(USER)})?([^<]*?\?)", text) for text in asked]
    read = [match[1] for match in found if match]
    assert len(read) > 800
    read = {(re.sub(r"\d+", "0", same_text(q)), tuple(sorted(re.findall(r"\d+", q)))) for q in read}
    assert not read & numbers


def test_solutions_are_of_the_known_families_alone_and_right():
    texts = Texts(2, known=("gain", "packs"))
    for pieces in (texts.solved() for _ in range(40)):
        assert re.search(r"(has|had|buys|There are) .*\?", pieces[0].text)
        equations = re.findall(r"(\d+) ([+*]) (\d+) = (\d+)\.", pieces[1].text)
        for left, op, right, result in equations:
            assert int(result) == (int(left) + int(right) if op == "+" else int(left) * int(right))
        assert re.search(r"#### (\d+)", pieces[1].text)[1] == equations[-1][3]
        assert [op for _, op, *_ in equations] in (["+"], ["*", "+"])


def test_a_drill_computes_rightly_and_an_echo_repeats():
    texts = Texts(3)
    for _ in range(30):
        for left, op, right, result in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)\.", whole(texts.drill())):
            left, right = int(left), int(right)
            value = {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[op]
            assert value == int(result)
        listed = whole(texts.echo()).removeprefix(ASSISTANT)
        half = len(listed) // 2
        assert listed[:half].strip() == listed[half:].strip()


def test_the_loss_is_the_mean_over_labeled_tokens(tokenizer):
    model = new_student(tokenizer, Shape(16, 1, 2), 0)
    ids, labeled = next(batches(Texts(4), tokenizer, 512, random.Random(0)))
    assert ids.numel() <= 512 and not labeled[:, 0].all()
    logits = model(input_ids=ids).logits.double().log_softmax(-1)
    each = [-logits[b, t - 1, ids[b, t]] for b in range(len(ids)) for t in range(1, ids.shape[1]) if labeled[b, t]]
    assert torch.allclose(labeled_loss(model, ids, labeled).double(), torch.stack(each).mean(), rtol=1e-5)


def test_labels_are_those_of_the_pieces(tokenizer):
    ids, labeled = encoded([Piece("2 + 3 = ", False), Piece("5.", True)], tokenizer)
    assert tokenizer.decode([one for one, here in zip(ids, labeled, strict=True) if here]) == "5."


def test_the_command_makes_a_student_that_mind_loads_and_makes_it_once(tmp_path, capsys, monkeypatch):
    for name in ("_HELD_OUT", "_TEXTS"):
        monkeypatch.setattr(student, name, 14)
    folder = tmp_path / "student"
    main(["--output", str(folder), *OPTIONS])
    record = json.loads((folder / RECORD).read_text())
    assert record["making"] == {"steps": 2, "seed": 0, "width": 16, "layers": 1, "heads": 2, "known": list(KNOWN)}
    assert record["command"] == "python -m bench.testbed " + " ".join([*OPTIONS[:2], "--seed", "0", *OPTIONS[2:]])
    assert [row["step"] for row in record["curve"]] == [1, 2]
    assert {"known", "id", "ood"} <= record["curve"][-1].keys()
    model, _ = load_student(StudentConfig(model=str(folder)))
    assert sum(p.numel() for p in model.parameters()) == record["parameters"]
    weights = (folder / "model.safetensors").read_bytes()
    capsys.readouterr()
    main(["--output", str(folder), *OPTIONS])
    assert "was made with these options before; nothing is done" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--output", str(folder), *OPTIONS, "--seed", "1"])
    assert "name another --output, or add --overwrite" in capsys.readouterr().err
    main(["--output", str(tmp_path / "again"), *OPTIONS])
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == weights, "the same options, the same student"


def test_what_losses_tell_of_the_truth():
    questions = generate(6, 0, levels=LEVEL_NAMES, lapses=Lapses(by="family", sound=3))
    perspectives = [rationale.perspective for rationale in questions[0].rationales]
    present, sound = truth_of(questions, perspectives)
    assert present.all() and sound.sum(1).tolist() == [3] * 6
    assert told_by_loss(torch.where(sound, 1.0, 2.0), present, sound) == 1
    assert told_by_loss(torch.where(sound, 2.0, 1.0), present, sound) == 0
    losses = torch.arange(8.0).expand(6, 8)
    pairs = [
        losses[q, j] < losses[q, k]
        for q in range(6)
        for j in range(8)
        for k in range(8)
        if sound[q, j] and not sound[q, k]
    ]
    assert told_by_loss(losses, present, sound) == pytest.approx(sum(map(float, pairs)) / len(pairs))
    with pytest.raises(MindError, match="does not say which rationales are sound"):
        truth_of(generate(1, 0), perspectives)


def test_the_documented_data_fit_the_plan(tmp_path):
    """The pages have the command of the testbed, and every rationale that it writes can be written as an answer."""
    command = r"mind (data word-problems --output train.jsonl [^\n]*--count 497[^`]*?)\n(?!    )"
    pages = (ROOT / "bench" / "testbed" / "README.md", *(ROOT / "docs").rglob("*.md"))
    commands = [one.replace("\\\n", " ").split() for page in pages for one in re.findall(command, page.read_text())]
    assert commands
    words = commands[0]
    assert all(other == words for other in commands)
    assert run_mind(words[:3] + [str(tmp_path / "train.jsonl")] + words[4:]) == 0
    _, tokenizer = load_student(StudentConfig(model=str(STUDENT), max_length=512))
    plan, _ = read_plan("word-problems")
    assert plan.data.heldout is not None
    files = {Path(name).name for name in (plan.data.train, plan.data.heldout)}
    files |= {Path(one.file).name for one in plan.evaluation.values()}
    assert {file.name for file in tmp_path.iterdir()} == files
    questions = [question for name in sorted(files) for question in load_questions(tmp_path / name)]
    texts = {rationale.text for question in questions for rationale in question.rationales}
    longest = max(map(len, tokenizer(sorted(texts), add_special_tokens=False)["input_ids"]))
    room = min(plan.tuning.max_new_tokens, *(one.max_new_tokens for one in plan.evaluation.values()))
    assert len(texts) > 4000 and longest + 1 <= room  # and the token that ends an answer


def test_the_student_of_the_repository_is_that_of_the_defaults():
    assert is_made(STUDENT, Making())
    assert sum(file.stat().st_size for file in STUDENT.iterdir()) < 8 * 2**20
    curve = load_json(STUDENT / RECORD, Record).curve
    assert 0.1 <= curve[-1]["id"] <= 0.4, "room to learn"
