"""The programmatic teacher: one writer per perspective, each of which solves a problem aloud in its manner, in full.

manners_brief.py has the same manners in a sentence or two.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from mind.word_problems.problem import Problem, Step

Writer = Callable[[Problem, random.Random], str]
"""Tells the solution of a problem; random choices come from the generator."""

VERBS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}
SPOKEN = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
EARLY = ("one step short of the goal", "not yet what is asked", "so it stops too early")
INVERSES = {"+": "-", "-": "+", "*": "/", "/": "*"}


def formal_symbolic(problem: Problem, rng: random.Random) -> str:
    """Definitions, symbolic equations, substitution."""
    steps = problem.told
    first, *others = problem.family.givens
    givens = [f"{first.symbol} = {problem.values[first.symbol]} be {problem.text(first.noun)}"]
    givens += [f"{g.symbol} = {problem.values[g.symbol]} {problem.text(g.noun)}" for g in others]
    definitions = [f"{s.symbol} = {s.left} {s.op} {s.right}" for s in steps]
    *before, last = [f"{s.symbol} = {problem.equation(s)}" for s in steps]
    wanted = rng.choice(("the unknown", "the quantity sought", "the term to determine"))
    substitute = rng.choice(("Substituting the values", "By substitution", "Evaluating in this order"))
    end = rng.choice(("Hence", "Therefore", "It follows that"))
    return (
        f"Let {listed(givens)}. Define {listed(definitions)}; {wanted} is {steps[-1].symbol}. "
        f"{substitute}, {listed(before)}. {end} {last}."
    )


def intuitive(problem: Problem, rng: random.Random) -> str:
    """A picture, everyday words instead of notation, and a rounded guess as a check."""
    family = problem.family
    told = " ".join(capital(problem.text(step.everyday)) + "." for step in problem.told)
    guesses = [guess for step in problem.told if (guess := rough_guess(problem, step))]
    check = rng.choice(guesses) if guesses else "Nothing here is surprisingly large or small"
    so = rng.choice(("So", "It feels right that", "That settles it:"))
    return f"{problem.text(family.scene)}. {told} {check}. {so} {problem.text(family.conclusion)}."


def decomposition(problem: Problem, rng: random.Random) -> str:
    """Numbered sub-problems, each solved on its own and naming the earlier ones that it uses."""
    steps = problem.told
    part = {step.symbol: f"part {number}" for number, step in enumerate(steps, 1)}
    opening = rng.choice(("I see {} smaller problems.", "This task has {} parts.", "Split it into {} parts."))
    ask = rng.choice(("Find {}.", "Sub-problem: {}.", "Determine {}."))
    lines = []
    for number, step in enumerate(steps, 1):
        used = [part[operand] for operand in (step.left, step.right) if operand in part]
        basis = f"With {listed(used)}" if used else "From the text"
        solved = f"{basis}, {problem.equation(step)} {problem.text(step.unit)}."
        lines.append(f"{number}. {ask.format(problem.text(step.noun))} {solved}")
    close = rng.choice(("Part {} answers the question", "Part {} gives the result", "The goal was part {}"))
    return "\n".join([opening.format(len(steps)), *lines, f"{close.format(len(steps))}: {problem.answer}."])


def planning(problem: Problem, rng: random.Random) -> str:
    """The whole plan, free of numbers, and then its execution."""
    steps = problem.told
    aims = [f"{VERBS[step.op]} to get {problem.text(step.noun)}" for step in steps]
    if rng.random() < 0.5:
        labels = [f"({letter})" for letter in "abcd"[: len(steps)]]
        plan = "; ".join(f"{label} {aim}" for label, aim in zip(labels, aims, strict=True))
    else:
        labels = ["first", *("next", "then")[: len(steps) - 2], "finally"]
        plan = listed([f"{label} {aim}" for label, aim in zip(labels, aims, strict=True)])
    done = ", ".join(f"{label} {problem.equation(step)}" for label, step in zip(labels, steps, strict=True))
    start = rng.choice(("Then I carry it out:", "Then the execution:", "Then, step by step:"))
    end = rng.choice(("The plan is complete", "Every step is done", "The plan has reached its goal"))
    return f"Plan: {plan}.\n{start} {done}. {end}: {problem.answer} {problem.text(steps[-1].unit)}."


def analogy(problem: Problem, rng: random.Random) -> str:
    """A smaller problem of the same family, solved first and mapped to this one."""
    twin = problem.twin(rng)
    family = problem.family
    mapping = [f"{problem.values[g.symbol]} in place of {twin.values[g.symbol]}" for g in family.givens]
    opening = rng.choice(("Take a similar problem", "First a smaller case", "Compare an easier story"))
    there = rng.choice(("There", "In that case", "In miniature"))
    shape = rng.choice(("Ours has the same shape", "The structure here is the same", "Ours is built alike"))
    moves = rng.choice(("The same moves give", "Carried over, this becomes", "Step for step,"))
    return (
        f"{opening}: {twin.text(family.gist)}. {there} {equations(twin)}. "
        f"{shape}, with {listed(mapping)}. {moves} {equations(problem)}, "
        f"so {problem.text(family.conclusion)}."
    )


def socratic(problem: Problem, rng: random.Random) -> str:
    """Questions to oneself, each answered before the next, and a last one that doubts the result."""
    steps = problem.told
    first = rng.choice(("What am I looking for", "What does the question want", "What should I end up with"))
    ways = rng.sample(("How do I get {}", "What about {}", "Can I find {}", "And what is {}"), len(steps))
    talk = " ".join(
        f"{way.format(problem.text(step.noun))}? {capital(problem.text(step.reason))}, so {problem.equation(step)}."
        for way, step in zip(ways, steps, strict=True)
    )
    doubt = rng.choice(("Can that be right", "Does it survive a check", "Is there a way to test this"))
    last = steps[-1]
    back = Step(str(last.left), "", "", last.symbol, INVERSES[last.op], last.right, "", "")
    return (
        f"{first}? {capital(problem.text(last.noun))}. {talk} "
        f"{doubt}? Backwards, {problem.equation(back)}, as it should be, so I keep {problem.answer}."
    )


def contrastive(problem: Problem, rng: random.Random) -> str:
    """Three candidate answers, two of which the conditions eliminate."""
    family = problem.family
    mistake, answer = family.mistake, problem.answer
    unfinished = problem.told[-2]
    partial = problem.values[unfinished.symbol]
    candidates = [problem.mistaken_answer, partial, answer]
    rng.shuffle(candidates)
    named = listed([str(candidate) for candidate in candidates])
    opening = rng.choice(("The candidates are {}.", "I compare {} as answers.", "Tempting answers are {}."))
    wrong = (
        f"{problem.mistaken_answer} would come from {problem.text(mistake.how)}, "
        f"{problem.equation(mistake)}, but {problem.text(mistake.objection)}."
    )
    early = f"{partial} is only {problem.text(unfinished.noun)}, {rng.choice(EARLY)}."
    eliminated = [wrong, early]
    rng.shuffle(eliminated)
    rest = rng.choice(("Only {} survives", "That leaves {}", "{} is the one that meets every condition"))
    return f"{opening.format(named)} {' '.join(eliminated)} {rest.format(answer)}: {equations(problem)}."


def counterfactual(problem: Problem, rng: random.Random) -> str:
    """One condition is changed and followed through, and then traced back to the real condition."""
    given, variant = rng.choice(list(problem.variants()))
    old, new = problem.values[given.symbol], variant.values[given.symbol]
    noun, unit = problem.text(given.noun), f" {given.unit}" if given.unit else ""
    goal = problem.text(problem.told[-1].noun)
    direction = "lower" if problem.answer < variant.answer else "higher"
    suppose = rng.choice(("Suppose {} were {}.", "What if {} were {}?", "Imagine that {} were {}."))
    binding = rng.choice(("But the binding condition says", "The text insists on", "In truth it is fixed at"))
    return (
        f"{suppose.format(noun, f'{new}{unit}')} We would have {equations(variant)}, "
        f"making {goal} {variant.answer}. "
        f"{binding} {old}{unit}. Undoing the change, {equations(problem)}: the true answer is "
        f"{direction} by {abs(problem.answer - variant.answer)}, namely {problem.answer}."
    )


def equations(problem: Problem) -> str:
    """Every computation in numbers, such as "2 * 3 = 6 and 6 - 4 = 2"."""
    return listed([problem.equation(step) for step in problem.told])


def rough_guess(problem: Problem, step: Step) -> str | None:
    """`step` computed with round numbers; None if that shows nothing or is off by more than an eighth."""
    left, right = rounded(problem.number(step.left)), rounded(problem.number(step.right))
    guess = {"+": left + right, "-": left - right, "*": left * right, "/": round(left / right)}[step.op]
    value = problem.values[step.symbol]
    if guess == value or abs(guess - value) > value / 8:
        return None
    return f"Roughly, {left} {SPOKEN[step.op]} {right} is around {guess}, which fits the {value}"


def rounded(number: int) -> int:
    """Rounded to a multiple of 5 below 30, of 10 below 300 and of 50 above; numbers below 10 do not change."""
    grain = 1 if number < 10 else 5 if number < 30 else 10 if number < 300 else 50
    return round(number / grain) * grain


def listed(items: Sequence[str]) -> str:
    """The items as a phrase: "a, b and c"."""
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


WRITERS: Mapping[str, Writer] = {
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
