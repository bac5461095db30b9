"""Random cases with known answers, until one fails or the time is over.

    python -m tests.fuzz [TIER] [--minutes 30] [--seed 0] [--only NAME ...] [--go-on] [--output FILE]
    python -m tests.fuzz TIER --case NAME:CODE

operators    calls of the operators of mind_kernels._cpp equal their definition or raise, and stay within their tensors;
             under AddressSanitizer (make fuzz) a read out of bounds is a finding too
public       the public operations of mind_kernels, on each backend of this CPU, against their definition in float64
interpreter  the same with the Triton kernels in Triton's interpreter, a few calls per second
refusals     the same operations with one faulty argument: all backends refuse it by its name, or all take it
integrations a fused model of transformers and the functions that TRL gets, against what they replace
parsers      graders, records, settings, plans and teachers' answers of any bytes: a result, or an error of one line

Rounds of examples with new seeds, the names in turn. Ends with status 1 at the first finding, which hypothesis has made
small, with the command that repeats it (--go-on: at the end of the time); of the operators, also if public functions
never called one of them. Prints how many calls there were, and adds them to FILE, such as bench/results/fuzz.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.choices import Choices
from tests.fuzz.results import keep
from tests.fuzz.rounds import run
from tests.fuzz.tiers import TIERS, Tier

ROUNDS = 5  # after which public functions have called every operator


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tier", nargs="?", default="operators", choices=TIERS)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--only", "--operators", nargs="+", metavar="NAME", help="operators, functions or parsers")
    parser.add_argument("--go-on", action="store_true", help="after a finding too, until the time is over")
    parser.add_argument("--output", type=Path, metavar="FILE", help="of JSON lines, to which the counts are added")
    parser.add_argument("--case", metavar="NAME:CODE", help="this case alone, as a finding prints it")
    options = parser.parse_args(arguments)
    tier = TIERS[options.tier]()
    names = options.only or tier.names
    if unknown := set(names) - set(tier.names):
        parser.error(f"no {', '.join(sorted(unknown))} among {', '.join(tier.names)}")
    if options.case:
        name, _, code = options.case.partition(":")
        tier.example(name, Choices.repeated(code), Counter())
        print("nothing is wrong")
        return
    begin, findings = time.monotonic(), 0
    rounds = ((seed, name) for seed in itertools.count(options.seed) for name in names)
    last = options.seed
    while time.monotonic() < begin + 60 * options.minutes and (options.go_on or not findings):
        last, name = next(rounds)
        print(f"round {last}, {name}", flush=True)
        try:
            run(options.tier, tier, name, last)
        except Exception as error:
            findings += 1
            print("\n".join(_told(error)), flush=True)
    seconds = time.monotonic() - begin
    if options.output is not None:
        keep(options.output, options.tier, (options.seed, last), tier.counts, seconds, findings)
    _end(tier, options.tier, options.seed, last, seconds, findings)


def _told(error: Exception) -> Iterator[str]:
    """The traceback, unless the message says it all, and the command; without what hypothesis notes of each draw."""
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("again: ")]
    error.__notes__ = []
    if isinstance(error, AssertionError):
        yield str(error)
    else:
        yield "".join(traceback.format_exception(error)).rstrip()
    yield from notes


def _end(tier: Tier, name: str, first: int, last: int, seconds: float, findings: int) -> None:
    total = sum(tier.counts.values())
    print(
        f"{findings or 'no'} findings in {total:,} calls, {total / seconds:,.0f} per second, seeds {first} to {last}:"
    )
    for what, count in sorted(tier.counts.items()):
        print(f"  {what}: {count:,}")
    if name == "operators":
        from tests.fuzz import calls
        from tests.fuzz.operators import REACHED

        print(f"operators, as public functions call them: {dict(REACHED)}")
        missing = set(calls.operators()) - set(REACHED)
        if missing and tier.counts["public_functions"] >= ROUNDS * tier.examples:
            sys.exit(f"never called: {', '.join(sorted(missing))}")
    sys.exit(min(findings, 1))


if __name__ == "__main__":
    main()
