"""The plan of a run's steps, and the shares of several processes."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mind.batches.steps import plan_steps, question_tokens
from mind.config import TrainConfig
from mind.errors import MindError
from mind.processes import shares
from mind.records import TokenizedQuestion


def question(name, prompt, *rationales):
    return TokenizedQuestion(str(name), (1,) * prompt, {k: (2,) * n for k, n in enumerate(rationales)}, (3, 3))


QUESTIONS = [question(i, 10, 5 + i, 20) for i in range(20)]  # 39 to 58 tokens


def test_a_question_costs_its_prompt_once():
    assert question_tokens(question("q", 10, 4, 5, 6)) == 10 + (4 + 2) + (5 + 2) + (6 + 2)


@settings(max_examples=200, deadline=None)
@given(budget=st.integers(10, 400), epochs=st.sampled_from([0.3, 1.0, 2.5]), seed=st.integers(0, 99))
def test_steps_fill_the_budget_and_epochs_are_permutations(budget, epochs, seed):
    steps = plan_steps(QUESTIONS, TrainConfig(tokens_per_step=budget, epochs=epochs, seed=seed))
    order = list(chain.from_iterable(steps))
    assert len(order) == round(20 * epochs) and all(steps)
    for start in range(0, len(order), 20):
        epoch = order[start : start + 20]
        assert len(set(epoch)) == len(epoch)
    places = [0]
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        cost = sum(question_tokens(QUESTIONS[i]) for i in step)
        assert cost <= budget or len(step) == 1
        places.append(places[-1] + len(step))
        if after is not None and places[-1] % 20:  # it closed because the next question did not fit
            assert cost + question_tokens(QUESTIONS[after[0]]) > budget


def test_the_plan_depends_on_the_seed_alone():
    one, two, other = (
        plan_steps(QUESTIONS, TrainConfig(tokens_per_step=200, seed=seed, pack_length=length))
        for seed, length in ((3, 100), (3, 900), (4, 100))
    )
    assert one == two != other
    assert plan_steps(QUESTIONS, TrainConfig(tokens_per_step=200, seed=3, max_steps=2)) == one[:2]


def test_a_fixed_number_of_questions_replaces_the_budget():
    steps = plan_steps(QUESTIONS, TrainConfig(tokens_per_step=1, questions_per_step=8, max_steps=5))
    assert [len(step) for step in steps] == [8, 8, 4, 8, 8]


def test_a_prompt_beyond_the_budget_is_named():
    with pytest.raises(MindError, match="question long: its prompt alone has 101 tokens; train.tokens_per_step is 100"):
        plan_steps([*QUESTIONS, question("long", 101, 1)], TrainConfig(tokens_per_step=100))


@settings(max_examples=200, deadline=None)
@given(costs=st.lists(st.integers(1, 1000), max_size=30), processes=st.integers(1, 8))
def test_shares_are_balanced(costs, processes):
    parts = shares(costs, processes)
    assert sorted(chain.from_iterable(parts)) == list(range(len(costs))) and len(parts) == processes
    loads = [sum(costs[i] for i in part) for part in parts]
    assert max(loads) - min(loads) <= max(costs, default=0)
