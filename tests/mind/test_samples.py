"""Several samples of an answer: majority votes, pass@k against enumeration, and seeds."""

from __future__ import annotations

import itertools
import json

import pytest
from tiny import build_model, build_questions, build_tokenizer

from mind.asking import AskingConfig
from mind.errors import MindError
from mind.evaluation.config import SamplingConfig
from mind.evaluation.engines import TransformersEngine
from mind.evaluation.evaluate import engine_accuracy
from mind.evaluation.outcomes import Reply, sampled_counts, sampled_outcome
from mind.evaluation.samples import pass_at
from mind.intervals import wilson
from mind.records import Question

SUM = Question("sum", "How many?", "12")
PLACE = Question("place", "Where?", "B", {"A": "here", "B": "there"})


def test_pass_at_k_is_the_share_of_all_draws_with_a_right_one():
    for samples in range(1, 7):
        for correct in range(samples + 1):
            marks = [True] * correct + [False] * (samples - correct)
            for k in range(1, samples + 1):
                draws = [any(chosen) for chosen in itertools.combinations(marks, k)]
                assert pass_at(k, samples, correct) == pytest.approx(sum(draws) / len(draws), abs=1e-15)
    for wrong in ((0, 3, 1), (4, 3, 1), (1, 3, 4), (1, 3, -1)):
        with pytest.raises(ValueError, match="expected 1 <= k <= samples"):
            pass_at(*wrong)


@pytest.mark.parametrize(
    ("question", "answers", "voted", "unparsed"),
    [
        (SUM, ["#### 12", "#### 3", "#### 12.0"], 1, 0),  # another way to write it
        (SUM, ["#### 3", "#### 12", "#### 3", "#### 12"], 0, 0),  # as many votes: the first one wins
        (SUM, ["#### 12", "#### 3", "#### 3", "#### 12"], 1, 0),
        (SUM, ["who knows", "#### 12", "who knows"], 1, 0),  # without an answer there is no vote
        (SUM, ["who knows", "nobody"], 0, 1),
        (SUM, ["#### 3", "#### three", "#### 12", "#### 12", "#### 4"], 0, 0),  # 3 in words is 3
        (PLACE, ["#### A", "The answer is B.", "(B) there"], 1, 0),
        (PLACE, ["#### A", "#### A", "#### B"], 0, 0),
    ],
)
def test_the_answer_that_most_samples_state_is_the_vote(question, answers, voted, unparsed):
    rows = [sampled_outcome([Reply(text) for text in answers], question)]
    vote = sampled_counts(rows, [question])["majority"]
    assert (vote["correct"], vote["unparsed"], vote["accuracy"]) == (voted, unparsed, voted)


def test_what_samples_come_to():
    texts = [["#### 12", "#### 1", "#### 12", "?"], ["#### A", "#### A", "#### A", "#### B"]]
    rows = [
        sampled_outcome([Reply(text, text == "?") for text in some], question)
        for some, question in zip(texts, (SUM, PLACE), strict=True)
    ]
    assert rows[1].keys() == {"id", "question", "choices", "answer", "samples"}
    fields = {"response": "?", "extracted": None, "correct": False, "parsed": False, "cut_off": True}
    assert rows[0]["samples"][3] == fields
    assert sampled_counts(rows, [SUM, PLACE]) == {
        "total": 2,
        "samples": 4,
        "correct": 3,
        "unparsed": 1,
        "cut_off": 1,
        "accuracy": 3 / 8,
        "interval": wilson(0.75, 2),
        "majority": {"correct": 1, "unparsed": 0, "accuracy": 0.5, "interval": wilson(1, 2)},
        "pass_at": pytest.approx([3 / 8, (5 / 6 + 1 / 2) / 2, (1 + 3 / 4) / 2, 1]),
    }
    assert sampled_counts([], [])["accuracy"] == 0


def test_a_sample_depends_on_seed_question_and_number_alone(tmp_path):
    model, tokenizer, questions = build_model().double(), build_tokenizer(), build_questions(3)

    def sampled(name, batch_size, some, count, seed=5):
        engine = TransformersEngine(model, tokenizer, batch_size)
        config = AskingConfig(max_new_tokens=5, batch_size=batch_size)
        sampling = SamplingConfig(count, temperature=1.0, seed=seed)
        result = engine_accuracy(engine, {"sums": some}, config, tmp_path / name, "", sampling)["sums"]
        assert (result["total"], result["samples"]) == (len(some), count)
        rows = [json.loads(line) for line in (tmp_path / name / "sums.jsonl").read_text().splitlines()]
        return {row["id"]: [sample["response"] for sample in row["samples"]] for row in rows}

    whole = sampled("a", "auto", questions, 3)
    assert len({text for texts in whole.values() for text in texts}) == 9
    assert sampled("b", 2, questions, 3) == whole
    assert sampled("c", 1, questions[1:2], 2) == {questions[1].id: whole[questions[1].id][:2]}
    assert sampled("d", "auto", questions, 3, seed=6) != whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples is 0: expected 1 to 10,000"),
        ({"samples": 10**11}, "samples is 100000000000: expected 1 to 10,000"),
        ({"samples": 2, "temperature": 0.0}, "temperature is 0.0: expected a positive number"),
        ({"samples": 2, "top_p": 1.5}, "top_p is 1.5: expected a number in"),
        ({"temperature": 1.0}, "temperature, top_p and seed belong to samples: --samples N asks for N of them"),
    ],
)
def test_sampling_options_that_cannot_be(options, message):
    with pytest.raises(MindError, match=message):
        SamplingConfig(**options)
