"""The eight manners in a sentence or two: rationales of about 30 tokens for problems of one step, 50 of two."""

from __future__ import annotations

import random
from collections.abc import Mapping

from mind.word_problems.manners import VERBS, Writer, capital, equations, listed
from mind.word_problems.problem import Problem


def formal_symbolic(problem: Problem, rng: random.Random) -> str:
    """The givens as symbols, and an equation for each unknown."""
    *before, last = problem.told
    givens = [f"{given.symbol} = {problem.values[given.symbol]}" for given in problem.family.givens]
    solved = [f"{s.symbol} = {s.left} {s.op} {s.right} = {problem.equation(s)}" for s in (*before, last)]
    return f"Let {listed([*givens, f'{last.symbol} be {problem.text(last.noun)}'])}. Then {listed(solved)}."


def intuitive(problem: Problem, rng: random.Random) -> str:
    """A picture, and what happens in it in plain words."""
    told = [capital(problem.text(step.everyday)) for step in problem.told]
    return f"{problem.text(problem.family.scene)}. {'. '.join(told)}."


def decomposition(problem: Problem, rng: random.Random) -> str:
    """The givens, and each step of the solution, as numbered lines."""
    parts = [f"Given: {listed([str(problem.values[given.symbol]) for given in problem.family.givens])}."]
    parts += [f"{capital(problem.text(step.noun))}: {problem.equation(step)}." for step in problem.told]
    return "\n".join(f"{number}. {part}" for number, part in enumerate(parts, 1))


def planning(problem: Problem, rng: random.Random) -> str:
    """The operations, and then the computations."""
    aims = [f"{VERBS[step.op]} to get {problem.text(step.noun)}" for step in problem.told]
    return f"Plan: {', then '.join(aims)}.\nThen: {equations(problem)}."


def analogy(problem: Problem, rng: random.Random) -> str:
    """A smaller problem of the same family, and the same moves here."""
    twin = problem.twin(rng)
    return (
        f"A smaller case: {twin.text(problem.family.gist)}, {equations(twin)}. In the same way here, "
        f"{equations(problem)}."
    )


def socratic(problem: Problem, rng: random.Random) -> str:
    """Questions to oneself, each answered before the next."""
    *before, last = problem.told
    asked = [f"What is wanted? {capital(problem.text(last.noun))}."]
    asked += [f"What comes first? {capital(problem.text(s.reason))}, so {problem.equation(s)}." for s in before]
    asked += [f"How do I get it? {capital(problem.text(last.reason))}, so {problem.equation(last)}."]
    return " ".join(asked)


def contrastive(problem: Problem, rng: random.Random) -> str:
    """Two candidate answers, one of which a condition eliminates."""
    mistake = problem.family.mistake
    candidates = sorted((problem.answer, problem.mistaken_answer or 0))
    return (
        f"The candidates are {candidates[0]} and {candidates[1]}. {problem.mistaken_answer} would come from "
        f"{problem.text(mistake.how)}, but {problem.text(mistake.objection)}. So {equations(problem)}."
    )


def counterfactual(problem: Problem, rng: random.Random) -> str:
    """One given is changed and followed through, and then the true one."""
    given, variant = rng.choice(list(problem.variants()))
    noun = problem.text(given.noun)
    return (
        f"If {noun} were {variant.values[given.symbol]}, it would be {equations(variant)}. "
        f"But in truth it is {problem.values[given.symbol]}: {equations(problem)}."
    )


BRIEF_WRITERS: Mapping[str, Writer] = {
    "formal-symbolic": formal_symbolic,
    "intuitive": intuitive,
    "decomposition": decomposition,
    "planning": planning,
    "analogy": analogy,
    "socratic": socratic,
    "contrastive": contrastive,
    "counterfactual": counterfactual,
}
"""Perspective -> its writer: the paper's eight, in its order. A perspective need not have one."""
