"""The process that compares LaTeX answers for latex_equality.py, so that it can be killed; not to be imported.

It writes "ready" once SymPy is imported. Then each line on standard input is {"gold", "extracted", "seconds"} and gets
one line back: "equal", "different", or "unparsed" if one of the two is no LaTeX. It ends with its input.
"""

import functools
import json
import logging
import os
import resource
import signal
import sys
from typing import Any

MEMORY_BYTES = 2 * 1024**3
"""SymPy takes 0.1 GiB of address space; what needs more than this has run away."""
DECIMALS = 12
"""To which a decimal and an exact value are rounded: 0.34 is 17/50, and 0.333333 is not 1/3."""


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    import math_verify

    # From here on libraries may print what they like: parsers quote the hostile text that they cannot read.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, sys.stdout.fileno())
    os.dup2(silence, sys.stderr.fileno())
    logging.disable(logging.CRITICAL)
    # Without a handler of Python's the signal ends the process even within C code, and so an orphan too.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    latex = [math_verify.LatexExtractionConfig()]

    @functools.lru_cache(maxsize=1024)  # a gold answer is compared with many
    def parse(text: str) -> list:
        # Without a time limit of its own: the signal below is the limit.
        options: Any = {"fallback_mode": "no_fallback", "parsing_timeout": None}
        return math_verify.parse(f"${text}$", latex, **options)

    def compare(gold: str, extracted: str) -> str:
        parsed_gold, parsed = parse(gold), parse(extracted)
        if not parsed_gold or not parsed:
            return "unparsed"
        equal = math_verify.verify(parsed_gold, parsed, float_rounding=DECIMALS, timeout_seconds=None)
        return "equal" if equal else "different"

    print("ready", file=replies)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        outcome = compare(request["gold"], request["extracted"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(outcome, file=replies)


if __name__ == "__main__":
    main()
