"""The process that compares LaTeX answers for latex_equality.py, so that it can be killed; not to be imported.

It writes "ready" once SymPy is imported. Then each line on standard input is {"gold", "extracted", "seconds"} and gets
one line back: "equal", "different", or "unparsed" if one of the two is not LaTeX. It ends when its input ends.
"""

import dataclasses
import functools
import json
import logging
import os
import resource
import signal
import sys
from typing import Any

MEMORY_BYTES = 2 * 1024**3
"""Limit of the address space: SymPy needs 0.1 GiB, and what needs more than this limit is out of control."""
DECIMALS = 12
"""Digits to which a decimal must equal an exact value, whatever its size: 0.34 is 17/50, 0.333333 is not 1/3."""
EXACT_DECIMALS = 40
"""The same for two exact values: \\frac{1}{2^{100}} is not 0."""


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    import math_verify

    # From here on libraries may print anything: parsers quote hostile text that they cannot read.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, sys.stdout.fileno())
    os.dup2(silence, sys.stderr.fileno())
    logging.disable(logging.CRITICAL)
    # Without a Python handler the signal ends the process even within C code, and so also an orphan.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # math-verify accepts single letters as units: 2t would equal 2.
    normalization = dataclasses.replace(math_verify.LatexExtractionConfig().normalization_config, units=False)
    latex = [math_verify.LatexExtractionConfig(normalization_config=normalization)]
    compare_relatively()

    @functools.lru_cache(maxsize=1024)  # a gold answer is compared with many answers
    def parse(text: str) -> list:
        # Without a time limit of its own: the signal below is the limit.
        options: Any = {"fallback_mode": "no_fallback", "parsing_timeout": None}
        return math_verify.parse(f"${text}$", latex, **options)

    def compare(gold: str, extracted: str) -> str:
        parsed_gold, parsed = parse(gold), parse(extracted)
        if not parsed_gold or not parsed:
            return "unparsed"
        options: Any = {"float_rounding": DECIMALS, "timeout_seconds": None, "allow_set_relation_comp": True}
        equal = math_verify.verify(parsed_gold, parsed, **options) or same_equation(parsed_gold[0], parsed[0])
        return "equal" if equal else with_imaginary_unit(parsed_gold[0], parsed[0])

    print("ready", file=replies)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        outcome = compare(request["gold"], request["extracted"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(outcome, file=replies)


def compare_relatively() -> None:
    """Makes math-verify compare numbers by significant digits: by default it rounds to decimal places, where 1e-20 is
    0."""
    from math_verify import grader

    absolutely = grader.sympy_numeric_eq

    def relatively(one: Any, other: Any, *precision: int) -> bool:
        same = close(one, other)
        if same is False or (same and is_decimal(one, other)):
            return same
        return absolutely(one, other, *precision)

    grader.sympy_numeric_eq = relatively


def is_decimal(*expressions: Any) -> bool:
    """Whether one of them contains a rounded number."""
    import sympy

    return any(expression.has(sympy.Float) for expression in expressions)


def close(one: Any, other: Any) -> bool | None:
    """Whether two expressions are equal to DECIMALS or EXACT_DECIMALS digits; if they have free symbols, at one point.

    None if one of them has no value, such as a matrix or a function, or one that takes long to compute.
    """
    import sympy

    slow = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit)
    if any(not isinstance(expression, sympy.Expr) or expression.has(*slow) for expression in (one, other)):
        return None
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    point = {
        symbol: sympy.Rational(prime, 7) for symbol, prime in zip(symbols, sympy.primerange(11, 999), strict=False)
    }
    try:
        first, second = (sympy.N(expression.subs(point), EXACT_DECIMALS + 20) for expression in (one, other))
        digits = DECIMALS if is_decimal(one, other) else EXACT_DECIMALS
        return bool(abs(first - second) <= sympy.Float(10) ** -digits * max(abs(first), abs(second)))
    except (TypeError, ValueError):
        return None


def with_imaginary_unit(one: Any, other: Any) -> str:
    """How two different expressions compare if i is the imaginary unit, not a variable: certainly so in e^{i\\pi},
    perhaps in i^2."""
    import sympy

    pair = (one, other)
    if not all(isinstance(expression, sympy.Expr) for expression in pair):
        return "different"
    symbols = one.free_symbols | other.free_symbols
    units = {symbol for symbol in symbols if symbol.name == "i"}
    # By name, since the parser takes a variable for real in some expressions alone.
    plain = {symbol: sympy.I if symbol in units else sympy.Symbol(symbol.name) for symbol in symbols}
    if not units or not close(*(expression.subs(plain) for expression in pair)):
        return "different"
    exponentials = one.atoms(sympy.exp) | other.atoms(sympy.exp)
    return "equal" if any(exponential.free_symbols & units for exponential in exponentials) else "unparsed"


def same_equation(one: Any, other: Any) -> bool:
    """Whether one equation is a multiple of the other: x + 2y = 3 and y = (3 - x)/2."""
    import sympy

    if not (isinstance(one, sympy.Eq) and isinstance(other, sympy.Eq)):
        return False
    sides: Any = (*one.args, *other.args)
    if not all(isinstance(side, sympy.Expr) for side in sides):
        return False
    left, right, other_left, other_right = sides
    if other_left == other_right:
        return False
    ratio = sympy.simplify((left - right) / (other_left - other_right))
    return bool(ratio.is_number and ratio.is_finite and ratio != 0)


if __name__ == "__main__":
    main()
