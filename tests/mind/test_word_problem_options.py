"""Number sizes, parts, splits and lapses of the word problems; their truth is checked by computing anew."""

import itertools
import json
import re

import pytest

from mind.config import DataConfig, MindConfig
from mind.data.questions import load_questions, save_questions
from mind.errors import MindError
from mind.perspectives import PAPER_PERSPECTIVES
from mind.run.data import load_data
from mind.word_problems import LEVELS, Lapses, family_of, generate
from mind.word_problems.parts import part_of
from mind.word_problems.splits import make_splits

BRIEF = ("one-step", "two-step")
EQUATION = re.compile(r"(?<![\w.])(\d+) ([-+*/]) (\d+) = (\d+)(?![\w/*+])")
FAMILIES = {family.name: family for level in BRIEF for family in LEVELS[level].families}


def numbers(question):
    """Family and numbers, found without the code under test."""
    return family_of(question), tuple(sorted(re.findall(r"\d+", question.question)))


def is_right(left, op, right, result):
    left, right, result = int(left), int(right), int(result)
    return {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[op] == result


def texts(question):
    return {rationale.perspective: rationale.text for rationale in question.rationales}


def givens_of(question):
    """The numbers of a question by their symbols, read off by the wording of its family that fits."""
    family = FAMILIES[family_of(question)]
    symbols = {given.symbol for given in family.givens}
    for wording in family.questions:
        parts = re.split(r"\{(\w+)\}", wording)
        named = [f"(?P<{one}>\\d+)" if one in symbols else ".+" for one in parts[1::2]]
        pattern = "".join(itertools.chain(*itertools.zip_longest(map(re.escape, parts[::2]), named, fillvalue="")))
        if found := re.fullmatch(pattern, question.question):
            return {symbol: int(number) for symbol, number in found.groupdict().items()}
    raise AssertionError(question.question)


@pytest.fixture(scope="module")
def splits():
    return make_splits(260, 0, validation=40, test=100, levels=BRIEF, reach=1.5, lapses=Lapses(by="family", wrong=2))


def test_sets_share_no_problem_whatever_its_wording(splits):
    assert {name: len(some) for name, some in splits.items()} == {
        "train": 260,
        "validation": 40,
        "id": 100,
        "ood": 100,
        "larger": 100,
    }
    problems = {name: {numbers(question) for question in some} for name, some in splits.items()}
    for name, some in problems.items():
        for other in set(problems) - {name}:
            assert not some & problems[other], (name, other)
    assert all(len({question.question for question in some}) == len(some) for some in splits.values())
    assert all(len(problems[name]) == len(splits[name]) for name in problems if name != "train"), "each problem once"
    again = make_splits(200, 7, validation=0, test=0, levels=BRIEF, reach=1.5)
    assert list(again) == ["train"]
    for name in ("validation", "id", "ood", "larger"):
        assert not problems[name] & set(map(numbers, again["train"])), "another seed trains on a test question"


def test_tests_are_of_the_families_that_they_are_named_for(splits):
    held_out = {family.name for level in BRIEF for family in LEVELS[level].ood}
    for name in ("train", "validation", "id", "larger"):
        assert {family_of(question) for question in splits[name]} == set(FAMILIES) - held_out
    assert {family_of(question) for question in splits["ood"]} == held_out


def test_larger_numbers_exceed_all_of_training():
    for question in make_splits(20, 1, validation=0, test=60, levels=BRIEF, reach=1.5)["larger"]:
        family = FAMILIES[family_of(question)]
        stated = givens_of(question)
        ratios = [stated[given.symbol] / given.values[-1] for given in family.givens]
        assert 1.5 < max(ratios) <= 2.25, question.question


def test_the_ood_test_has_the_families_that_are_not_trained_on():
    splits = make_splits(8, 0, validation=0, test=14, levels=["one-step"], families=["gain", "lead"], reach=1.5)
    assert {family_of(question) for question in splits["train"]} == {"gain", "lead"}
    assert {family_of(question) for question in splits["ood"]} == {
        family.name for family in LEVELS["one-step"].families
    } - {"gain", "lead"}


def test_a_family_that_is_exhausted_leaves_its_turns_to_the_others():
    """As in the testbed: 200 problems of four small families, at the reach of its README."""
    options = {"levels": BRIEF, "families": ["loss", "missing", "price", "bags"], "reach": 2, "part": "test"}
    questions = generate(200, 0, distinct=True, **options)
    found = [numbers(question) for question in questions]
    assert len(set(found)) == 200 == len({question.id for question in questions})
    counts = {name: [family for family, _ in found].count(name) for name in options["families"]}
    assert min(counts.values()) < 50 < max(counts.values()), counts
    assert questions == generate(200, 0, distinct=True, **options)


def test_too_few_problems_are_counted():
    """The number that is told is that of the problems which many draws find, and so many can be had."""
    options = {"levels": ["one-step"], "families": ["bags", "price"], "reach": 1.5, "part": "test"}
    known = {numbers(question) for seed in range(12) for question in generate(60, seed, **options)}
    message = (
        f"^word problems: 60 questions are asked for, and there are {len(known)} different problems, by family and "
        "numbers, of bags, price: ask for fewer, for a larger reach or for more families$"
    )
    with pytest.raises(MindError, match=message):
        generate(60, 0, distinct=True, **options)
    assert len(generate(len(known), 0, distinct=True, **options)) == len(known)
    others = [family for family in FAMILIES if family not in ("bags", "price")]
    with pytest.raises(MindError, match="^ood: word problems: 60 questions are asked for, and there are"):
        make_splits(4, 0, validation=0, test=60, levels=BRIEF, families=others, reach=1.5)


def test_generated_tests_of_a_run_are_of_other_families_and_other_problems():
    """Of a run that is trained on families that its levels hold out."""
    config = DataConfig(
        generated_levels=("one-step",),
        generated_families=("missing", "times"),
        generated_questions=100,
        generated_heldout=20,
        generated_evaluation=15,
        generated_ood=50,
    )
    data = load_data(MindConfig(data=config))
    sets = {"train": data.train, "heldout": data.heldout, **data.evaluation}
    problems = {name: [numbers(question) for question in some] for name, some in sets.items()}
    assert {name: len(some) for name, some in problems.items()} == {
        "train": 100,
        "heldout": 20,
        "word-problems": 15,
        "word-problems-ood": 50,
    }
    for one, other in itertools.combinations(problems, 2):
        assert not set(problems[one]) & set(problems[other]), (one, other)
    assert all(len(set(some)) == len(some) for name, some in problems.items() if name != "train")
    seen = {family for family, _ in problems["word-problems-ood"]}
    assert seen == {family.name for family in LEVELS["one-step"].train}
    everything = DataConfig(generated_families=("train", "ood"))
    with pytest.raises(MindError, match="no family is left for the test ood: train on fewer families, or make no such"):
        load_data(MindConfig(data=everything))


def test_every_problem_is_of_one_part_and_reach_only_widens():
    for part in ("train", "validation", "test"):
        assert all(part_of(numbers(question)) == part for question in generate(60, 3, levels=BRIEF, part=part))
    wide = generate(140, 3, levels=BRIEF, reach=3)
    assert max(int(n) for q in wide for n in re.findall(r"\d+", q.question)) > 54, "beyond what reach 1 has"


@pytest.mark.parametrize(
    ("kind", "by"), [("skip", "family"), ("skip", "steps"), ("slip", "family"), ("slip", "perspective")]
)
def test_the_truth_is_that_of_an_independent_computation(kind, by):
    """A rationale slips if an equation in it is wrong or it ends elsewhere; it skips if it computes nothing."""
    questions = generate(56, 4, levels=BRIEF, reach=1.5, lapses=Lapses(by=by, kind=kind, sound=3, rate=0.7))
    found = {"sound": 0, kind: 0}
    for question in questions:
        sound, lapsed = (question.generated.get(name, "").split() for name in ("sound", kind))
        assert sorted(sound + lapsed) == sorted(PAPER_PERSPECTIVES)
        assert question.generated["family"] == family_of(question)
        assert question.generated["steps"] == str(len(FAMILIES[family_of(question)].steps))
        for perspective, text in texts(question).items():
            is_sound = perspective in sound
            found["sound" if is_sound else kind] += 1
            equations = EQUATION.findall(text)
            told = {result for *_, result in equations} or set(re.findall(r"\d+", text))
            if kind == "slip":
                right = all(is_right(*equation) for equation in equations) and question.answer in told
                # An intuitive text has no equations: its last number but units is what it answers.
                if perspective == "intuitive":
                    right = question.answer in re.findall(r"\d+", text.split(".")[-2])
                assert right == is_sound, (perspective, text)
            else:
                assert question.answer in re.findall(r"\d+", text), text
                if perspective not in ("intuitive", "formal-symbolic"):
                    assert bool(equations) == is_sound, (perspective, text)
                if perspective == "formal-symbolic":
                    assert bool(re.search(r"\d [-+*/] \d", text)) == is_sound, text
    assert all(found.values())


def test_the_rate_is_the_share_that_lapses():
    questions = generate(400, 5, levels=["one-step"], reach=2, lapses=Lapses(by="perspective", kind="slip", rate=0.3))
    lapsed = sum(len(question.generated.get("slip", "").split()) for question in questions)
    assert abs(lapsed / (6 * len(questions)) - 0.3) < 0.03
    assert all(set(PAPER_PERSPECTIVES[:2]) <= set(question.generated["sound"].split()) for question in questions)


@pytest.mark.parametrize(("by", "groups"), [("perspective", 1), ("steps", 2), ("family", 4)])
def test_the_sound_perspectives_depend_on_what_is_said(by, groups):
    questions = generate(56, 6, levels=BRIEF, reach=1.5, lapses=Lapses(by=by))
    keys = {"perspective": lambda q: "", "steps": lambda q: q.generated["steps"], "family": family_of}
    sound = {}
    for question in questions:
        sound.setdefault(keys[by](question), set()).add(question.generated["sound"])
    assert all(len(some) == 1 for some in sound.values())
    assert len({next(iter(some)) for some in sound.values()}) == groups


def test_lapses_change_no_question():
    plain = generate(14, 7, levels=BRIEF)
    lapsed = generate(14, 7, levels=BRIEF, lapses=Lapses(by="steps", wrong=1))
    assert [(q.id, q.question, q.answer) for q in plain] == [(q.id, q.question, q.answer) for q in lapsed]
    assert all("sound" not in question.generated for question in plain)


@pytest.mark.parametrize("levels", [BRIEF, ("multi-step",)])
@pytest.mark.parametrize("kind", ["skip", "slip"])
def test_lapsed_rationales_are_whole_texts(levels, kind):
    for question in generate(30, 8, levels=levels, lapses=Lapses(by="family", sound=1, kind=kind)):
        for text in texts(question).values():
            assert not re.search(r"[{}]|####|\.\.|  |\bNone\b", text), text
            assert text[-1] in ".?"


def test_wrong_rationales_are_twins_with_one_slip():
    questions = generate(40, 9, levels=BRIEF, reach=1.5, lapses=Lapses(by="family", wrong=2))
    for question in questions:
        assert len(question.wrong_rationales) == 2
        for wrong in question.wrong_rationales:
            assert wrong.answer != question.answer and wrong.answer in wrong.text
            assert wrong.right == texts(question)[wrong.perspective]
            assert re.sub(r"\d+", "0", wrong.text) == re.sub(r"\d+", "0", wrong.right) or wrong.perspective in (
                "contrastive",  # names its candidates in order
                "counterfactual",  # may change another given
            )
    slipping = generate(20, 9, levels=BRIEF, lapses=Lapses(by="family", kind="slip", sound=1, wrong=3))
    for question in slipping:
        assert [wrong.perspective for wrong in question.wrong_rationales] == question.generated["sound"].split()


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_files_keep_what_the_generator_knows(tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    questions = generate(6, 10, levels=BRIEF, lapses=Lapses(by="steps", wrong=1))
    save_questions(questions, tmp_path / f"some.{ending}")
    assert load_questions(tmp_path / f"some.{ending}") == questions


def test_generated_is_an_object_of_texts(tmp_path):
    file = tmp_path / "q.jsonl"
    for value, message in (
        ([], '"generated" is []: expected an object of texts'),
        ({"a": []}, '"generated.a" is []: expected a string or a number'),
    ):
        file.write_text(json.dumps({"question": "1 + 1?", "answer": "2", "generated": value}))
        with pytest.raises(MindError, match=re.escape(message)):
            load_questions(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reach": 0.5}, "reach is 0.5: expected at least 1"),
        ({"beyond": 1.0}, "beyond is 1.0: expected 1 <= beyond < reach"),
        ({"part": "dev"}, "there is no part dev: expected one of train, validation, test"),
    ],
)
def test_errors_of_options(options, message):
    with pytest.raises(MindError, match=re.escape(message)):
        generate(2, 0, **options)


def test_errors_of_splits_and_lapses():
    for options, message in (
        ({"validation": -1, "test": 0}, "validation is -1: expected at least 0"),
        ({"validation": 0, "test": 2, "families": ["train", "ood"]}, "no family is left for the test ood"),
    ):
        with pytest.raises(MindError, match=message):
            make_splits(4, 0, **options)
    for options, message in (
        ({"sound": 0}, "lapses.sound is 0: expected at least 1"),
        ({"rate": 0.0}, r"lapses.rate is 0.0: expected a share in \(0, 1\]"),
        ({"wrong": -1}, "lapses.wrong is -1: expected at least 0"),
    ):
        with pytest.raises(MindError, match=message):
            Lapses(**options)
